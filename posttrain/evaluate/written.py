"""The report's third section: what the model wrote, before and after, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from posttrain.evaluate.charts import escape
from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Record, Run, transition, transitions
from posttrain.evaluate.shown import Shown
from posttrain.evaluate.words import compact
from posttrain.picture import MARK

SHOWN = 12  # held-out prompts shown side by side
LATEST = 4  # training completions shown of a run that has nothing to compare yet
TEXT_LIMIT = 6000  # characters of a completion shown
SAMPLES = "samples.jsonl"
CHANGES = ("wrong→right", "right→wrong", "wrong→wrong", "right→right")


def written_section(run: Run, shown: Shown) -> str:
    """Pairs of completions of one prompt; those after where none were before; until then, the latest training
    ones.

    shown: takes up the pictures of the samples.
    """
    both = {k: p for k, p in run.pairs.items() if "before" in p and "after" in p}
    if not both:
        return _measured(run, shown) or _latest(run, shown)
    counts = transitions(run)
    judged = sum(counts.values())
    legend = "".join(
        f'<li class="{_css(change)}"><b>{counts[change]}</b> {_change_label(change)}</li>'
        for change in CHANGES
    )
    bar = "".join(
        f'<i class="{_css(change)}" style="flex-grow:{counts[change]}"></i>'
        for change in CHANGES
        if counts[change]
    )
    mix = (
        f'<div class="mix"><div class="mixbar" aria-hidden="true">{bar}</div><ul>{legend}</ul></div>'
        if judged
        else ""
    )
    samples = "".join(_pair(pair, shown) for pair in choose(list(both.values())))
    return (
        "<section><h2>What it wrote</h2>"
        '<p class="about">The same held-out problems before and after, greedy. Of each kind, the first ones '
        f"in the file: none was picked by hand.</p>{shown.about()}{mix}{samples}</section>"
    )


def choose(pairs: list[dict[str, Record]], limit: int = SHOWN) -> list[dict[str, Record]]:
    """The pairs to show: wrong→right first, but two of every other kind keep their place, so that the page
    does not hide what went wrong. Within a kind the file's order decides."""
    kinds: dict[str | None, list[dict[str, Record]]] = {change: [] for change in (*CHANGES, None)}
    for pair in pairs:
        kinds[transition(pair)].append(pair)
    room = {change: min(2, len(found)) for change, found in kinds.items()}
    left = limit - sum(room.values())
    for change, found in kinds.items():
        extra = max(0, min(left, len(found) - room[change]))
        room[change] += extra
        left -= extra
    return [pair for change, found in kinds.items() for pair in found[: room[change]]][:limit]


def _pair(pair: dict[str, Record], shown: Shown) -> str:
    before, after = pair["before"], pair["after"]
    sides = "".join(
        completion(record, word, shown=shown) for record, word in ((before, "before"), (after, "after"))
    )
    return f'<article class="sample">{question(after, shown=shown)}<div class="sides">{sides}</div></article>'


def question(record: Record, file: str = SAMPLES, shown: Shown | None = None) -> str:
    """A record's prompt, pictures and right answer; `file` is where the rest of a long one stands."""
    answer = record.get("answer")
    gold = f'<p class="gold">answer <b>{escape(answer)}</b></p>' if answer is not None else ""
    pictures, text = shown.asked(record) if shown else "", record.get("prompt")
    if pictures and isinstance(text, str):
        text = text.lstrip().removeprefix(MARK)  # it is before one's eyes
    return f'<div class="question">{pictures}<pre dir="auto">{clip(text, file)}</pre>{gold}</div>'


def completion(record: Record, word: str, file: str = SAMPLES, shown: Shown | None = None) -> str:
    """A record's completion with its verdict and what it points at, under a word for it."""
    tokens = number(record.get("tokens"))
    facts = [f"{tokens:.0f} tokens"] if tokens is not None else []
    total = number(record.get("total"))
    if total is not None and not isinstance(record.get("strict"), bool):
        facts.append(f"reward {compact(total)}")
    facts += ["cut off"] if record.get("finish") == "length" else []
    if record.get("strict") is False and record.get("lenient") is True:
        facts.append("right number, wrong form")
    text = clip(record.get("completion"), file) or '<span class="empty">nothing</span>'
    verdict = _badge(record.get("strict"))
    return (
        f'<div class="side"><p class="meta"><span class="word">{escape(word)}</span>{verdict}'
        f'<span>{" · ".join(facts)}</span></p><pre dir="auto" tabindex="0">{text}</pre>'
        f"{shown.said(record) if shown else ''}</div>"
    )


def _measured(run: Run, shown: Shown) -> str:
    """Of a model that was evaluated at the end alone: right and wrong answers in turn, the file's first."""
    records = [pair["after"] for pair in run.pairs.values() if "after" in pair]
    word = "greedy" if run.kind == "eval" else "after"
    samples = "".join(_alone(r, word, shown) for r in mixed(records)[:SHOWN])
    about = '<p class="about">Right and wrong answers in turn, the first ones in the file; greedy.</p>'
    about += shown.about()
    return f"<section><h2>What it writes</h2>{about}{samples}</section>" if samples else ""


def _alone(record: Record, word: str, shown: Shown) -> str:
    sides = f'<div class="sides">{completion(record, word, shown=shown)}</div>'
    return f'<article class="sample">{question(record, shown=shown)}{sides}</article>'


def mixed(records: Sequence[Record]) -> list[Record]:
    """Right and wrong answers in turn, each in their order; all of them where none was judged."""
    kinds = [[r for r in records if r.get("strict") is verdict] for verdict in (True, False)]
    found = [record for turn in zip_longest(*kinds) for record in turn if record is not None]
    return found or list(records)


def _latest(run: Run, shown: Shown) -> str:
    if not run.recent:
        return ""
    samples = "".join(_alone(r, f"step {compact(r.get('step'))}", shown) for r in run.recent[-LATEST:])
    about = '<p class="about">The latest training completions.</p>'
    return f"<section><h2>What it writes</h2>{about}{samples}</section>"


def _badge(verdict: object) -> str:
    if not isinstance(verdict, bool):
        return ""
    return (
        '<span class="badge right">✓ right</span>' if verdict else '<span class="badge wrong">✗ wrong</span>'
    )


def _css(change: str) -> str:
    return change.replace("→", "-")


def _change_label(change: str) -> str:
    was, now = change.split("→")
    return f"stayed {was}" if was == now else f"{was} → {now}"


def clip(text: object, file: str, limit: int = TEXT_LIMIT) -> str:
    """Inert, and its beginning alone where it is long."""
    text = "" if text is None else str(text)
    left = len(text) - limit
    rest = f'<span class="empty">\n… {left:,} more characters in {file}</span>' if left > 0 else ""
    return escape(text[:limit].strip("\n")) + rest
