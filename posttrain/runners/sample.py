"""The stage `sample`: rejection sampling, whose good completions become rows.

Its folder: recipe.yaml (resolved), drawn/ (every completion with its scores, in shards), rows.jsonl (those
that were kept, as supervised fine-tuning reads them), result.json.
"""

from __future__ import annotations

from typing import Any

from posttrain import data, models
from posttrain.kinds import Sample
from posttrain.past import with_inputs
from posttrain.rejection import draw, select
from posttrain.rewards import Rewards
from posttrain.session import Session, answering
from posttrain.stop import Stop

OUTPUTS = ("rows.jsonl", "result.json")


def run(stage: Sample, past: dict[str, Any] | None, stop: Stop) -> None:
    """Sample in `stage.output`, after the shards that are there; raises as `runners.grpo.run` does."""
    prompts, heldout = data.load(stage.data)
    past = with_inputs(stage.output, past, prompts, heldout, stage.rewards)
    models.check(stage.model)
    with (
        Rewards(stage.rewards, stage.reward_deadline, stage.reward_workers) as rewards,
        Session(stage, stage.model, past, stop) as session,
    ):
        session.show(0)
        session.write_result()  # what was read, before the first shard hangs on it
        accelerator = session.accelerator
        engine, encode, _ = answering(session, stage.model)
        draw(
            engine,
            prompts,
            encode,
            stage.sampling,
            rewards,
            session.folder,
            seed=stage.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            watch=session.watch,
        )
        accelerator.wait_for_everyone()
        if session.main:
            names = dict(zip((reward.use for reward in stage.rewards), rewards.names, strict=True))
            session.result["sampled"] = select(session.folder, stage.keep, stage.seed, names)
        session.write_result()
