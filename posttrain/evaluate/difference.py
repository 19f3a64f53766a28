"""The difference of two accuracies on the same problems: far surer than two separate intervals tell."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.evaluate.metrics import disjoint, paired
from posttrain.evaluate.runfolder import Estimate, Record, Run

Verdicts = dict[tuple[str, str], Record]  # held-out records of one model by id and question


@dataclass(frozen=True)
class Difference:
    """Strict accuracy now less then, on the n problems judged both times; lo, hi: its 95% interval."""

    value: float
    lo: float
    hi: float
    n: int


def verdicts(run: Run | None, phase: str) -> Verdicts:
    """A run's held-out records of a phase ("before", "after")."""
    records = [pair[phase] for pair in run.pairs.values() if phase in pair] if run else []
    return {(str(r.get("id")), str(r.get("prompt"))): r for r in records}


def difference(then: Verdicts, now: Verdicts) -> Difference | None:
    """Of the problems judged both times; None when there are none."""
    pairs = [(then[key].get("strict"), record.get("strict")) for key, record in now.items() if key in then]
    known = [(a, b) for a, b in pairs if isinstance(a, bool) and isinstance(b, bool)]
    if not known:
        return None
    gained, lost = sum(b and not a for a, b in known), sum(a and not b for a, b in known)
    return Difference((gained - lost) / len(known), *paired(gained, lost, len(known)), len(known))


def gain(then: Estimate, now: Estimate, found: Difference | None) -> str:
    """Points gained and how sure they are, as HTML: paired where the records hold what the accuracies say."""
    points = now.accuracy - then.accuracy
    if found and abs(found.value - points) < 1e-9:
        told = f"95% interval {100 * found.lo:+.0f} to {100 * found.hi:+.0f}, on the same {found.n} problems"
        told += "" if found.lo > 0 or found.hi < 0 else ": this alone shows no change"
    elif disjoint((then.lo, then.hi), (now.lo, now.hi)):
        told = "the 95% intervals do not overlap"
    else:
        told = "the 95% intervals overlap: this alone shows no change"
    return f'<p class="gain">{100 * points:+.0f} points<span>{told}</span></p>'
