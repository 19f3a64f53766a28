import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console

from posttrain.evaluate import display as module
from posttrain.evaluate.display import Display, sparkline, step_line
from posttrain.evaluate.words import compact, decimal, duration, percent

METRICS = {
    "step": 3,
    "seconds": 10.0,
    "reward": 0.4123,
    "reward/accuracy": 0.3,
    "reward/form": 0.9,
    "pass_rate": 0.31,
    "groups": 8,
    "groups_silent": 5,
    "truncated": 0.031,
    "length": 48.2,
    "entropy": 0.523,
    "tokens_per_second": 410.7,
    "masked_rows": 0,
    "heldout": {
        "strict": {"accuracy": 0.273, "ci95": [0.22, 0.33], "n": 256},
        "lenient": {"accuracy": 0.3, "ci95": [0.25, 0.36], "n": 256},
    },
}
UPDATE = {
    "step": 12,
    "loss": 1.2345,
    "grad_norm": 0.91,
    "learning_rate": 2e-5,
    "entropy": 1.041,
    "mean_token_accuracy": 0.613,
    "num_tokens": 10800.0,
    "epoch": 0.31,
}
NAMES = ["accuracy", "form"]
BROKEN = [
    {},
    {"step": None, "reward": None},
    {"step": math.nan, "reward": math.nan, "length": math.inf, "heldout": {"strict": {"accuracy": math.nan}}},
    {"step": "x", "reward": [], "groups": 0, "groups_silent": 0, "heldout": {"strict": 3, "lenient": None}},
    {"step": 2, "heldout": {"strict": {"accuracy": 0.5, "ci95": [None, "x"]}}},
    {"step": None, "loss": None},
    {"step": math.nan, "loss": math.nan, "mean_token_accuracy": "x", "epoch": [], "num_tokens": math.inf},
    {"step": 2, "heldout": None, "reward_failures": None, "seconds": None, "reward": 10**400},
]


def make(width=100, plain=False, **options):
    file = io.StringIO()
    console = Console(file=file, force_terminal=not plain, width=width, height=40, color_system=None)
    return Display(options.get("total", 40), options.get("names", NAMES), plain=plain, console=console), file


def panel(shown: Display) -> str:
    with shown.console.capture() as captured:
        shown.console.print(shown._panel())
    return captured.get()


def test_plain_line_says_everything():
    line = step_line(METRICS, 40, NAMES, 600.0)
    for part in (
        "step 3/40",
        "reward 0.412 (accuracy 0.30, form 0.90)",
        "held-out 27% [22–33]",
        "lenient 30% [25–36]",
        "pass 31%",
        "silent 5/8",
        "truncated 3.1%",
        "length 48",
        "entropy 0.52",
        "411 tokens/s",
        "about 10 min left",
    ):
        assert part in line
    assert "left out" not in line
    assert "left out 3" in step_line({**METRICS, "masked_rows": 3}, 40, NAMES, None)


def test_plain_line_of_an_update():
    line = step_line(UPDATE, 117, [], 150.0)
    told = ["update 12/117", "loss 1.234", "token accuracy 61%", "entropy 1.04", "about 2 min left"]
    assert line.split(" | ") == told
    heldout = {**METRICS["heldout"]}
    assert step_line({"step": 117, "heldout": heldout}, 117, [], None).startswith(
        "step 117/117 | held-out 27%"
    )


@pytest.mark.parametrize("width", [8, 34, 60, 100])
def test_panel_of_updates(width):
    shown, _ = make(width, total=117, names=["accuracy"])
    shown.step({"step": 0, "heldout": METRICS["heldout"]})
    for step in range(1, 30):
        shown.step({**UPDATE, "step": step, "loss": 2 - step / 20, "learning_rate": 0.0})
    text = panel(shown)
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    assert shown.why is None  # there is no reward that could be flat
    if width >= 60:
        for word in (
            "update 29",
            "/117",
            "loss",
            "0.550",
            "█",
            "token accuracy",
            "61%",
            "held-out",
            "27%",
            "epoch",
            "10.8k",
        ):
            assert word in text
        for word in ("reward", "silent", "pass rate"):
            assert word not in text


def test_time_left_of_updates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown, _ = make(plain=True, total=10)
    with shown:
        now[0] = 100.0
        shown.step({"step": 0, "heldout": {}})
        now[0] = 110.0
        shown.step({**UPDATE, "step": 1, "seconds": 2.0})
        assert shown.seconds_left() == pytest.approx(18.0)
        now[0] = 114.0
        shown.step({**UPDATE, "step": 2})
        assert shown.seconds_left() == pytest.approx(8 * 3.0)


def test_plain_is_one_line_a_step_without_escape_codes():
    shown, file = make(plain=True)
    with shown:
        for step in (1, 2, 3):
            for done in range(9):
                shown.phase("generating", done, 8)
            shown.step({**METRICS, "step": step})
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert "\x1b" not in file.getvalue()


