"""Our own requests with constraints: each can be met, its text says it all, rows depend on the seed alone."""

import json
import re
import runpy
from collections import Counter

import pytest
import reasoning_gym

from posttrain import content, instructions
from posttrain.data import load
from posttrain.recipe_data import Data


def reward(name: str):
    path = content.find("reward", name)
    assert path is not None
    return runpy.run_path(str(path))[name]


def make(seed: int = 0, size: int = 3000):
    return list(reasoning_gym.create_dataset(instructions.NAME, seed=seed, size=size))


def respond(constraints) -> str:
    """A response made by rule that keeps to them, and as far as that goes to nothing else."""
    wanted = {constraint["kind"]: constraint for constraint in constraints}
    keyword = wanted.get("keyword", {"max": 0})
    must = keyword["word"] if keyword.get("max") != 0 else "nothing"
    if "json" in wanted:
        return json.dumps({"fact": f"it has {must}", "more": [1, 2]})
    if "bullets" in wanted:
        text = "\n".join(f"- Item {must}" for _ in range(wanted["bullets"]["min"]))
    elif "sentences" in wanted:
        count = wanted["sentences"]["min"] - ("ends_with" in wanted)
        text = " ".join(f"It is {must}." for _ in range(count))
    elif "paragraphs" in wanted:
        text = "\n\n".join(f"It is {must}." for _ in range(wanted["paragraphs"]["min"]))
    else:
        low, high = (wanted.get("words", {}).get(side) for side in ("min", "max"))
        text = f"It is {must}" + " very" * (low or 0) + ", good" * (0 if high or "no_commas" in wanted else 1)
    if "starts_with" in wanted:
        text = f"{wanted['starts_with']['text']} {text}"
    if "ends_with" in wanted:
        text = f"{text} {wanted['ends_with']['text']}"
    if "postscript" in wanted:
        text = f"{text}.\n\n{wanted['postscript']['marker']} Bye"
    text = text.lower() if "lowercase" in wanted else text.upper() if "uppercase" in wanted else text
    return f'"{text}"' if "quoted" in wanted else text


def test_every_row_can_be_satisfied():
    rows = make()
    said = [f"<think>\nHm, a list.\n</think>\n{respond(row['constraints'])}" for row in rows]
    paid = reward("constraints")(said, constraints=[row["constraints"] for row in rows])
    assert [(row, text) for row, text, value in zip(rows, said, paid, strict=True) if value != 1.0] == []


def test_constraints_can_be_missed():
    """A response to nothing in particular is not paid in full, but for a few that ask for little."""
    rows = make(size=500)
    paid = reward("constraints")(["I will not, ever. No"] * 500, constraints=[r["constraints"] for r in rows])
    assert sum(value == 1.0 for value in paid) < 100
    assert sum(value == 0.0 for value in paid) > 200


def test_all_kinds_and_their_pairs_come_up():
    rows = make()
    kinds = Counter(constraint["kind"] for row in rows for constraint in row["constraints"])
    assert set(kinds) == set(instructions.PLACES) and min(kinds.values()) > 30, kinds
    assert Counter(len(row["constraints"]) for row in rows).keys() == {1, 2}
    assert all(len({one["kind"] for one in row["constraints"]}) == len(row["constraints"]) for row in rows)
    assert len({tuple(sorted(one["kind"] for one in row["constraints"])) for row in rows}) > 30
    assert len(instructions.SUBJECTS) >= 30
    assert len({row["question"] for row in rows}) > 2500


SAYS = {
    "keyword": r'word "{word}"',
    "words": r"(?:at most|no more than) {max} words|at least {min} words|{min} words or more",
    "sentences": r"{n} sentences?\b",
    "paragraphs": r"{n} paragraphs.* empty line",
    "bullets": r"{n} .*bullet point",
    "starts_with": r'(?:Begin|Start) with "{text}"',
    "ends_with": r'(?:End with|last words have to be) "{text}"',
    "lowercase": r"lowercase|small letters",
    "uppercase": r"capital letters",
    "no_commas": r"not use any commas|without commas",
    "quoted": r"quotation marks",
    "json": r"JSON",
    "postscript": r'postscript.*"{marker}"',
}


def test_the_question_says_every_constraint():
    for row in make(size=1000):
        assert len(re.findall(r"[.?!]\"? [A-Z]", row["question"])) >= len(row["constraints"])
        for one in row["constraints"]:
            n = instructions.NUMBERS.get(one.get("min"))
            parts = {key: re.escape(str(value)) for key, value in one.items()}
            said = SAYS[one["kind"]].format_map({"min": "-", "max": "-", "n": n, **parts})
            assert re.search(said, row["question"]), (said, row["question"])
            denied = re.search(r"not use the word", row["question"]) is not None
            assert denied == any(c["kind"] == "keyword" and c.get("max") == 0 for c in row["constraints"])


def test_rows_depend_on_the_seed_and_their_place():
    assert make(seed=3, size=50) == make(seed=3, size=80)[:50]
    asked = [{row["question"] for row in make(seed=seed, size=300)} for seed in (3, 4)]
    assert len(asked[0] & asked[1]) < 30
    assert json.loads(json.dumps(make(size=100))) == make(size=100)


@pytest.fixture
def mixed():
    words = {"source": "reasoning_gym:posttrain_word_problems", "size": 20, "seed": 1}
    also = {"source": "reasoning_gym:posttrain_instructions", "size": 20, "seed": 1, "prompt": "{question}"}
    heldout = {"size": 5, "seed": 2}
    data = {"train": words, "heldout": heldout, "also": [also], "prompt": "{question}\nShow each step."}
    return Data.model_validate(data)


def test_beside_sums_each_reward_judges_its_own_rows(mixed):
    train, heldout = load(mixed)
    sums, requests = train[:20], train[20:]
    assert [prompt.id for prompt in requests] == [f"also.0-{i}" for i in range(20)]
    assert all(prompt.question.endswith("\nShow each step.") for prompt in sums + heldout)
    assert all(prompt.question == prompt.columns["question"] for prompt in requests)
    # As the rewards are called: every column, for every row.
    said = [f"So it is.\nThe answer is: {prompt.answer}" for prompt in train]
    columns = {name: [prompt.columns[name] for prompt in train] for name in train[0].columns}
    right = reward("accuracy")(said, answer=[prompt.answer for prompt in train], **columns)
    assert right == [1.0] * 20 + [None] * 20
    kept = reward("constraints")(said, answer=[prompt.answer for prompt in train], **columns)
    assert kept[:20] == [None] * 20 and None not in kept[20:]
    made = [respond(prompt.columns["constraints"]) for prompt in requests]
    assert reward("constraints")(made, [p.columns["constraints"] for p in requests]) == [1.0] * 20
