"""The command line. Imports nothing heavy: each command imports what it needs, so `--help` answers at once.

Exit status: 0 done; 1 `reward check` or `reward audit` found something to look at; 2 something the user can
put right (one message, no traceback); 128 + the signal when stopped (130 Ctrl-C, 143 SIGTERM).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from posttrain import __version__, content, eval_command
from posttrain.files import is_there
from posttrain.stop import Stopped
from posttrain.types import PosttrainError
from posttrain.words import did_you_mean

if TYPE_CHECKING:
    from posttrain.stages import Staged

EPILOG = """\
posttrain ls                                        what ships
posttrain cp recipes/r1_zero/smollm2 mine.yaml      take a recipe (or a reward) to edit
posttrain run mine.yaml train.steps=5 --dry-run     what would run
posttrain run mine.yaml                             run it
posttrain reward check ./my_reward.py --data rows.jsonl   what a reward does on real rows
posttrain reward audit rows.jsonl --reward accuracy       where it is wrong, and what fools it
posttrain eval gsm8k --model runs/demo/model        how good a model is, and how sure that number is
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.command in (
        "run",
        "eval",
    ):  # overrides may stand on both sides of options; argparse takes one side
        args.overrides += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING if _speaks() else logging.ERROR)
    try:
        status = args.act(args)
        sys.stdout.flush()
        return status or 0
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("stopped, and saved; the same command with --resume goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `posttrain ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _speaks() -> bool:
    """Of the processes that `accelerate launch` starts, one talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="posttrain",
        description="Teach a language model to reason, by reinforcement learning.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"posttrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    ls = commands.add_parser("ls", help="list the recipes, rewards and evaluation tasks that ship")
    ls.set_defaults(act=_ls)

    cp = commands.add_parser("cp", help="copy a recipe or a reward, to edit")
    cp.add_argument("name", help="as `posttrain ls` prints it, such as reward/accuracy")
    cp.add_argument("dest", type=Path, help="a new file, or a folder to put it in; nothing is overwritten")
    cp.set_defaults(act=_cp)

    run = commands.add_parser("run", help="run a recipe")
    run.add_argument("recipe", help="a file, or a name such as r1_zero/smollm2")
    run.add_argument("overrides", nargs="*", metavar="key.sub=value", help="such as train.steps=5 seed=1")
    run.add_argument(
        "--dry-run", action="store_true", help="print what would run and what it needs, then stop"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run's folder"
    )
    run.add_argument(
        "--profile", action="store_true", help="time each phase of the steps; writes profile.txt, trace.json"
    )
    run.add_argument(
        "--from", dest="start", metavar="stage", help="run this stage and all after it again, done or not"
    )
    run.add_argument("--until", metavar="stage", help="the last stage to run")
    run.set_defaults(act=_run)

    eval_command.add_to(commands)

    status = commands.add_parser("status", help="say what a run's or an evaluation's folder holds")
    status.add_argument("folder", type=Path, help="the run's folder")
    status.set_defaults(act=_status)

    report = commands.add_parser("report", help="write the report.html of a run or an evaluation again")
    report.add_argument("folder", type=Path, help="the run's folder")
    report.set_defaults(act=_report)

    reward = commands.add_parser("reward", help="try a reward on rows, before a run trains on it")
    _reward_parsers(reward.add_subparsers(dest="what", required=True, metavar="what"))

    doctor = commands.add_parser("doctor", help="say what this machine has and what is missing")
    doctor.set_defaults(act=_doctor)
    return parser


def _reward_parsers(commands: Any) -> None:
    check = commands.add_parser("check", help="run a reward on rows: range, failures, speed, gold answers")
    check.add_argument(
        "reward", help="as in a recipe: a name, ./my_reward.py:function or package.module:function"
    )
    rows = "rows with a completion (or prediction), an answer, or both; a run's samples.jsonl serves"
    check.add_argument("--data", type=Path, required=True, metavar="rows.jsonl", help=rows)
    check.set_defaults(act=_reward_check)
    audit = commands.add_parser("audit", help="hold a reward against labelled rows, and try to fool it")
    audit.add_argument(
        "data", type=Path, metavar="rows.jsonl", help="rows with prediction, answer and correct"
    )
    audit.add_argument("--reward", default="accuracy", help="as in a recipe (default: accuracy)")
    audit.set_defaults(act=_reward_audit)
    for parser in (check, audit):
        given = parser.add_argument
        given("--arg", action="append", default=[], metavar="key=value", help="such as form=boxed")
        given("--deadline", type=float, default=10.0, metavar="s", help="seconds a call (default 10)")
        given("--json", action="store_true", help="print everything as JSON")


def _ls(args: argparse.Namespace) -> None:
    for kind in get_args(content.Kind):
        shipped = content.listing(kind)
        if not shipped:
            continue
        print(f"{kind}:")
        width = max(len(name) for name, _, _ in shipped)
        for name, _, summary in shipped:
            print(f"  {name:{width}}  {summary}".rstrip())


def _cp(args: argparse.Namespace) -> None:
    kind_and_name = content.split(args.name)
    source = content.find(*kind_and_name) if kind_and_name else None
    if source is None:
        names = [f"{kind}/{name}" for kind in get_args(content.Kind) for name, _, _ in content.listing(kind)]
        within = [name for name in names if args.name in name]
        near = did_you_mean(args.name, names, most=3) or did_you_mean(args.name, within, most=3, cutoff=0)
        hint = near or "`posttrain ls` lists what ships"
        raise PosttrainError(f"nothing named {args.name!r} ships; {hint}")
    dest: Path = args.dest / source.name if args.dest.is_dir() else args.dest
    try:
        with dest.open("xb") as file:  # x: never over something that is there
            file.write(source.read_bytes())
    except FileExistsError:
        raise PosttrainError(f"{dest} exists and is left as it is; choose another name") from None
    except OSError as error:
        raise PosttrainError(f"cannot write {dest}: {error.strerror}") from None
    print(dest)


def _run(args: argparse.Namespace) -> int:
    from posttrain.recipe import Recipe
    from posttrain.stages import load_stages

    staged = load_stages(args.recipe, args.overrides)  # refused before anything heavy is imported
    recipe = staged.single
    if not isinstance(recipe, Recipe):
        return _run_stages(args, staged)
    if args.start or args.until:
        raise PosttrainError("--from and --until name stages, and the recipe is a single one")
    if args.dry_run:
        from posttrain.estimate import dry_run

        print(dry_run(recipe))
    else:
        from posttrain.evaluate.summary import summary
        from posttrain.past import finished
        from posttrain.profile import TABLE

        folder = Path(recipe.output)
        if finished(recipe):
            logging.warning("%s is finished already: nothing to do", folder)
        else:
            from posttrain.pipeline import run

            folder = run(recipe, resume=args.resume, profile=args.profile)
        if _speaks():
            print(summary(folder))
            if args.profile and (folder / TABLE).is_file():
                print("", (folder / TABLE).read_text(), sep="\n", end="")
    return 0


def _run_stages(args: argparse.Namespace, staged: Staged) -> int:
    from posttrain.plan import plan

    planned = plan(staged, args.start, args.until)
    if args.dry_run:
        from posttrain.estimate import dry_run_stages

        print(dry_run_stages(staged, planned))
        return 0
    if all(one.state == "done" for one in planned):
        logging.warning("%s: every stage is done already: nothing to do", staged.output)
    else:
        from posttrain.pipeline import run_stages

        try:
            run_stages(staged, args.start, args.until, args.profile)
        except Stopped as stopped:
            again = "the same command without --from" if args.start else "the same command"
            print(f"stopped, and saved; {again} goes on from there", file=sys.stderr)
            return 128 + stopped.signal
    if _speaks():
        from posttrain.evaluate.stages_table import stages_table

        print(stages_table(Path(staged.output)))
        print(f"report    {Path(staged.output) / 'report.html'}")
    return 0


def _status(args: argparse.Namespace) -> None:
    is_there(args.folder)
    if (args.folder / "eval.json").is_file():
        from posttrain.harness.show import table

        print(table(args.folder))
    elif _holds_stages(args.folder):
        from posttrain.evaluate.stages_table import stages_table

        print(stages_table(args.folder))
    else:
        from posttrain.evaluate.summary import summary

        print(summary(args.folder))


def _report(args: argparse.Namespace) -> None:
    is_there(args.folder)
    if (args.folder / "eval.json").is_file():
        from posttrain.harness.page import write_page

        print(write_page(args.folder))
    elif _holds_stages(args.folder):
        from posttrain.evaluate.stages_page import write_stages_report

        print(write_stages_report(args.folder))
    else:
        from posttrain.evaluate.report import write_report

        print(write_report(args.folder))


def _holds_stages(folder: Path) -> bool:
    from posttrain.stages import load_stages

    recipe = folder / "recipe.yaml"
    return recipe.is_file() and load_stages(str(recipe)).single is None


def _reward_check(args: argparse.Namespace) -> int:
    from posttrain.audit.check import check

    return _tried(check, args)


def _reward_audit(args: argparse.Namespace) -> int:
    from posttrain.audit.labels import audit

    return _tried(audit, args)


def _tried(how: Callable[..., Any], args: argparse.Namespace) -> int:
    """Print a check or an audit of a reward; the exit status."""
    from posttrain.audit.rows import read

    if not 0 < args.deadline <= 86_400:
        raise PosttrainError(f"--deadline is {args.deadline:g}: choose seconds above 0, a day at most")
    found = how(args.reward, _reward_args(args.arg), read(args.data), args.deadline)
    print(json.dumps(found.as_json(), indent=2) if args.json else found)
    return 1 if found.wrong else 0


def _reward_args(texts: list[str]) -> dict[str, Any]:
    """key=value texts; a value that is JSON (2, 0.5, true) counts as that, any other as text."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise PosttrainError(f"--arg {text!r}: expected key=value, such as form=boxed")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _doctor(args: argparse.Namespace) -> None:
    from posttrain.doctor import checks

    found = checks()
    for name, text, _ in found:
        print(f"{name:14} {text}")
    if wrong := [name for name, _, fine in found if not fine]:
        raise PosttrainError(f"look at: {', '.join(wrong)}")


if __name__ == "__main__":
    raise SystemExit(main())
