"""Signs in a run's records that the model does not look at its pictures, or that its tower goes bad."""

from __future__ import annotations

from typing import NamedTuple

from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Record, Run
from posttrain.evaluate.words import compact

BLIND = {"blank": "blank pictures", "shuffled": "pictures of other questions"}
# Of a tower's record: key, what it is called, how it reads, what it means.
TOWER = (
    (
        "rank",
        "Image tokens' rank",
        compact,
        "Effective rank. Near 1 all of them are alike.",
    ),
    (
        "cosine",
        "Pictures' distance",
        compact,
        "1 − cosine, mean over pairs. At 0 all look the same.",
    ),
    ("norm", "Image tokens' length", compact, "Mean norm of the tower's tokens."),
)


class Added(NamedTuple):
    """What the pictures add to the accuracy of a kind of BLIND, with its 95% interval."""

    value: float
    lo: float
    hi: float


def signs(run: Run) -> list[str]:
    """Sentences that the evaluations wrote: at the end, that answers are as right without the pictures; the
    last time, that the tower goes bad."""
    found = run.evaluation("after") or {}
    said = found.get("warnings")
    alarms = (_tower(found) or _tower(run.evaluations[-1][1] if run.evaluations else {})).get("alarms")
    return [str(one) for some in (said, alarms) if isinstance(some, list) for one in some]


def sign_lines(run: Run) -> list[str]:
    """The same for the terminal."""
    return ["".join(c if c.isprintable() else " " for c in f"sees?     {sign}") for sign in signs(run)]


def added(evaluation: Record, kind: str) -> Added | None:
    """None where the record does not hold it whole."""
    found = evaluation.get(kind)
    paired = found.get("paired") if isinstance(found, dict) else None
    ends = paired.get("ci95") if isinstance(paired, dict) else None
    if not isinstance(paired, dict) or not isinstance(ends, list) or len(ends) != 2:
        return None
    known = [number(one) for one in (paired.get("difference"), *ends)]
    return None if None in known else Added(*(one for one in known if one is not None))


def points(found: Added | None) -> str:
    """ "+12.1 [+5.0, +19.2]", in points of a hundred; "" for None"""
    return f"{100 * found.value:+.1f} [{100 * found.lo:+.1f}, {100 * found.hi:+.1f}]" if found else ""


def tower(evaluation: Record, key: str) -> float | None:
    """What is shown of a tower's record under a key of TOWER."""
    found = number(_tower(evaluation).get(key))
    return 1 - found if key == "cosine" and found is not None else found


def _tower(evaluation: Record) -> Record:
    found = evaluation.get("tower")
    return found if isinstance(found, dict) else {}
