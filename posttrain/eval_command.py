"""`posttrain eval`: measure a model on tasks, judge its answers again, compare two. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from posttrain.files import is_there
from posttrain.stop import Stopped
from posttrain.types import PosttrainError


def add_to(commands: Any) -> None:
    """Add the command to the parser of `posttrain`."""
    parser = commands.add_parser("eval", help="measure a model on tasks, or compare two that were measured")
    given = parser.add_argument
    words = "such as gsm8k, ./mine.yaml, sampling.samples=8; or: compare FOLDER FOLDER"
    given("overrides", nargs="*", metavar="task | key.sub=value", help=words)
    given("--model", help="a name, a local folder, a Hub id; with --engine openai the server's name for it")
    given(
        "--engine",
        choices=("native", "vllm", "openai"),
        default="native",
        help="what answers (default: native)",
    )
    given(
        "--base-url", metavar="URL", help="of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1"
    )
    given(
        "--concurrency", type=int, default=16, metavar="n", help="requests to a server at a time (default 16)"
    )
    given("--data", metavar="rows.jsonl", help="questions in place of the task's own, with the same columns")
    given("--limit", type=int, metavar="n", help="the first n questions only")
    given("--seed", type=int, default=0, metavar="n", help="what sampled answers are drawn from (default 0)")
    given("--output", type=Path, metavar="folder", help="where results go; again with the same goes on there")
    words = "ask tasks with pictures also with blank ones and with others' ones: does the model look?"
    given("--blind", action="store_true", help=words)
    given("--workers", type=int, default=1, metavar="n", help="processes that judge answers (default 1)")
    given("--rescore", type=Path, metavar="folder", help="judge the answers of an evaluation again")
    parser.set_defaults(act=_act)


def _act(args: argparse.Namespace) -> int:
    from posttrain.harness.compare_page import comparison_table
    from posttrain.harness.show import table

    words = [word for word in args.overrides if "=" not in word or word.endswith(".yaml")]
    overrides = [word for word in args.overrides if word not in words]
    if args.rescore is not None:
        from posttrain.measure import rescore

        if words:
            raise PosttrainError(f"--rescore judges all tasks of {args.rescore}; leave out {' '.join(words)}")
        is_there(args.rescore)
        print(table(rescore(args.rescore, overrides, args.workers)))
        return 0
    if words[:1] == ["compare"]:
        from posttrain.measure import compare

        if len(words) != 3 or overrides:
            raise PosttrainError("compare takes two folders: posttrain eval compare FOLDER FOLDER")
        a, b = map(Path, words[1:])
        for folder in (a, b):
            is_there(folder)
        out = args.output or b / f"against-{a.name}.html"
        print(comparison_table(a, b, compare(a, b, out)))
        print(f"report    {out}")
        return 0
    if not words:
        raise PosttrainError("name a task, such as gsm8k; `posttrain ls` lists those that ship")
    if not args.model:
        raise PosttrainError("--model is missing: a name, a local folder or a Hub id")
    from posttrain.harness.task import load_task

    tasks = [load_task(word, overrides) for word in words]  # refused before anything heavy is imported
    from posttrain.harness.engines import opener
    from posttrain.measure import Asked, evaluate

    opened = opener(args.engine, args.model, args.base_url, args.concurrency)
    folder = args.output or Path("runs") / f"eval-{Path(args.model.rstrip('/')).name}"
    given = args.seed, args.data, args.limit, args.workers, args.blind
    asked = Asked(tasks, args.model, args.engine, opened, *given)
    try:
        evaluate(asked, folder)
    except Stopped as stopped:
        print("stopped, and every answer kept; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    print(table(folder))
    print(f"report    {folder / 'report.html'}")
    return 0
