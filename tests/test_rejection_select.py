"""What rejection sampling keeps: rules by tables, all of them against a naive twin, rows as read again."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain import data
from posttrain.kinds import Keep
from posttrain.recipe_data import Data
from posttrain.rejection import select
from posttrain.types import PosttrainError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def said(
    text: str, finish: str = "stop", failures: dict[str, str] | None = None, **parts: Any
) -> dict[str, Any]:
    values = dict.fromkeys(failures or {}) | parts
    return {
        "text": text,
        "tokens": 1,
        "finish": finish,
        "parts": values,
        "total": None,
        "failures": failures or {},
    }


def written(folder: Path, groups: Sequence[tuple[Any, list[dict[str, Any]]]], **columns: Any) -> Path:
    """Shards of three prompts each: (prompt, completions). Its place is a column too."""
    (folder / "drawn").mkdir(parents=True, exist_ok=True)
    starts = range(0, len(groups), 3)
    for number, start in enumerate(starts):
        some = [
            {
                "id": f"t{i}",
                "index": i,
                "prompt": p,
                "answer": "4",
                "columns": columns | {"place": i},
                "completions": c,
            }
            for i, (p, c) in enumerate(groups[start : start + 3], start=start)
        ]
        end = {"first": start, "prompts": len(some), "shards": len(starts)}
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in [*some, end])
        (folder / "drawn" / f"{number:05d}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def chosen(
    folder: Path, groups: Any, keep: Keep, seed: int = 0, **names: str
) -> tuple[list[str], dict[str, Any]]:
    """The texts of the rows, and the counts. Rewards are called in `keep` as in `names`."""
    counts = select(written(folder, groups), keep, seed, names or {"a": "a", "b": "b"})
    return [row["completion"] for row in lines(folder / "rows.jsonl")], counts


ALL = {"each": 99}
TABLE: list[tuple[str, dict[str, Any], list[dict[str, Any]], list[str], dict[str, int]]] = [
    ("cut off never", ALL, [said("x", "length", a=1.0), said("y", a=1.0)], ["y"], {"cut off": 1}),
    ("empty never", ALL, [said("", a=1.0), said(" \n\t", a=1.0), said("y")], ["y"], {"empty": 2}),
    ("at least", {"least": {"a": 0.5}}, [said("x", a=0.49), said("y", a=0.5)], ["y"], {"below a": 1}),
    ("does not apply", {"least": {"a": 0.5}}, [said("x", a=0.0), said("y", a=None)], ["y"], {"below a": 1}),
    ("failed", {"least": {"a": -9}}, [said("x", failures={"a": "!"}), said("y", a=0)], ["y"], {"below a": 1}),
    ("another failed", {"least": {"a": 0}}, [said("x", failures={"b": "died"}, a=0.0)], ["x"], {}),
    (
        "the first reason counts",
        {"least": {"a": 1, "b": 1}},
        [said("x", "length", a=0, b=0), said("y", a=0, b=0), said("z", a=1, b=0), said("é", a=1, b=1)],
        ["é"],
        {"cut off": 1, "below a": 1, "below b": 1},
    ),
    ("repeats", ALL, [said("Ja  так"), said(" ja\nТАК ")], ["Ja  так"], {"repeats": 1}),
    ("casefold", ALL, [said("STRASSE"), said("straße")], ["STRASSE"], {"repeats": 1}),
    ("a repeat of a bad one", {"least": {"a": 1}}, [said("x", a=0), said("x", a=1)], ["x"], {"below a": 1}),
]


@pytest.mark.parametrize(
    ("keep", "group", "texts", "dropped"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_rules(
    keep: dict[str, Any], group: Any, texts: list[str], dropped: dict[str, int], tmp_path: Path
) -> None:
    found, counts = chosen(tmp_path, [("2 + 2 = ?", group)], Keep(**keep))
    assert found == texts
    assert {reason: n for reason, n in counts["dropped"].items() if n} == dropped
    assert counts["completions"] == len(group) and counts["kept"] == len(texts)


def rated(*passed: int, of: int = 10) -> list[tuple[str, list[dict[str, Any]]]]:
    """A prompt for each number, so many of its completions right."""
    return [
        (f"p{i}", [said(f"{i}.{k}", a=float(k < right)) for k in range(of)]) for i, right in enumerate(passed)
    ]


@pytest.mark.parametrize(
    ("hardest", "easiest", "kept"),
    [
        (0.0, 1.0, [1, 3, 7, 10]),
        (0.3, 1.0, [7, 10]),
        (0.29, 0.7, [3, 7]),
        (0.0, 0.9, [1, 3, 7]),
        (0.9, 1, [10]),
    ],
)
def test_pass_rate_is_above_hardest_and_no_more_than_easiest(
    hardest: float, easiest: float, kept: list[int], tmp_path: Path
) -> None:
    passed = [0, 1, 3, 7, 10]
    keep = Keep(least={"a": 1.0}, hardest=hardest, easiest=easiest)
    _, counts = chosen(tmp_path, rated(*passed), keep)
    assert [round(row["pass_rate"] * 10) for row in lines(tmp_path / "rows.jsonl")] == kept
    assert counts["dropped"]["too hard"] == sum(n for n in passed if n / 10 <= hardest)
    assert counts["dropped"]["too easy"] == sum(n for n in passed if n / 10 > easiest)
    assert counts["pass_rates"]["prompts"] == [2, 1, 0, 1, 1]
    assert counts["parts"] == {"a": pytest.approx(sum(passed) / 50)}


def test_each_is_not_simply_the_first_and_hangs_on_the_seed(tmp_path: Path) -> None:
    texts, counts = chosen(tmp_path, rated(*[10] * 30), Keep(each=2))
    assert counts["dropped"]["more than each"] == 240 and len(texts) == 60
    places = [int(text.split(".")[1]) for text in texts]
    assert len(set(places)) == 10, "some places are never chosen"
    assert all(a < b for a, b in zip(places[::2], places[1::2], strict=True)), "order within a prompt"
    assert chosen(tmp_path, rated(*[10] * 30), Keep(each=2))[0] == texts
    assert chosen(tmp_path, rated(*[10] * 30), Keep(each=2), seed=1)[0] != texts


def test_a_prompt_that_is_there_twice_is_one_prompt(tmp_path: Path) -> None:
    """For repeats and `each`; its places may be far apart, and each has its own pass rate."""
    twice = [("p", [said("x"), said("y")]), *rated(1, 1, 1, of=1), ("p", [said("X "), said("z"), said("w")])]
    texts, counts = chosen(tmp_path, twice, Keep(each=99))
    assert texts == ["x", "y", "0.0", "1.0", "2.0", "z", "w"] and counts["dropped"]["repeats"] == 1
    texts, counts = chosen(tmp_path, twice, Keep(each=3))
    assert texts[:2] == ["x", "y"] and len(texts) == 6 and counts["dropped"]["more than each"] == 1
    others = [(f"p{i}", [said("x")]) for i in range(4)]
    assert chosen(tmp_path, others, Keep())[0] == ["x"] * 4  # another prompt's is no repeat


@pytest.mark.parametrize(
    ("sizes", "rows", "shares"),
    [
        ([3, 3, 3, 3, 3], 15, [3, 3, 3, 3, 3]),
        ([3, 3, 3, 3, 3], 10, [2, 2, 2, 2, 2]),
        ([1, 9, 0, 4, 9], 12, [1, 4, 0, 3, 4]),
        ([1, 9, 0, 4, 9], 3, [0, 1, 0, 1, 1]),
        ([0, 0, 7, 0, 0], 5, [0, 0, 5, 0, 0]),
        ([2, 2, 2, 2, 2], 99, [2, 2, 2, 2, 2]),
    ],
)
def test_rows_are_spread_evenly_over_the_fifths(
    sizes: list[int], rows: int, shares: list[int], tmp_path: Path
) -> None:
    passed = [right for right, size in zip([1, 3, 5, 7, 9], sizes, strict=True) for _ in range(size)]
    random.Random(0).shuffle(passed)
    groups = rated(*passed)
    texts, counts = chosen(tmp_path, groups, Keep(least={"a": 1.0}, rows=rows))
    assert counts["pass_rates"] == {"prompts": sizes, "kept": shares} and len(texts) == sum(shares)
    assert counts["dropped"]["more than rows"] == sum(sizes) - sum(shares)
    prompts = [int(row["prompt"][1:]) for row in lines(tmp_path / "rows.jsonl")]
    assert prompts == sorted(prompts)
    assert chosen(tmp_path, groups, Keep(least={"a": 1.0}, rows=rows))[0] == texts


def test_rows_are_not_simply_the_first_and_hang_on_the_seed(tmp_path: Path) -> None:
    kept = [chosen(tmp_path, rated(*[1] * 40, of=1), Keep(rows=10), seed)[0] for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    assert all(max(int(text.split(".")[0]) for text in texts) > 20 for texts in kept)


def test_counts_for_people_add_up_and_failures_are_named(tmp_path: Path) -> None:
    group = [said("x", a=1.0, b=0.5), said("y", failures={"b": "too long"}, a=0.0), said("z", a=None, b=None)]
    _, counts = chosen(tmp_path, [("p", group)], Keep(each=1))
    assert counts["parts"] == {"a": 0.5, "b": 0.5}
    assert counts["failures"] == {"b": {"completions": 1, "first": "too long"}}
    assert sum(counts["dropped"].values()) + counts["kept"] == counts["completions"] == 3
    json.dumps(counts, allow_nan=False)


GOOD = said("x", a=1.0)
DEAD = said("x", failures={"a": "it died"})
LONG = said("x", "length")
HALF = {"least": {"a": 0.5}}
NOTHING = [
    ([LONG, LONG, said("")], {}, "2 of them were cut off; raise sampling.max_tokens"),
    ([said(""), said(""), LONG], {}, "2 of them are empty"),
    ([said("x", a=0.2)] * 3, HALF, "3 of them have less than 0.5 of a; lower keep.least.a"),
    ([DEAD, DEAD, DEAD], HALF, "a failed on 3, first because: it died"),
    ([GOOD, GOOD, said("z", a=0.0)], HALF | {"hardest": 0.7}, "too hard; lower keep.hardest"),
    ([GOOD, GOOD], HALF | {"easiest": 0.9}, "too easy; raise keep.easiest"),
]


@pytest.mark.parametrize(("group", "keep", "told"), NOTHING)
def test_nothing_kept_says_why_and_what_to_change(group: Any, keep: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(
        PosttrainError, match=rf"nothing is kept of {len(group)} completions of 1 prompts: .*{told}"
    ):
        chosen(tmp_path, [("p", group)], Keep(**keep))
    assert not (tmp_path / "rows.jsonl").exists()


def twin(groups: Any, keep: Keep) -> tuple[list[list[tuple[int, int]]], list[float]]:
    """By the rules that hang on no chance: (place, completion) of what may be kept, for each prompt text, and
    the pass rate at each place. Quadratic, and all in memory."""
    good: dict[str, list[tuple[int, int]]] = {}
    rates: list[float] = []
    earlier: list[tuple[str, str]] = []
    for place, (prompt, completions) in enumerate(groups):
        passes = []
        for c in completions:
            fine = True
            for name, value in keep.least.items():
                if name in c["failures"]:
                    fine = False
                elif c["parts"][name] is not None:
                    fine = fine and c["parts"][name] >= value
            passes.append(fine)
        rates.append(sum(passes) / len(passes))
        for k, c in enumerate(completions):
            if not passes[k] or c["finish"] != "stop" or c["text"].split() == []:
                continue
            if not keep.hardest < rates[place] <= keep.easiest:
                continue
            same = (prompt, "".join(f"{word} " for word in c["text"].casefold().split()))
            if same not in earlier:
                good.setdefault(prompt, []).append((place, k))
            earlier.append(same)
    return list(good.values()), rates


def histogram(rates: Sequence[float]) -> list[int]:
    found = [0] * 5
    for rate in rates:
        found[max(i for i in range(5) if i / 5 <= rate)] += 1
    return found


@pytest.mark.parametrize("seed", range(40))
def test_selection_against_a_naive_twin(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    words = [
        "да",
        "Да ",
        "нет",
        "",
        " ",
        "四",
        "4",
        "x" * 50,
        "éclair",
        "ÉCLAIR",
        "a b",
        "a\u2028b",
        "a\r\nb",
    ]

    def one() -> dict[str, Any]:
        fails = {"a": "died"} if dice.random() < 0.1 else None
        parts = {"b": dice.choice([0.0, 0.5, 1.0])} | ({} if fails else {"a": dice.choice([None, 0, 1, 1])})
        return said(dice.choice(words), dice.choice(["stop", "stop", "stop", "length"]), fails, **parts)

    n = dice.randint(1, 9)
    groups = [(f"p{dice.randint(0, 40)}", [one() for _ in range(n)]) for _ in range(dice.randint(1, 60))]
    least = dice.choice([{}, {"a": 1.0}, {"a": 0.5, "b": 0.5}, {"b": 1.0}])
    low, high = sorted(dice.sample([0.0, 0.2, 0.4, 0.7, 1.0], 2))
    keep = Keep(least=least, each=dice.randint(1, 4), hardest=low, easiest=high)
    good, rates = twin(groups, keep)
    ready = sum(min(keep.each, len(some)) for some in good)
    keep = keep.model_copy(update={"rows": dice.choice([None, 1, max(1, ready // 2), 1000])})
    if not ready:
        with pytest.raises(PosttrainError, match="nothing is kept"):
            chosen(tmp_path, groups, keep)
        return
    _, counts = chosen(tmp_path, groups, keep)
    rows = lines(tmp_path / "rows.jsonl")
    assert len(rows) == counts["kept"] == (ready if keep.rows is None else min(ready, keep.rows))
    assert sum(counts["dropped"].values()) + len(rows) == counts["completions"] == n * len(groups)
    assert counts["dropped"]["more than rows"] == ready - len(rows)
    assert counts["dropped"]["more than each"] == sum(map(len, good)) - ready
    allowed = {(place, groups[place][1][k]["text"]) for some in good for place, k in some}
    assert all((row["place"], row["completion"]) in allowed for row in rows)
    assert all(row["prompt"] == groups[row["place"]][0] for row in rows)
    assert all(row["pass_rate"] == rates[row["place"]] for row in rows)
    assert [row["place"] for row in rows] == sorted(row["place"] for row in rows)
    assert max(Counter(row["prompt"] for row in rows).values()) <= keep.each
    took = histogram([row["pass_rate"] for row in rows])
    assert counts["pass_rates"] == {"prompts": histogram(rates), "kept": took}
    if keep.rows is not None:  # no fifth that still has some gives two rows less than another
        select(tmp_path, keep.model_copy(update={"rows": None}), 0, {"a": "a", "b": "b"})
        have = histogram([row["pass_rate"] for row in lines(tmp_path / "rows.jsonl")])
        assert all(t <= h and (t == h or max(took) - t <= 1) for t, h in zip(took, have, strict=True))


# --- the rows, as fine-tuning reads them


def test_rows_are_examples_for_fine_tuning_as_they_are(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "Сколько будет 2 + 2?"}]
    columns = {
        "question": "2 + 2",
        "a": "no reward",
        "completion": "not this",
        "pass_rate": 7,
        "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "not this either"}],
        "level": 3,
    }
    folder = written(tmp_path, [(asked, [said("四 ", a=1.0), said("нет", a=0.0)])], **columns)
    select(folder, Keep(least={"a": 1.0}), 0, {"a": "a"})
    [row] = lines(folder / "rows.jsonl")
    ours = {"prompt": asked, "completion": "四 ", "answer": "4", "pass_rate": 0.5, "scores": {"a": 1.0}}
    assert row == ours | {"a": "no reward", "level": 3, "question": "2 + 2", "place": 0}
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"question": "1 + 1 = ?", "answer": "2"}) + "\n")
    sources = {"train": {"source": str(folder / "rows.jsonl")}, "heldout": {"source": str(heldout)}}
    examples, _ = data.examples(Data.model_validate(sources), "{completion}")
    assert examples == [{"prompt": asked, "completion": [{"role": "assistant", "content": "四 "}]}]
    train, _ = data.load(Data.model_validate(sources))  # and as prompts, for more reinforcement learning
    assert train[0].content == asked and train[0].answer == "4" and train[0].columns["level"] == 3

    folder = written(tmp_path / "text", [("2 + 2 =", [said(" 4")])])
    select(folder, Keep(), 0, {})
    sources["train"]["source"] = str(folder / "rows.jsonl")
    examples, _ = data.examples(Data.model_validate(sources | {"chat": False}), "{completion}")
    assert examples == [{"prompt": "2 + 2 =", "completion": " 4"}]
