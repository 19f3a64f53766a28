"""What runs in a reward's process: it imports reward functions, calls them, and answers its parent.

`posttrain.reward_process.Child` is the parent's side. A request is 8 bytes of length and a pickle, a
reply one line of JSON.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import io
import json
import math
import os
import pickle
import queue
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from posttrain.memory import capped, data_bytes
from posttrain.reward_process import Source
from posttrain.types import PosttrainError

_PRINTED = 2000  # characters of a call's output that are kept
_MESSAGE = 160  # characters of an error's message that are kept
_MEMORY = 4 * 2**30  # bytes that a call may take beyond what is held once the rewards are loaded


def serve() -> None:
    """The child's loop: answer requests from stdin until it closes. Replies are one line of JSON each."""
    # The pipes get private descriptors; what a reward prints, from C too, goes nowhere near them.
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)

    _end_with_parent(requests.fileno())
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    functions: dict[int, Callable[..., Any]] = {}
    held = [0]  # bytes of data with the rewards loaded; 0: not known
    while True:
        request = inbox.get()
        with _captured() as printed:
            reply = _answer(request, functions, held)
        replies.write(json.dumps({**reply, "printed": printed.tail}).encode() + b"\n")
        replies.flush()


def _answer(request: bytes, functions: dict[int, Callable[..., Any]], held: list[int]) -> dict[str, Any]:
    action = None
    try:
        action, body = pickle.loads(request)
        if action == "load":
            index, source = body
            functions[index] = _load(source, index)
            held[0] = data_bytes() or 0
            return {}
        index, count, columns = body
        with capped(held[0] + _MEMORY if held[0] else None):
            return {"values": _call(functions[index], columns, count)}
    except PosttrainError as error:
        return {"fix" if action == "load" else "error": str(error)}
    except BaseException as error:  # SystemExit and KeyboardInterrupt of a reward are its failures too
        return {"error": _describe(error)}


def _end_with_parent(requests: int) -> None:
    """A process that waits for the pipe's other end to close, and then ends all. The thread that reads the
    pipe could not, where a reward holds the interpreter's lock: a regular expression that never ends."""
    if not hasattr(os, "fork") or os.fork():
        return
    os.dup2(requests, 0)
    os.closerange(1, 64)  # the end of the replies must be seen where the child alone dies
    pipe = select.poll()
    pipe.register(0, 0)  # what can be read is not ours
    pipe.poll()
    os.killpg(0, signal.SIGKILL)  # the group is this child's own: what a reward started ends too


def _receive(requests: io.BufferedReader, inbox: queue.SimpleQueue[bytes]) -> None:
    """Read requests in a thread of its own: the child ends with its parent, even in a reward that hangs."""
    while header := requests.read(8):
        inbox.put(requests.read(struct.unpack("!Q", header)[0]))
    os._exit(0)


class _Tail(io.TextIOBase):
    """A text stream that remembers its end."""

    def __init__(self) -> None:
        self.tail = ""

    def write(self, text: str, /) -> int:
        self.tail = (self.tail + text[-_PRINTED:])[-_PRINTED:]
        return len(text)


@contextlib.contextmanager
def _captured():
    tail = _Tail()
    with contextlib.redirect_stdout(tail), contextlib.redirect_stderr(tail):
        yield tail


def _load(source: Source, index: int) -> Callable[..., Any]:
    """Import a reward and bind its arguments. PosttrainError says what to put right."""
    try:
        module = (
            _file(source.place, index) if source.kind == "file" else importlib.import_module(source.place)
        )
    except PosttrainError:
        raise  # it says itself what to put right
    except BaseException as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = " Rewards import installed packages only; keep a user's reward in one file."
        raise PosttrainError(
            f"The reward {source.use!r} fails when it is imported: {_describe(error)}.{hint}"
        ) from None
    function = _function(module, source)
    return _bind(function, source)


def _file(place: str, index: int) -> ModuleType:
    name = f"posttrain_reward_{index}_{Path(place).stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, source: Source) -> Callable[..., Any]:
    name = source.function
    public = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    if name is None:
        stem = Path(source.place).stem
        name = stem if stem in public or len(public) != 1 else public[0]
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if callable(function):
        return function
    problem = (
        f"has no function {name!r}" if source.function else f"has no function named like the file, {name!r}"
    )
    there = (
        f"It has: {', '.join(public)}; name one as {source.place}:{public[0]}" if public else "It has none"
    )
    raise PosttrainError(f"The reward {source.use!r} cannot be used: {source.place} {problem}. {there}.")


def _bind(function: Callable[..., Any], source: Source) -> Callable[..., Any]:
    """Check the recipe's arguments against the signature, then give them to every call."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins and some C functions have none
        return lambda **columns: function(**{**columns, **source.args})
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    choices = _choices(function)
    for key, value in source.args.items():
        # **columns would swallow a misspelt argument without a word.
        if key not in named or key == "completions":
            raise PosttrainError(_unknown(f"The reward {source.use!r} has no argument", key, named))
        if key in choices and value not in choices[key]:
            raise PosttrainError(_unknown(f"The reward {source.use!r} takes no {key}", value, choices[key]))
    # TRL offers these two; what they would log has no place here.
    extra = {key: lambda *_, **__: None for key in ("log_extra", "log_metric")}

    def call(**columns: Any) -> Any:
        given = {**extra, **columns, **source.args}
        return function(**(given if open_ended else {key: given[key] for key in named if key in given}))

    return call


def _choices(function: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """For each parameter annotated as a Literal, the values that it may have."""
    try:
        hints = get_type_hints(function)
    except Exception:  # an annotation may name what is not there at run time
        return {}
    return {key: get_args(hint) for key, hint in hints.items() if get_origin(hint) is Literal}


def _unknown(start: str, given: Any, known: list[str] | tuple[Any, ...]) -> str:
    options = [str(name) for name in known if name != "completions"]
    near = difflib.get_close_matches(str(given), options, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{start} {given!r}.{hint} It takes: {', '.join(options) or 'none'}."


def _call(function: Callable[..., Any], columns: dict[str, Any], count: int) -> list[float | str | None]:
    values = function(**columns)
    if inspect.isawaitable(values):
        import asyncio

        async def wait(awaitable: Any) -> Any:
            return await awaitable

        values = asyncio.run(wait(values))
    if hasattr(values, "tolist"):  # a tensor or an array
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise PosttrainError(f"returned a {type(values).__name__}, not a list")
    if len(values) != count:
        raise PosttrainError(f"returned {len(values)} values for {count} completions")
    return [_value(value) for value in values]


def _value(value: Any) -> float | str | None:
    """A value as a float; a reason where it is none."""
    if value is None:
        return None
    try:
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None:
        return f"returned a {type(value).__name__}, not a number"
    return number if math.isfinite(number) else f"returned {number}"


def _describe(error: BaseException) -> str:
    """One line: what was raised, and the last line outside installed code that led there."""
    installed = ("<frozen", __file__, os.path.dirname(os.__file__), sys.prefix)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(installed)]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    try:
        message = " ".join(str(error).split())[:_MESSAGE]
    except Exception:
        message = ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"
