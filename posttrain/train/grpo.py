"""Group relative policy optimisation, in the order of the paper (arXiv 2402.03300, algorithm 1).

    a step:  draw prompts -> G completions each -> rewards, as groups end -> advantages within the group
             -> drop what carries no signal -> packed micro-batches
             -> loss, backward, update -> engine takes weights

One process or many: prompts are drawn from one global order and dealt to the processes, every completion's
randomness hangs on (seed, step, prompt) alone, and the loss's denominators are global, so the number of
processes changes nothing but rounding.

With `train.ahead` the batch of step k + 1 is drawn while step k learns, by the weights w_k that step k begins
with, and learnt from at w_{k+1}: one step off-policy. What corrects for it is the decoupled objective (Hilton
et al., arXiv 2110.00641; AReaL, arXiv 2505.24298), with its weight truncated:

    min(p_old / p_sampled, cap) * min(r A, clip(r) A),    r = p / p_old

p_sampled: the probability that the engine drew the token with, so under w_k and in the engine's precision.
p_old: under w_{k+1}, before the first of the `train.inner` passes, where r = 1. So the clip keeps the policy
close to the weights that the update starts from, not to those that sampled (the same, without `ahead`).

No weight moves before the next batch is complete. So the engine may share the policy's weights; and whatever
stops a step leaves the weights and the batch of the step before, which is what a checkpoint holds. The price:
only the first of several passes overlaps with generation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.memory import Keeper
from posttrain.profile import span
from posttrain.recipe import Recipe
from posttrain.rewards import Rewards
from posttrain.rollout.engine import Engine
from posttrain.train.background import Ahead, Watch
from posttrain.train.collect import Collector, Drawn
from posttrain.train.loss import clip_bounds, importance_weights, policy_loss, token_weights
from posttrain.train.metrics import gather, step_metrics
from posttrain.train.packing import PackedBatch, TrainGroup, TrainRow, micro_batches, pack
from posttrain.types import Group, Prompt


@dataclass
class State:
    """What, beside policy and optimizer, a run is: steps done, and prompts they drew from the global order.

    ahead: the next step's batch, as JSON, where it is drawn already (`train.ahead`).
    records: bytes that each file of records holds of these steps; what a kill left behind that is made anew.
    """

    step: int = 0
    cursor: int = 0
    ahead: dict[str, Any] | None = None
    records: dict[str, int] = field(default_factory=dict)


class GRPO:
    """The loop. `step()` makes one; `state` says how many were made.

    Args:
        policy: a logprobs.Policy, prepared by accelerate or not.
        reference: a frozen one, or None where train.beta is 0.
        encode: a prompt's token ids, chat template applied.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        accelerator: Accelerator,
        policy: torch.nn.Module,
        reference: torch.nn.Module | None,
        optimizer: torch.optim.Optimizer,
        engine: Engine,
        rewards: Rewards,
        prompts: Sequence[Prompt],
        encode: Callable[[Prompt], list[int]],
        state: State,
        watch: Watch,
    ):
        self.recipe, self.accelerator, self.engine, self.rewards = recipe, accelerator, engine, rewards
        self.policy, self.reference, self.optimizer = policy, reference, optimizer
        self.state, self.watch = state, watch
        self.collector = Collector(
            recipe, accelerator=accelerator, engine=engine, rewards=rewards, prompts=prompts, encode=encode
        )
        self.clip = clip_bounds(recipe.train.loss, recipe.train.clip_low, recipe.train.clip_high)
        self.keep = Keeper()

    def step(self) -> tuple[dict[str, Any], list[Group]]:
        """One step of the algorithm; -> its metrics (of all processes) and this process's groups."""
        began = time.perf_counter()
        state = self.state
        if state.ahead is None:
            batch = self.collector.collect(state.step, state.cursor, self.watch)
        else:
            batch = self.collector.from_json(state.ahead)
        train, signal = self._learnable(batch.drawn)
        at = time.perf_counter()
        learning_rate = self._set_learning_rate(state.step)
        with self._next_batch(batch.cursor) as next_batch:
            update = self._update(train, next_batch)
            ahead, waited = next_batch()
        with span("sync"):
            self.engine.sync(self.accelerator.unwrap_model(self.policy).model)
        self.keep()
        times = batch.times | {"update": time.perf_counter() - at - waited}
        times["generate"] += waited
        state.step, state.cursor, state.ahead = state.step + 1, batch.cursor, ahead
        metrics = step_metrics(
            [(d.group, d.silent) for d in batch.drawn],
            self.rewards.names,
            update,
            times,
            time.perf_counter() - began,
        )
        metrics |= {
            "step": state.step,
            "rounds": batch.rounds,
            "learning_rate": learning_rate,
            "signal": signal,
        }
        return metrics, [d.group for d in batch.drawn]

    @contextmanager
    def _next_batch(self, cursor: int) -> Iterator[Callable[[], tuple[dict[str, Any] | None, float]]]:
        """Start to draw the next step's batch, where that is done ahead. Gives a call that waits until it is
        complete; -> State.ahead, and seconds waited so far."""
        step = self.state.step + 1
        if not self.recipe.train.ahead or step >= self.recipe.train.steps:
            self.engine.rest()  # nothing is generated before the next sync
            try:
                yield lambda: (None, 0.0)
            except BaseException:  # stopped half-way: whoever goes on finds the engine as it was
                self.engine.sync(self.accelerator.unwrap_model(self.policy).model)
                raise
            return
        with Ahead(lambda watch: self.collector.collect(step, cursor, watch)) as ahead:
            yield lambda: (ahead.wait(self.watch).as_json(), ahead.waited)

    # -- what is learnt from ---------------------------------------------------------------------------------

    def _learnable(self, drawn: Sequence[Drawn]) -> tuple[list[TrainGroup], int]:
        """Groups to train on, each completion with its advantage and its tokens' weight; and how many carry
        signal.

        The step's batch is every group with signal, filled up with silent ones to `train.prompts` groups. The
        denominators of the loss count all of it; with beta 0 the silent ones are then dropped, because they
        would add nothing to the gradient.
        """
        train = self.recipe.train

        def trained(d: Drawn) -> list[int]:
            """Trained tokens of each completion: 0 for a masked one."""
            return [
                0 if a is None or (train.mask_truncated and c.finish == "length") else len(c.tokens)
                for c, a in zip(d.group.completions, d.advantages, strict=True)
            ]

        sizes = sorted(gather([(d.silent, d.index, sum(trained(d))) for d in drawn]))
        signal = sum(not silent for silent, _, _ in sizes)
        batch = sizes[: max(signal, train.prompts)]
        members = {index for _, index, _ in batch}
        rows = len(batch) * self.recipe.sampling.completions
        tokens = sum(count for _, _, count in batch)
        out: list[TrainGroup] = []
        for d in drawn:
            if d.index not in members or (d.silent and not train.beta):
                continue
            lengths = trained(d)
            weights = token_weights(
                train.loss,
                torch.tensor(lengths),
                rows=rows,
                tokens=tokens,
                max_tokens=self.recipe.sampling.max_tokens,
            )
            kept = [
                TrainRow(c.tokens, c.logprobs, a or 0.0, w)
                for c, a, w in zip(d.group.completions, d.advantages, weights.tolist(), strict=True)
                if w > 0 and (a or train.beta)
            ]
            if kept:
                out.append(TrainGroup(d.group.prompt_tokens, kept))
        return out, signal

    # -- the update ------------------------------------------------------------------------------------------

    def _update(self, groups: Sequence[TrainGroup], next_batch: Callable[[], Any]) -> dict[str, float]:
        """`train.inner` passes over the batch, an optimizer step each; -> sums and norms for the metrics.

        next_batch: called before any weight moves.
        """
        train, device = self.recipe.train, self.accelerator.device
        with span("pack"):
            batches = [pack(some, device) for some in micro_batches(groups, train.tokens)]
        # Every process runs as many micro-batches as the busiest: collectives stay in step.
        count = max(gather([len(batches)]))
        batches += [_empty(device)] * (count - len(batches))
        sums: dict[str, float] = {}
        if count == 0:
            return sums
        references = [self._frozen(self.reference, batch) for batch in batches]
        olds = [self._frozen(self.policy, batch) if train.inner > 1 else None for batch in batches]
        # On a CPU gradients keep their memory: to write zeros takes less than to have it mapped anew.
        afresh = device.type != "cpu"
        for inner in range(train.inner):
            self.optimizer.zero_grad(set_to_none=afresh)
            for k, (batch, ref, old) in enumerate(zip(batches, references, olds, strict=True)):
                if inner == 0:
                    self.watch("learning", k, count)
                last = k == count - 1
                # Gradients are exchanged between processes once a step, with the last micro-batch.
                with nullcontext() if last else self.accelerator.no_sync(self.policy):
                    for name, value in self._backward(batch, ref, old).items():
                        sums[name] = sums.get(name, 0.0) + value
            if inner == 0:
                next_batch()
            with span("optimizer"):
                norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), train.max_grad_norm))  # pyright: ignore[reportArgumentType]
                sums["grad_norm"] = norm
                if math.isfinite(norm):
                    self.optimizer.step()
                else:  # one NaN would poison every weight: leave this update out
                    sums["skipped"] = sums.get("skipped", 0.0) + 1
                self.optimizer.zero_grad(set_to_none=afresh)
        return sums | {"passes": train.inner}

    def _backward(self, batch: PackedBatch, ref: Tensor | None, old: Tensor | None) -> dict[str, float]:
        train = self.recipe.train
        logp, entropy = self.policy(batch)
        before = logp.detach() if old is None else old
        correction = None
        if train.importance_cap is not None:
            correction = importance_weights(before, batch.sampled, train.importance_cap)
        low, high = self.clip
        loss, stats = policy_loss(
            logp,
            old,
            batch.advantage,
            batch.row,
            batch.weight,
            variant=train.loss,
            clip_low=low,
            clip_high=high,
            beta=train.beta,
            ref=ref,
            correction=correction,
        )
        # Gradients are averaged over processes; the weights already divide by the global counts.
        with span("backward"):
            self.accelerator.backward(loss * self.accelerator.num_processes)
        live = (batch.weight > 0)[batch.row]  # false for the tokens of an empty micro-batch
        return {
            "loss": loss.item(),
            "entropy": entropy[live].sum().item(),
            "mismatch": (before - batch.sampled)[live].abs().sum().item(),
            "tokens": stats["tokens"].item(),
            "clipped": stats["clipped"].item(),
            "kl": stats["kl"].item(),
        }

    @torch.no_grad()
    def _frozen(self, policy: torch.nn.Module | None, batch: PackedBatch) -> Tensor | None:
        return None if policy is None else policy(batch)[0]

    def _set_learning_rate(self, step: int) -> float:
        train = self.recipe.train
        rate = train.learning_rate * schedule(train.schedule, step, train.steps, train.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        return rate


def schedule(kind: str, step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at a step (0 is the first): a linear rise over `warmup` steps, then
    constant, or down to 0 at `steps`, linearly or by half a cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def _empty(device: torch.device) -> PackedBatch:
    """A micro-batch of two tokens and weight 0, for a process that has none left."""
    return pack([TrainGroup([0], [TrainRow([0], [0.0], 0.0, 0.0)])], device)
