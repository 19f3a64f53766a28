import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from posttrain.harness.page import write_page
from posttrain.harness.show import table
from posttrain.types import PosttrainError

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = {
    "script": "</script><script>document.title='owned'</script>",
    "handler": "<img src=x onerror=\"document.title='owned'\"><svg onload=alert(1)>",
    "comment": "<!--<script>",
    "separators": "a\u2028b\u2029c",
    "surrogates": "\ud800 lone \udc00",
    "override": "\u202edesrever\u202c \u2066isolated\u2069",
    "controls": "nul\x00bell\x07escape\x1b[31m",
    "line": "x" * 100_000,
    "keys": "__proto__ constructor {title} {css} \\u003c &lt;b&gt;",
}


class Page(HTMLParser):
    """Tags, attributes and text; fails where a tag is not closed in its place."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.texts, self.blocks, self.open = [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.blocks.append((self.open[-1], data))
        else:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def page_of(folder):
    path = write_page(folder)
    assert path == folder / "report.html"
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    return Page(path.read_text("utf-8"))


def data_of(page):
    (found,) = (json.loads(text) for tag, text in page.blocks if tag == "script" and text.startswith("{"))
    return found


def rewrite(path, change):
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def hostile(evaluation):
    """A folder in which everything that a model or a data set writes is hostile."""
    folder = evaluation(tasks=(("gsm8k", len(HOSTILE), 1, 0.5),))
    texts = iter(HOSTILE.values())

    def answer(line):
        line["completion"] = HOSTILE[list(HOSTILE)[int(line["id"].split("-")[1])]]
        line |= {"finish": "stop", "error": None}

    def row(line):
        line["question"] = line["answer"] = next(texts)

    def verdict(line):
        line |= {
            "extracted": HOSTILE["script"],
            "failure": HOSTILE["handler"],
            "span": [0, 5],
            "right": False,
        }

    for name, change in (("answers", answer), ("rows", row), ("verdicts", verdict)):
        rewrite(folder / "gsm8k" / f"{name}.jsonl", change)
    result = json.loads((folder / "result.json").read_text())
    result["model"] = HOSTILE["script"]
    result["tasks"]["gsm8k"]["warnings"] = list(HOSTILE.values())
    result["tasks"]["gsm8k"]["made_by"]["verifier"] = HOSTILE["handler"]
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_the_numbers_are_there_without_scripts(evaluation):
    folder = evaluation()
    page = page_of(folder)
    result = json.loads((folder / "result.json").read_text())
    for task, found in result["tasks"].items():
        assert task in page.text
        for name, metric in found["metrics"].items():
            lo, hi = metric["ci95"]
            cells = f"{name} {100 * metric['value']:.1f}% {100 * lo:.1f}–{100 * hi:.1f}"
            assert cells in page.text
        for warning in found["warnings"]:
            assert warning in page.text
        for made in ("temperature 0.6", "9f2c41d0", "main@4b1c2f", "5e88a1c3", "accuracy(form=boxed)"):
            assert made in page.text
    assert "needs JavaScript" in page.text
    assert "not finished" not in page.text
    assert page.tags.count("svg") == 3  # pass@k of the task with several samples, a budget of each


def test_the_page_asks_for_nothing_outside_and_its_policy_names_its_script(evaluation):
    import base64
    import hashlib

    page = page_of(evaluation())
    assert not set(page.tags) & {"iframe", "object", "embed", "img", "base"}
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "src"
        assert name != "href" or value == "data:," or value.startswith("#")
    (policy,) = (v for _, name, v in page.attributes if name == "content" and "default-src" in v)
    (script,) = (text for tag, text in page.blocks if tag == "script" and not text.startswith("{"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(", script)


def test_controls_have_names(evaluation):
    source = write_page(evaluation()).read_text()
    form = re.search(r"<form.*?</form>", source, re.DOTALL)
    assert form
    labels = re.findall(r"<label.*?</label>", form[0], re.DOTALL)
    controls = re.findall(r"<(?:input|select)\b", form[0])
    assert sum(len(re.findall(r"<(?:input|select)\b", label)) for label in labels) == len(controls)
    for legend in re.findall(r"<fieldset>(.*?)</fieldset>", form[0], re.DOTALL):
        assert "<legend" in legend


def test_the_samples_are_embedded_whole(evaluation):
    folder = evaluation()
    data = data_of(page_of(folder))
    assert data["tasks"] == ["gsm8k", "mgsm_zh"]
    assert [len(q[5][0]) for q in data["questions"]] == [4] * 6 + [1] * 4
    verdicts = [json.loads(line) for line in (folder / "gsm8k" / "verdicts.jsonl").read_text().splitlines()]
    embedded = {(q[1], s[0]): s for q in data["questions"] for s in q[5][0]}
    for verdict in verdicts:
        sample = embedded[verdict["id"], verdict["sample"]]
        assert sample[5] == verdict["extracted"]
        if verdict["span"]:  # JavaScript counts UTF-16 units
            units = sample[1].encode("utf-16-le")[2 * sample[6] : 2 * sample[7]]
            assert units.decode("utf-16-le") == verdict["extracted"]


def test_hostile_text_stays_data(hostile):
    page = page_of(hostile)
    assert page.tags.count("script") == 2
    assert not set(page.tags) & {"img", "b-evil"}
    source = (hostile / "report.html").read_text("utf-8")
    assert source.count("<script") == 2
    assert "<!--" not in source
    assert not set("\x00\x07\x1b\u202e\u2066") & set(source)
    assert len(table(hostile).splitlines()) < 50
    completions = [q[5][0][0][1] for q in data_of(page)["questions"]]
    assert completions[0] == HOSTILE["script"]
    assert completions[4] == "\ufffd lone \ufffd"
    assert completions[6] == "nul␀bell␇escape␛[31m"
    assert len(completions[7]) == 20_000
    assert completions[8] == HOSTILE["keys"]


def test_a_half_done_folder_has_a_page_that_says_so(evaluation):
    folder = evaluation()
    (folder / "result.json").unlink()
    (folder / "gsm8k" / "verdicts.jsonl").unlink()
    answers = folder / "gsm8k" / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-40])
    page = page_of(folder)
    for part in (
        "not finished",
        "not whole",
        "no result.json",
        "gsm8k: nothing was judged yet",
        "23 of 24 samples",
        "last line of answers.jsonl is not whole",
    ):
        assert part in page.text
    assert len(data_of(page)["questions"]) == 10
    shutil.rmtree(folder / "gsm8k")
    shutil.rmtree(folder / "mgsm_zh")
    assert "no question was answered yet" in page_of(folder).text


def test_a_result_that_holds_anything(evaluation):
    folder = evaluation()
    result = json.loads((folder / "result.json").read_text())
    result["tasks"]["gsm8k"] |= {
        "metrics": {"x": {"value": 7.5, "ci95": None}},
        "curves": {"k": [1, {"k": "a"}]},
    }
    result["tasks"]["mgsm_zh"] = None
    (folder / "result.json").write_text(json.dumps(result))
    page = page_of(folder)
    assert "no interval" in page.text
    assert "nan" not in (folder / "report.html").read_text().split("<script")[0]


def test_no_evaluation(tmp_path):
    with pytest.raises(PosttrainError):
        write_page(tmp_path)


# --- in a browser ---

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(path, script=""):
    """The page's document after its scripts. `script` runs after them, in a copy without the policy."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    if script:
        source = re.sub(
            r'<meta http-equiv="Content-Security-Policy".*?>',
            "",
            path.read_text("utf-8"),
            count=1,
            flags=re.DOTALL,
        )
        path = path.with_name("driven.html")
        path.write_text(source.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    call = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
    call.insert(1, f"--user-data-dir={path.parent / 'browser'}")
    return subprocess.run(call, capture_output=True, text=True, timeout=100, check=True).stdout


SET = """
const form = document.getElementById("filters");
const submit = () => form.dispatchEvent(new Event("submit", {cancelable: true}));
const counts = [document.getElementById("count").textContent];
const then = (change) => { change(); submit(); counts.push(document.getElementById("count").textContent); };
const tick = (name, value, on) => { form.querySelector(`[name=${name}][value="${value}"]`).checked = on; };
"""


@pytest.mark.slow
def test_filters_agree_with_the_records(evaluation):
    folder = evaluation(tasks=(("gsm8k", 40, 4, 0.6), ("mgsm_zh", 30, 2, 0.5)))
    script = (
        SET
        + """
    then(() => { form.task.value = "0"; });
    then(() => { form.finish.value = "length"; });
    then(() => { form.finish.value = ""; tick("verdict", 1, false); });
    then(() => { form.text.value = "QUADRAT"; });
    then(() => { form.text.value = "正确"; form.task.value = ""; tick("verdict", 1, true); });
    then(() => { form.text.value = "首先计算"; });
    document.title = JSON.stringify([counts, document.querySelectorAll("article").length,
      document.querySelectorAll("mark.hit").length > 0, document.querySelector("pre mark.answer") !== null]);
    """
    )
    title = re.search(r"<title>(.*?)</title>", browse(write_page(folder), script))
    assert title
    counts, articles, hits, answers = json.loads(title[1])

    def records(name, file):
        lines = (folder / name / f"{file}.jsonl").read_text("utf-8").splitlines()
        return {(r["id"], r.get("sample")): r for r in map(json.loads, lines)}

    def told(keep):
        found = [
            (name, key[0])
            for name in ("gsm8k", "mgsm_zh")
            for verdicts in [records(name, "verdicts")]
            for key, answer in records(name, "answers").items()
            if keep(name, answer, verdicts[key])
        ]
        words = [
            f"{n} {word}{'s' * (n != 1)}"
            for n, word in ((len(found), "sample"), (len(set(found)), "question"))
        ]
        return " of ".join(words)

    wanted = [
        told(lambda name, a, v: True),
        told(lambda name, a, v: name == "gsm8k"),
        told(lambda name, a, v: name == "gsm8k" and a["finish"] == "length"),
        told(lambda name, a, v: name == "gsm8k" and v["right"] is not False),
        "0 samples of 0 questions",
        "0 samples of 0 questions",
        told(lambda name, a, v: "首先计算" in a["completion"]),
    ]
    assert counts == wanted
    assert articles == 10
    assert hits and answers


@pytest.mark.slow
def test_hostile_text_is_shown_as_text(hostile):
    seen = browse(write_page(hostile))
    assert "owned" not in re.findall(r"<title>(.*?)</title>", seen)[0].split("·")[-1]
    page = Page(seen)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert page.tags.count("article") == len(HOSTILE)
    assert HOSTILE["script"] in page.text
    driven = browse(
        write_page(hostile), "document.title = String(document.querySelectorAll('img, svg').length);"
    )
    assert re.findall(r"<title>(.*?)</title>", driven)[0] == "1"  # the chart of the token budget
