"""The stage `eval`: a model's accuracy on held-out rows."""

from __future__ import annotations

from typing import Any

from posttrain import data, models
from posttrain.evaluate.report import write_report
from posttrain.kinds import Eval
from posttrain.past import rewind
from posttrain.session import HeldOut, Session, answerer_of
from posttrain.stop import Stop

OUTPUTS = ("result.json",)


def run(stage: Eval, past: dict[str, Any] | None, stop: Stop) -> None:
    """Evaluate, from the start; raises as `runners.grpo.run` does."""
    _, heldout = data.load(stage.data)
    models.check(stage.model)
    with Session(stage, stage.model, {}, stop) as session:
        session.show(0)
        if session.main:
            rewind(session.folder, {})
        evaluator = HeldOut(session, stage, heldout)
        answerer = answerer_of(session, stage.model)
        session.result["after"] = evaluator(answerer, 0, "after")
        session.write_result()
        if session.main:
            write_report(session.folder)
