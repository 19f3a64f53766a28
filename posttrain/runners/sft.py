"""The stage `sft`: evaluate, learn from examples, evaluate again.

Its folder is as that of `grpo` (runners/grpo.py), with examples.txt: what the model saw of the first few.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from posttrain import data, models
from posttrain.evaluate.report import write_report
from posttrain.files import replace_text
from posttrain.harness.native import NativeAnswerer, engine_for
from posttrain.kinds import Sft
from posttrain.multimodal import body
from posttrain.past import forget_updates, lengths, rewind, with_inputs
from posttrain.session import HeldOut, Session, answerer_of, check_trackers
from posttrain.stop import Stop, Stopped
from posttrain.train.logprobs import Policy
from posttrain.train.sft import found, newest, sft
from posttrain.train.sft_data import GREEN, MARKS, Example, shown

OUTPUTS = ("model", "result.json")
SHOWN = 3  # examples in examples.txt
EXAMPLES = "examples.txt"


def run(stage: Sft, past: dict[str, Any] | None, stop: Stop) -> None:
    """Train in `stage.output`, or go on with what is there; raises as `runners.grpo.run` does."""
    check_trackers(stage.trackers)
    rows, heldout = data.examples(stage.data, stage.completion)
    past = with_inputs(stage.output, past, rows, heldout, stage.rewards)
    models.check(stage.model)
    with Session(stage, stage.model, past, stop) as session:
        session.show(0)
        try:
            _go(stage, session, rows, HeldOut(session, stage, heldout))
        finally:
            session.write_result()
            if session.main:
                write_report(session.folder)


def _go(stage: Sft, session: Session, rows: list[Example], heldout: HeldOut) -> None:
    result, folder = session.result, session.folder
    result |= {"examples": len(rows), "epochs": stage.train.epochs}
    if "records" not in result:
        if session.main:
            rewind(folder, {})
        if stage.evaluate.before:
            answerer = answerer_of(session, stage.model)
            result["before"] = heldout(answerer, 0, "before")
            del answerer  # and its model, before the next is loaded
        result["records"] = lengths(folder)
        session.write_result()
    session.watch("loading the model")
    checkpoints = folder / "checkpoints"
    saved = newest(checkpoints)
    if session.main:
        forget_updates(folder, result["records"], _step(saved) if saved else 0)
    model, tokenizer = models.of_recipe(stage.model)
    if session.accelerator.device.type == "cpu":  # torch's fused attention took 2.5 times as long there
        body(model).set_attn_implementation("eager")
    _show(stage, rows, tokenizer, models.reader(model, tokenizer), session)
    last = time.perf_counter()

    def on_log(update: int, updates: int, metrics: dict[str, float]) -> None:
        nonlocal last
        now = time.perf_counter()
        if session.display is not None:
            session.display.total_steps = updates
        session.record({"step": update, **metrics, "seconds": now - last})
        result["steps"], last = update, now

    session.watch("preparing the examples")
    model = sft(
        rows,
        model,
        tokenizer,
        stage.train,
        checkpoints,
        seed=stage.seed,
        compute=session.dtype,
        stop=session.stop,
        on_log=on_log,
    )
    if session.stop.asked:
        raise Stopped(session.stop.signal)
    policy = Policy(model.to(session.accelerator.device))
    result["steps"] = _step(found(checkpoints)[-1])
    engine, encode = engine_for(policy, tokenizer, session.dtype), models.encoder(model, tokenizer)
    answerer = NativeAnswerer(engine, encode, model=model)
    after = heldout(answerer, result["steps"], "after")
    if session.main:
        session.watch("saving")
        models.save(model, tokenizer, folder / "model")
    result["after"] = after


def _step(saved: Path) -> int:
    return int(saved.name.removeprefix("step-"))


def _show(stage: Sft, rows: list[Example], tokenizer: Any, eyes: Any, session: Session) -> None:
    """In the terminal and in a file: what the model sees, and which of it carries loss."""
    # By TRL's trainer, so every process takes part. No text has control characters of its own in it.
    green = [shown(row, tokenizer, stage.train, GREEN, eyes) for row in rows[:SHOWN]]
    if session.display is None:
        return
    texts = [text.replace(GREEN[0], MARKS[0]).replace(GREEN[1], MARKS[1]) for text in green]
    first, where = (texts[0], "in «…»") if session.display.plain else (green[0], "green")
    session.display.note(f"an example as the model sees it; what carries loss is {where}:\n{first}")
    replace_text(session.folder / EXAMPLES, "\n\n---\n\n".join(texts) + "\n")