def test_plain_shows_progress_inside_a_long_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown, file = make(plain=True)
    with shown:
        for _ in range(10):
            now[0] += 10
            shown.phase("evaluating", int(now[0]), 256)
    assert file.getvalue().splitlines() == ["evaluating … 40/256", "evaluating … 80/256"]


def test_plain_survives_an_ascii_stream():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    shown = Display(4, ["größe"], plain=True, console=Console(file=stream))
    with shown:
        shown.note("→ 你好")
        shown.step(METRICS)
    assert b"step 3/4" in raw.getvalue()


def test_plain_is_chosen_where_there_is_no_terminal():
    assert Display(1, [], console=Console(file=io.StringIO())).plain
    assert not Display(1, [], console=Console(file=io.StringIO(), force_terminal=True)).plain
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert Display(1, [], console=dumb).plain


@pytest.mark.parametrize("width", [1, 8, 20, 34, 60, 76, 100, 250])
def test_panel_fits_every_width(width):
    shown, _ = make(
        width, names=["accuracy", "a_reward_with_a_very_long_name_indeed", "长长长长长长长长长长长长长长"]
    )
    for step in range(1, 30):
        shown.step({**METRICS, "step": step, "groups_silent": 8, "pass_rate": 0.0})
    shown.phase("evaluating " + "very " * 30 + "long", 70, 256)
    text = panel(shown)
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    if width >= 60:
        for word in ("step 29", "held-out", "27%", "8/8 groups", "70/256", "All groups are silent", "left"):
            assert word in text


def test_panel_before_anything_happened():
    shown, _ = make()
    assert "step 0/40" in panel(shown)
    assert "starting" in panel(shown)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("plain", [True, False])
def test_missing_and_malformed_values(broken, plain):
    shown, file = make(plain=plain)
    with shown:
        shown.step(broken)
        shown.step({"step": 1, **broken})
        shown.phase("x", None, 5)
        shown.phase("x", 7, 5)
        shown.phase("x", 0, 0)
        panel(shown)
    assert "nan" not in file.getvalue().lower()


def test_no_steps_at_all():
    shown, _ = make(total=0)
    shown.phase("evaluating", 1, 2)
    assert "step 0/0" in panel(shown)


def test_markup_in_names_and_notes_is_text():
    shown, file = make(names=["[red]x[/red]", "[/]"])
    with shown:
        shown.note("[bold]plain[/bold] [/]")
        shown.step({**METRICS, "reward/[red]x[/red]": 0.5})
        shown.phase("[/nope]")
        text = panel(shown)
    assert "[red]x[/red]" in text
    assert "[/nope]" in text
    assert "[bold]plain[/bold] [/]" in file.getvalue()


def test_the_reason_is_shown_once_in_plain_output():
    shown, file = make(plain=True)
    with shown:
        for step in range(1, 12):
            shown.step({**METRICS, "step": step, "groups_silent": 8, "pass_rate": 0.0})
    assert file.getvalue().count("why flat: All groups are silent") == 1


def test_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown, _ = make(plain=True, total=10)
    with shown:
        assert shown.seconds_left() is None
        now[0] = 100.0  # loading and the first evaluation must not count as a step's time
        shown.step({"step": 0, "heldout": {}})
        assert shown.seconds_left() is None
        now[0] = 110.0
        shown.step({"step": 1, "reward": 0.1, "seconds": 10.0})
        assert shown.seconds_left() == pytest.approx(90.0)
        now[0] = 130.0
        shown.step({"step": 2, "reward": 0.1, "seconds": 12.0})
        assert shown.seconds_left() == pytest.approx(8 * 15.0)
        now[0] = 140.0
        assert shown.seconds_left() == pytest.approx(110.0)
        shown.step({"step": 10, "reward": 0.1})
        assert shown.seconds_left() == 0


def test_the_terminal_is_given_back_when_the_run_fails():
    shown, file = make()
    with pytest.raises(RuntimeError), shown:
        raise RuntimeError
    assert "\x1b[?25h" in file.getvalue()  # the cursor is shown again


def test_sparkline():
    assert sparkline([], 10) == ""
    assert sparkline([1.0], 0) == ""
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([2.0, 2.0], 10) == "▁▁"
    assert sparkline([0.0, None, 1.0], 10) == "▁ █"
    assert sparkline([None], 10) == " "
    assert len(sparkline([float(i) for i in range(1000)], 20)) == 20


def test_words():
    assert [duration(s) for s in (0.4, 42, 89, 90, 3540, 7500)] == [
        "0 s",
        "42 s",
        "89 s",
        "2 min",
        "59 min",
        "2 h 05 min",
    ]
    assert [percent(v) for v in (0, 0.062, 0.45, 0.996, 1, None)] == [
        "0%",
        "6.2%",
        "45%",
        "99.6%",
        "100%",
        "–",
    ]
    assert [compact(v) for v in (0.41234, 48.25, 1234.5, 32100, 2e-5, "x")] == [
        "0.412",
        "48.2",
        "1234",
        "32.1k",
        "2e-05",
        "–",
    ]
    assert decimal(math.nan) == "–"
