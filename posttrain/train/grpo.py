"""Group relative policy optimisation, in the order of the paper (arXiv 2402.03300, algorithm 1).

    a step:  draw prompts -> G completions each -> rewards -> advantages within the group
             -> drop what carries no signal -> packed micro-batches
             -> loss, backward, update -> engine takes weights

One process or many: prompts are drawn from one global order and dealt to the processes, every completion's
randomness hangs on (seed, step, prompt) alone, and the loss's denominators are global, so the number of
processes changes nothing but rounding.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.memory import Keeper
from posttrain.profile import count_tokens, span
from posttrain.recipe import Recipe
from posttrain.rewards import Rewards
from posttrain.rollout.engine import Engine
from posttrain.train.advantages import AdvantageKind, advantages, default_kind
from posttrain.train.loss import clip_bounds, importance_weights, policy_loss, token_weights
from posttrain.train.metrics import gather, step_metrics
from posttrain.train.packing import PackedBatch, TrainGroup, TrainRow, micro_batches, pack
from posttrain.types import Group, Prompt, Sampling

MAX_DRAW = 4  # a later round of dynamic sampling draws at most so many prompts for every group still missing


@dataclass
class State:
    """What, beside policy and optimizer, a run is: steps done, and prompts drawn from the global order."""

    step: int = 0
    cursor: int = 0


class Watch(Protocol):
    """Told what the loop is doing. May raise at any call: no weight has moved since the last step."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


@dataclass
class Drawn:
    """A group as the loop sees it: where in the order its prompt stood, and its completions' advantages."""

    index: int
    group: Group
    advantages: list[float | None]

    @property
    def silent(self) -> bool:
        return not any(self.advantages)


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
        self.prompts, self.encode, self.state, self.watch = prompts, encode, state, watch
        self.sampling = Sampling(**recipe.sampling.model_dump(exclude={"completions"}))
        self.kind: AdvantageKind = recipe.train.advantage or default_kind(recipe.train.loss)
        self.clip = clip_bounds(recipe.train.loss, recipe.train.clip_low, recipe.train.clip_high)
        self.keep = Keeper()
        self._order: tuple[int, list[int]] = -1, []  # the permutation of the epoch asked for last

    def step(self) -> tuple[dict[str, Any], list[Group]]:
        """One step of the algorithm; -> its metrics (of all processes) and this process's groups."""
        began = time.perf_counter()
        state = replace(self.state)
        drawn, times, rounds = self._collect(state)
        train, signal = self._learnable(drawn)
        at = time.perf_counter()
        learning_rate = self._set_learning_rate(state.step)
        update = self._update(train)
        with span("sync"):
            self.engine.sync(self.accelerator.unwrap_model(self.policy).model)
        self.keep()
        times["update"] = time.perf_counter() - at
        self.state.step, self.state.cursor = state.step + 1, state.cursor
        metrics = step_metrics(
            [(d.group, d.silent) for d in drawn],
            self.rewards.names,
            update,
            times,
            time.perf_counter() - began,
        )
        metrics |= {
            "step": self.state.step,
            "rounds": rounds,
            "learning_rate": learning_rate,
            "signal": signal,
        }
        return metrics, [d.group for d in drawn]

    # -- rollouts --------------------------------------------------------------------------------------------

    def _collect(self, state: State) -> tuple[list[Drawn], dict[str, float], int]:
        """Draw prompts, round by round, until `train.prompts` groups carry signal or the rounds are used up.

        Returns the groups of this process, the seconds by phase, and the number of rounds.
        """
        wanted = self.recipe.train.prompts
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        drawn: list[Drawn] = []
        times = {"generate": 0.0, "reward": 0.0}
        count, total, loud, rounds = wanted, 0, 0, 0
        while rounds < self.recipe.train.rounds:
            rounds += 1
            indices = range(state.cursor, state.cursor + count)
            state.cursor += count
            total += count
            new = self._rollout([i for i in indices if i % world == rank], state.step, times)
            drawn += new
            loud += sum(gather([sum(not d.silent for d in new)]))
            if loud >= wanted:
                break
            # As many as the share with signal so far says are needed for what is missing.
            missing = wanted - loud
            count = min(math.ceil(missing * total / max(loud, 1)), missing * MAX_DRAW)
        return drawn, times, rounds

    def _rollout(self, indices: Sequence[int], step: int, times: dict[str, float]) -> list[Drawn]:
        if not indices:
            return []
        prompts = [self._prompt(i) for i in indices]
        tokens = [self.encode(prompt) for prompt in prompts]
        seeds = [random.Random(f"{self.recipe.seed}/{step}/{i}").getrandbits(63) for i in indices]
        at = time.perf_counter()
        G = self.recipe.sampling.completions
        with span("generate"):
            completions = self.engine.generate(
                tokens, G, self.sampling, seeds, lambda done, total: self.watch("generating", done, total)
            )
        sampled = sum(len(c.tokens) for group in completions for c in group)
        count_tokens("sampled", sampled, sampled)
        times["generate"] += time.perf_counter() - at
        at = time.perf_counter()
        self.watch("scoring", 0, len(indices) * G)
        groups = [Group(*parts) for parts in zip(prompts, tokens, completions, strict=True)]
        with span("reward"):
            flat = self.rewards.score(
                [g.prompt for g in groups for _ in range(G)], [c for g in groups for c in g.completions]
            )
        for k, group in enumerate(groups):
            group.scores = flat[k * G : (k + 1) * G]
        times["reward"] += time.perf_counter() - at
        return [
            Drawn(i, group, advantages([score.total for score in group.scores], self.kind))
            for i, group in zip(indices, groups, strict=True)
        ]

    def _prompt(self, index: int) -> Prompt:
        """The prompt at a place of the endless global order: every epoch its own seeded permutation."""
        epoch, place = divmod(index, len(self.prompts))
        if epoch != self._order[0]:
            order = list(range(len(self.prompts)))
            random.Random(f"{self.recipe.seed}/epoch/{epoch}").shuffle(order)
            self._order = epoch, order
        return self.prompts[self._order[1][place]]

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
                max_tokens=self.sampling.max_tokens,
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

    def _update(self, groups: Sequence[TrainGroup]) -> dict[str, float]:
        """`train.inner` passes over the batch, an optimizer step each; -> sums and norms for the metrics."""
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
        for inner in range(train.inner):
            self.optimizer.zero_grad()
            for k, (batch, ref, old) in enumerate(zip(batches, references, olds, strict=True)):
                if inner == 0:
                    self.watch("learning", k, count)
                last = k == count - 1
                # Gradients are exchanged between processes once a step, with the last micro-batch.
                with nullcontext() if last else self.accelerator.no_sync(self.policy):
                    for name, value in self._backward(batch, ref, old).items():
                        sums[name] = sums.get(name, 0.0) + value
            with span("optimizer"):
                norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), train.max_grad_norm))  # pyright: ignore[reportArgumentType]
                sums["grad_norm"] = norm
                if math.isfinite(norm):
                    self.optimizer.step()
                else:  # one NaN would poison every weight: leave this update out
                    sums["skipped"] = sums.get("skipped", 0.0) + 1
                self.optimizer.zero_grad()
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
            group["lr"] = rate
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
