"""The stage `export`: a model as a plain Hugging Face folder, in the type that it will be served in."""

from __future__ import annotations

from typing import Any

import torch

from posttrain import models
from posttrain.kinds import Export
from posttrain.session import Session
from posttrain.stop import Stop

OUTPUTS = ("model", "result.json")


def run(stage: Export, past: dict[str, Any] | None, stop: Stop) -> None:
    """Write `model/` in `stage.output`; raises as `runners.grpo.run` does."""
    models.check(stage.model)
    with Session(stage, stage.model, {}, stop) as session:
        if session.main:
            model, tokenizer = models.of_recipe(stage.model)
            models.save(model.to(getattr(torch, stage.dtype)), tokenizer, session.folder / "model")
            session.result["dtype"] = stage.dtype
        session.write_result()
        session.accelerator.wait_for_everyone()
