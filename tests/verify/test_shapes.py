"""Parts compared in any order: what is decided is right, and what may be undecided is."""

from __future__ import annotations

import random

import pytest

from posttrain.verify.compare import compare
from posttrain.verify.shapes import Undecided, same_shape


@pytest.mark.parametrize("once", [True, False])
def test_what_is_decided_is_right_whatever_is_hidden(once: bool) -> None:
    """Each part is a value and a name, "a0" is the value a; the comparison of some pairs is refused."""
    rng, seen = random.Random(0), {True: 0, False: 0, None: 0}
    for _ in range(3000):
        values = rng.choices("abc", k=rng.randint(2, 4))
        others = rng.sample(values, len(values)) if rng.random() < 0.5 else rng.choices("abc", k=3)
        ours, theirs = ([f"{v}{place}" for place, v in enumerate(side)] for side in (values, others))
        refused = {(a, b) for a in ours for b in theirs if rng.random() < rng.choice([0.0, 0.4])}

        def same(a: str, b: str, refused: set[tuple[str, str]] = refused) -> bool:
            if (a, b) in refused:
                raise Undecided(f"{a} {b}")
            return a[0] == b[0]

        truth = sorted(values) == sorted(others) if once else set(values) == set(others)
        mine, gold = (f"\\{{{', '.join(side)}\\}}" for side in (ours, theirs))
        try:
            decision = same_shape(", ".join(ours) if once else mine, gold, same)
            assert decision is not None
            found = decision[0]
        except Undecided:
            found = None
        seen[found] += 1
        assert found in (truth, None), (ours, theirs, refused)
        if not refused:
            assert found is truth
        if any(all((a, b) not in refused and a[0] != b[0] for b in theirs) for a in ours):
            assert found is False, "one of ours surely differs from all"
    assert min(seen.values()) > 100, seen


def test_a_part_that_differs_decides_beside_one_that_is_undecided() -> None:
    bomb = "9^{9^{9^{9}}}"
    assert compare(f"{bomb}, 3", "\\sqrt{2}, 3").rule == "undecided"
    assert compare(f"{bomb}, 5", "\\sqrt{2}, 3").rule == "different"
    assert compare(f"\\{{{bomb}, 5\\}}", "\\{\\sqrt{2}, 3\\}").rule == "different"
