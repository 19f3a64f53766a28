"""Runs a recipe: one stage in the recipe's folder, or several, each in a folder of its own within it.

What is done already is left alone; what was begun goes on where it was (posttrain/plan.py says which).
"""

from __future__ import annotations

import errno
import gc
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from posttrain import data, places
from posttrain.evaluate.stages_page import write_stages_report
from posttrain.files import replace_text
from posttrain.kinds import Export, Sft
from posttrain.memory import settle
from posttrain.past import before, finished, held, result_of
from posttrain.plan import Planned, begin, finish, plan, resolved
from posttrain.recipe import Judged, Recipe, Stage
from posttrain.rewards import locate
from posttrain.runners import eval as eval_
from posttrain.runners import export, grpo, sample, sft
from posttrain.session import check_trackers
from posttrain.stages import Staged, dump, kind_of, references
from posttrain.stop import Stop, Stopped
from posttrain.types import PosttrainError

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RUNNERS: dict[str, Any] = {"sft": sft, "grpo": grpo, "sample": sample, "eval": eval_, "export": export}


def run(recipe: Recipe, resume: bool = False, profile: bool = False) -> Path:
    """Run a recipe of one stage in `recipe.output`, or go on with the run that is there; -> that folder.

    profile: see runners.grpo.run.

    Raises:
        PosttrainError: the folder holds another run, a model, a file or data that cannot be had.
        Stopped: Ctrl-C or SIGTERM; everything is saved and a resumed run goes on from there.
    """
    _quiet()
    folder = Path(recipe.output)
    if finished(recipe):
        log.warning("%s is finished already: nothing to do", folder)
        return folder
    past = before(folder, recipe, resume)
    with Stop() as stop, _room_to_write(folder, "--resume"):
        grpo.run(recipe, past, stop, profile)
    return folder


def run_stages(
    staged: Staged, start: str | None = None, until: str | None = None, profile: bool = False
) -> Path:
    """Run what has to run of a recipe's stages, one after the other; -> the folder that holds theirs.

    Args:
        start, until: as `plan` takes them. profile: the steps of the stages of kind grpo.

    Raises:
        PosttrainError, Stopped: as `run`; the same call goes on in the stage that was left.
    """
    _quiet()
    processes = PartialState(cpu=not torch.cuda.is_available())
    output = Path(staged.output)
    with Stop() as stop, _alone(processes, output):
        todo = plan(staged, start, until)
        for planned in todo:
            if planned.state != "done":
                _check(planned.stage)
        processes.wait_for_everyone()  # all have read the folders before one of them changes
        if processes.is_main_process:
            replace_text(output / "recipe.yaml", dump(staged))
        folders = {planned.stage.name: planned.folder for planned in todo}
        for place, planned in enumerate(todo, 1):
            if planned.state == "done":
                continue
            log.warning(
                "[%d/%d] %s (%s) in %s: %s",
                place, len(todo), planned.stage.name, kind_of(planned.stage), planned.folder, planned.why,
            )  # fmt: skip
            if processes.is_main_process:
                begin(planned)
            processes.wait_for_everyone()
            try:
                with _room_to_write(planned.folder, "again"):
                    _run(planned, folders, stop, profile)
            finally:
                if processes.is_main_process:
                    write_stages_report(output)
    return output


def _check(stage: Stage) -> None:
    """Refuse now what would else be found out when the stage's turn comes, perhaps hours from now.

    Raises:
        PosttrainError: a reward, a model or rows that cannot be had; those of earlier stages come later.
    """
    taken = {what for _, what, _ in references(stage)}
    check_trackers(getattr(stage, "trackers", ()))
    if isinstance(stage, (Judged, Export)) and "model" not in taken:
        places.resolve(stage.model.name)
    if isinstance(stage, Judged):
        for reward in stage.rewards:
            locate(reward.use, reward.args)
        if "rows" not in taken:
            logging.disable(logging.WARNING)  # what is dropped is told when the stage runs
            try:
                data.examples(stage.data, stage.completion) if isinstance(stage, Sft) else data.load(
                    stage.data
                )
            finally:
                logging.disable(logging.NOTSET)


def _run(planned: Planned, folders: dict[str, Path], stop: Stop, profile: bool) -> None:
    """Run one stage to its end."""
    kind = kind_of(planned.stage)
    more = {"profile": True} if profile and kind == "grpo" else {}
    RUNNERS[kind].run(resolved(planned.stage, folders), result_of(planned.folder), stop, **more)
    gc.collect()  # the model: the next stage loads its own
    processes = PartialState()
    processes.wait_for_everyone()
    if processes.is_main_process:
        finish(planned, RUNNERS[kind].OUTPUTS)
        shutil.rmtree(planned.folder / "checkpoints", ignore_errors=True)  # the model is there
    processes.wait_for_everyone()
    if stop.asked:
        raise Stopped(stop.signal)


def _quiet() -> None:
    settle()
    disable_progress_bar()  # transformers' bars for loading and saving would tear the display


@contextmanager
def _alone(processes: PartialState, folder: Path) -> Iterator[None]:
    """No other run in the folder, as long as this one's main process is there."""
    if not processes.is_main_process:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        yield


@contextmanager
def _room_to_write(folder: Path, how: str) -> Iterator[None]:
    """A full disk is the user's to put right."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise PosttrainError(
            f"{folder}: no room to write ({error.strerror}); checkpoints that were there are whole. "
            f"Make room and run the same command {how}"
        ) from error
