"""Rows of a file as prompts and completions for a reward, and its values for them; words for the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.rewards import Rewards, RewardSpec
from posttrain.sources import jsonl
from posttrain.types import Completion, PosttrainError, Prompt
from posttrain.verify import gold_of
from posttrain.words import did_you_mean

Row = dict[str, Any]
Value = float | str | None  # a reward's value; text says why there is none, None that the rule does not apply

GIVEN_UP = "not scored, for failures took too long"  # how such a value begins
BATCH = 64  # completions a call: about what a step hands over, and what the deadline is for
TRIED = 16  # gold answers tried in every form, where none is asked for
PATIENCE = 12  # deadlines that failing calls may cost in all
EXAMPLES = 3  # shown on the terminal of each thing
_SHOWN = 60  # characters of a text on the terminal
_KEPT = 500  # characters of a text in JSON
# How an answer is written in each form of posttrain.verify, the barest one first; the last one is R1's.
LAYOUTS = {
    "last_number": "{}",
    "the_answer_is": "The answer is: {}",
    "boxed": r"\boxed{{{}}}",
    "answer_tag": "<answer>{}</answer>",
    "hashes": "#### {}",
    "any": r"\boxed{{{}}}",
    "r1": "<think>Let me see.</think>\n<answer>{}</answer>",
}


def read(path: Path) -> list[Row]:
    """The rows of a JSONL file. PosttrainError names the file that is missing or the line that is wrong."""
    if not path.is_file():
        raise PosttrainError(f"There is no file {path}.")
    try:
        rows = list(jsonl(path, "rows"))
    except OSError as error:
        raise PosttrainError(f"{path} cannot be read: {error.strerror}.") from None
    if not rows:
        raise PosttrainError(f"{path} holds no rows.")
    return rows


def column(row: Row, number: int, name: str) -> Any:
    """A column that has to be there, not null."""
    if row.get(name) is not None:
        return row[name]
    near = "" if name in row else did_you_mean(name, row, "Did you mean")
    hint = near or f"It has: {', '.join(row) or 'none'}."
    raise PosttrainError(f"Row {number} has no {name!r}. {hint}")


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def prompt_of(row: Row, number: int) -> Prompt:
    """A row as a run would hand it to the reward; a row without a prompt or a question has an empty one."""
    content = row.get("prompt", row.get("question"))
    if not isinstance(content, list):
        content = "" if content is None else as_text(content)
    elif not all(isinstance(message, dict) and "role" in message for message in content):
        raise PosttrainError(f"Row {number}: a prompt is text, or messages with a role and a content.")
    answer = row.get("answer")
    hidden = ("prompt", "answer", "prompts", "completions", "completion_ids")
    columns = {key: value for key, value in row.items() if key not in hidden}
    return Prompt(str(number), content, None if answer is None else as_text(answer), columns)


def written(answer: str, form: str) -> str:
    """An answer as a completion in a form; as it is where the form is not known here."""
    return LAYOUTS.get(form, "{}").format(answer)


class Item(NamedTuple):
    """A completion to score, after its prompt. what: it is, such as the form of a gold answer."""

    prompt: Prompt
    text: str
    what: str


class Reward:
    """One reward with its arguments, in its killable process. A context manager; `name` is for people."""

    def __init__(self, use: str, args: Mapping[str, Any], deadline: float) -> None:
        self._rewards = Rewards([RewardSpec(use, 1.0, args)], deadline)
        self._patience, self._reason = PATIENCE * deadline, ""
        self.speed: tuple[int, float] = 0, 0.0  # (rows, seconds) of the calls without a failure; may be reset
        self.name = self._rewards.names[0]

    def __enter__(self) -> Reward:
        return self

    def __exit__(self, *_: object) -> None:
        self._rewards.close()

    def values(self, items: Sequence[Item], batch: int = BATCH, chat: bool = False) -> list[Value]:
        """The value of each item, `batch` of them a call; as messages where `chat` says so.

        Calls that fail cost time, up to a deadline a row: after `PATIENCE` deadlines the rest is not scored.
        """
        found: list[Value] = []
        for at in range(0, len(items), batch):
            part = items[at : at + batch]
            if self._patience < 0:
                found += [f"{GIVEN_UP}: {self._reason}"] * len(part)
                continue
            start = time.perf_counter()
            prompts = [_as_chat(item.prompt) if chat else item.prompt for item in part]
            scores = self._rewards.score(prompts, [_completion(item.text) for item in part])
            seconds = time.perf_counter() - start
            if failures := [reason for score in scores for reason in score.failures.values()]:
                self._patience, self._reason = self._patience - seconds, failures[0]
            else:
                self.speed = self.speed[0] + len(part), self.speed[1] + seconds
            found += [score.failures.get(self.name, score.total) for score in scores]
        return found


def form_of(reward: Reward, golds: Sequence[Item], args: Mapping[str, Any], chat: bool = False) -> str:
    """The form that a reward's arguments ask for; else the one in which the first gold answers get most, the
    barer one of equals."""
    if "form" in args:
        return str(args["form"])
    pays = {}
    for form in LAYOUTS:
        tried = [gold._replace(text=written(gold_of(gold.text), form)) for gold in golds[:TRIED]]
        pays[form] = sum(value for value in reward.values(tried, chat=chat) if isinstance(value, float))
    return max(pays, key=lambda form: pays[form])


def _as_chat(prompt: Prompt) -> Prompt:
    if isinstance(prompt.content, list):
        return prompt
    return replace(prompt, content=[{"role": "user", "content": prompt.content}])


def _completion(text: str) -> Completion:
    # No tokenizer is at hand: a byte stands for a token where a reward counts them.
    tokens = list(text.encode("utf-8", "replace"))
    return Completion(tokens, [0.0] * len(tokens), "stop", text)


# -- words


def show(text: str, limit: int = _SHOWN) -> str:
    """A text that a model wrote, safe for a terminal: quoted, escaped and cut."""
    left = len(text) - limit
    return repr(text[:limit]) + (f" … and {left:,} more" if left > 0 else "")


def keep(text: str) -> str:
    return text[:_KEPT]


def plain(reason: str) -> str:
    """A reason may quote what a model wrote: nothing in it may steer the terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in reason)


def say(value: Value) -> str:
    """A value as people read it."""
    if isinstance(value, str):
        return plain(value)
    return "None" if value is None else f"{value:.4g}"


def some(count: int, noun: str) -> str:
    """1 row, 3 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(lines: Sequence[tuple[str, str]]) -> str:
    """Lines of a name and what there is to say; a line without a name goes on with the one before."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in lines)
