"""The loop against the algorithm written out plainly: whole rows, full logits, no packing, none dropped."""

from __future__ import annotations

import copy
import json
import random
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain.recipe import Recipe, load_recipe
from posttrain.rollout.native import NativeEngine
from posttrain.train.grpo import GRPO, State, Watch, schedule
from posttrain.train.logprobs import Policy
from posttrain.types import Completion, Group, Prompt, Score

pytestmark = pytest.mark.usefixtures("one_process")

Build = Callable[..., PreTrainedModel]
Rule = Callable[[Prompt, Completion], float | None]

PROMPTS = [
    Prompt(f"p{i}", f"question {i}", "4", {"ids": [2 + i, 9, 5 + i * i % 80][: 1 + i % 3]}) for i in range(7)
]


class Rules:
    """Stands in for posttrain.rewards.Rewards: one rule, no process."""

    names = ("rule",)

    def __init__(self, rule: Rule):
        self.rule = rule

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        values = [self.rule(p, c) for p, c in zip(prompts, completions, strict=True)]
        return [
            Score(value, {"rule": value}, {} if value is not None else {"rule": "no"}) for value in values
        ]


def even_share(prompt: Prompt, completion: Completion) -> float:
    return sum(token % 2 == 0 for token in completion.tokens) / len(completion.tokens)


def loud(*ids: str) -> Rule:
    """Only these prompts' groups carry signal."""
    return lambda prompt, completion: even_share(prompt, completion) if prompt.id in ids else 0.0


class Loop:
    """A loop over a small model, with what it is made of within reach."""

    def __init__(
        self,
        build: Build,
        tokenizer: PreTrainedTokenizerFast,
        rule: Rule,
        *overrides: str,
        state: State | None = None,
        watch: Watch = lambda phase, done, total: None,
        reference: PreTrainedModel | None = None,
        family: str = "llama",
    ):
        self.recipe: Recipe = load_recipe(
            "tiny/tiny",
            [
                "train.prompts=4",
                "train.rounds=1",
                "train.learning_rate=1.0",
                "train.max_grad_norm=1e9",
                "train.tokens=60",
                "sampling.max_tokens=12",
                *overrides,
            ],
        )
        self.model = build(family)
        self.before = copy.deepcopy(self.model)
        temperature = self.recipe.sampling.temperature
        policy = Policy(self.model, temperature)
        assert policy.packed
        self.engine = NativeEngine(self.model, tokenizer, torch.float32)
        self.engine.ends = torch.arange(1, 8)
        self.grpo = GRPO(
            self.recipe,
            accelerator=Accelerator(cpu=True, mixed_precision="no"),
            policy=policy,
            reference=None if reference is None else Policy(reference, temperature).requires_grad_(False),
            optimizer=torch.optim.SGD(policy.parameters(), lr=0.0),  # a step is the gradient itself
            engine=self.engine,
            rewards=Rules(rule),  # pyright: ignore[reportArgumentType]
            prompts=PROMPTS,
            encode=lambda prompt: prompt.columns["ids"],
            state=state or State(),
            watch=watch,
        )

    def moved(self) -> torch.Tensor:
        """How far all weights are from where they began, in one vector."""
        pairs = zip(self.model.parameters(), self.before.parameters(), strict=True)
        return torch.cat([(now - then).detach().flatten() for now, then in pairs])


def plainly(
    before: PreTrainedModel,
    groups: Sequence[Group],
    *,
    rows: int,
    updates: int = 1,
    rate: float = 1.0,
    beta: float = 0.0,
    reference: PreTrainedModel | None = None,
    temperature: float = 1.0,
    skip: Callable[[Completion], bool] = lambda _: False,
    cap: float | None = None,
) -> torch.Tensor:
    """The paper's update on these groups, one row at a time; -> how far the weights move, in one vector."""
    model = copy.deepcopy(before)
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def logprobs(of: PreTrainedModel, group: Group, completion: Completion) -> torch.Tensor:
        ids = torch.tensor([group.prompt_tokens + completion.tokens])
        logits = of(input_ids=ids, use_cache=False).logits[0, len(group.prompt_tokens) - 1 : -1]
        target = torch.tensor(completion.tokens)[:, None]
        return (logits / temperature).log_softmax(-1).gather(1, target)[:, 0]

    work: list[tuple[Group, Completion, float, torch.Tensor, torch.Tensor | None]] = []
    for group in groups:
        totals = [score.total for score in group.scores if score.total is not None]
        for completion, score in zip(group.completions, group.scores, strict=True):
            if score.total is None or skip(completion):
                continue
            spread = statistics.stdev(totals) if len(totals) > 1 else 0.0
            advantage = (score.total - statistics.fmean(totals)) / (spread + 1e-4)
            with torch.no_grad():
                old = logprobs(model, group, completion)
                ref = None if reference is None else logprobs(reference, group, completion)
            work.append((group, completion, advantage, old, ref))
    for _ in range(updates):
        model.zero_grad()
        for group, completion, advantage, old, ref in work:
            logp = logprobs(model, group, completion)
            ratio = (logp - old).exp()
            objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            if cap is not None:
                objective = objective * (old - torch.tensor(completion.logprobs)).exp().clamp(max=cap)
            if ref is not None:
                objective = objective - beta * ((ref - logp).exp() - (ref - logp) - 1) * ratio
            (-objective.mean() / rows).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    pairs = zip(model.parameters(), start, strict=True)
    return torch.cat([(now - then).detach().flatten() for now, then in pairs])


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    assert expected.norm() > 1e-4, "nothing moved, so nothing is compared"
    assert (got - expected).norm() < tolerance * expected.norm()


# -- what a step does to the weights -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_step_is_the_papers(family: str, build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    loop = Loop(build, tokenizer, even_share, family=family)
    metrics, groups = loop.grpo.step()
    assert len(groups) == 4 and all(len(group.completions) == 4 for group in groups)
    assert_close(loop.moved(), plainly(loop.before, groups, rows=16))
    assert metrics["grad_norm"] == pytest.approx(float(loop.moved().norm()), rel=1e-3)
    assert metrics["trained_tokens"] == metrics["tokens"]
    assert metrics["mismatch"] < 1e-4


def test_groups_without_signal_are_dropped_and_change_nothing(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    rule = loud("p0", "p1", "p2")
    loop = Loop(build, tokenizer, rule, "train.prompts=7")
    metrics, groups = loop.grpo.step()
    assert (metrics["groups"], metrics["groups_silent"], metrics["signal"]) == (7, 4, 3)
    assert metrics["trained_tokens"] < metrics["tokens"]
    assert_close(loop.moved(), plainly(loop.before, groups, rows=7 * 4))  # with all seven, in full


def test_one_reward_for_all_moves_nothing(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    loop = Loop(build, tokenizer, lambda *_: 1.0, "train.rounds=3")
    metrics, _ = loop.grpo.step()
    assert not loop.moved().any()
    assert (metrics["rounds"], metrics["signal"], metrics["grad_norm"], metrics["loss"]) == (3, 0, 0.0, 0.0)
    assert metrics["groups"] == metrics["groups_silent"] == 4 + 16 + 16
    assert metrics["entropy"] is None and metrics["reward"] == 1.0


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_log_probabilities_are_those_at_the_rollouts_temperature(
    temperature: float, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    loop = Loop(build, tokenizer, even_share, f"sampling.temperature={temperature}")
    metrics, groups = loop.grpo.step()
    assert_close(loop.moved(), plainly(loop.before, groups, rows=16, temperature=temperature))
    assert metrics["mismatch"] < 1e-4


def test_several_updates_from_the_same_completions(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    rate = 0.05
    loop = Loop(build, tokenizer, even_share, "train.inner=3", f"train.learning_rate={rate}")
    metrics, groups = loop.grpo.step()
    once = plainly(loop.before, groups, rows=16, rate=rate)
    thrice = plainly(loop.before, groups, rows=16, rate=rate, updates=3)
    assert (thrice - 3 * once).norm() > 0.01 * thrice.norm(), "the ratio does not matter here"
    assert_close(loop.moved(), thrice, tolerance=5e-3)
    assert metrics["trained_tokens"] == 3 * metrics["tokens"]
    assert metrics["clip_fraction"] > 0
    assert metrics["entropy"] < 5


def test_the_penalty_pulls_towards_the_reference(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    reference = build(seed=3)
    rule = loud("p0", "p1")
    loop = Loop(
        build, tokenizer, rule, "train.beta=0.3", "train.prompts=7", reference=copy.deepcopy(reference)
    )
    metrics, groups = loop.grpo.step()
    assert metrics["groups_silent"] == 5
    assert metrics["trained_tokens"] == metrics["tokens"], "silent groups are held to the reference too"
    assert metrics["kl"] > 0.1
    expected = plainly(loop.before, groups, rows=28, beta=0.3, reference=reference)
    assert_close(loop.moved(), expected)
    without = plainly(loop.before, groups, rows=28)
    assert (expected - without).norm() > 0.1 * without.norm()


def test_at_the_reference_itself_the_penalty_is_nothing(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    loop = Loop(build, tokenizer, even_share, "train.beta=0.3", reference=build())
    metrics, groups = loop.grpo.step()
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert_close(loop.moved(), plainly(loop.before, groups, rows=16))


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
@pytest.mark.parametrize("inner", [1, 2])
def test_every_loss_makes_a_step(
    loss: str, inner: int, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    loop = Loop(build, tokenizer, even_share, f"train.loss={loss}", f"train.inner={inner}", "train.tokens=30")
    metrics, groups = loop.grpo.step()
    assert loop.moved().isfinite().all() and loop.moved().norm() > 1e-3
    assert 0 < metrics["grad_norm"] < 1e3 and metrics["kl"] == 0.0
    if loss == "gspo" and inner == 1:  # with ratio 1 its gradient is grpo's
        assert_close(loop.moved(), plainly(loop.before, groups, rows=16))


def test_the_gradients_norm_is_bounded(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    loop = Loop(build, tokenizer, even_share, "train.max_grad_norm=0.01")
    metrics, _ = loop.grpo.step()
    assert metrics["grad_norm"] > 0.05, "the norm before the bound is what is reported"
    assert float(loop.moved().norm()) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(("cap", "factor"), [("2.0", 1.5), ("1.2", 1.2), ("null", 1.0)])
def test_what_the_engine_got_wrong_is_corrected_up_to_a_bound(
    cap: str, factor: float, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """An engine that drew every token with two thirds of the probability that the trainer sees."""
    loop = Loop(build, tokenizer, even_share, f"train.importance_cap={cap}")
    generate = loop.engine.generate

    def off(*args: Any, **kwargs: Any) -> list[list[Completion]]:
        groups = generate(*args, **kwargs)
        for completion in (completion for group in groups for completion in group):
            completion.logprobs = [x - 0.4054651 for x in completion.logprobs]  # log 1.5
        return groups

    loop.engine.generate = off
    metrics, groups = loop.grpo.step()
    assert metrics["mismatch"] == pytest.approx(0.4054651, abs=1e-4)
    assert_close(loop.moved(), factor * plainly(loop.before, groups, rows=16))


# -- rewards beside generation ------------------------------------------------------------------------------


def test_scores_are_those_of_one_call_at_the_end(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    calls: list[int] = []

    def rule(prompt: Prompt, completion: Completion) -> float | None:
        return None if completion.tokens[0] % 3 == 0 else even_share(prompt, completion)

    class Counted(Rules):
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
            calls.append(len(prompts))
            return super().score(prompts, completions)

    loop = Loop(build, tokenizer, rule, "train.prompts=7")
    loop.grpo.collector.rewards = Counted(rule)  # pyright: ignore[reportAttributeAccessIssue]
    _, groups = loop.grpo.step()
    assert sum(calls) == 28 and all(rows % 4 == 0 for rows in calls), "parts of a group were scored"
    rows = [(group.prompt, completion) for group in groups for completion in group.completions]
    at_the_end = Rules(rule).score([prompt for prompt, _ in rows], [completion for _, completion in rows])
    assert [score for group in groups for score in group.scores] == at_the_end


def test_what_scoring_raises_reaches_the_loop(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    error = LookupError("no such thing")

    def rule(prompt: Prompt, completion: Completion) -> float:
        raise error

    loop = Loop(build, tokenizer, rule)
    with pytest.raises(LookupError) as raised:
        loop.grpo.step()
    assert raised.value is error
    assert not loop.moved().any() and loop.grpo.state == State()


# -- masked rows -------------------------------------------------------------------------------------------


def test_masked_rows_take_no_part(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    def rule(prompt: Prompt, completion: Completion) -> float | None:
        return None if completion.tokens[0] % 3 == 0 else even_share(prompt, completion)

    loop = Loop(build, tokenizer, rule)
    metrics, groups = loop.grpo.step()
    masked = sum(score.total is None for group in groups for score in group.scores)
    assert 0 < masked < 16 and metrics["masked_rows"] == masked
    assert metrics["reward_failures"] == {"rule: no": masked}
    assert_close(loop.moved(), plainly(loop.before, groups, rows=16))


def test_all_rows_masked(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    loop = Loop(build, tokenizer, lambda *_: None, "train.beta=0.1", "train.inner=2", reference=build(seed=3))
    metrics, _ = loop.grpo.step()
    assert not loop.moved().any()
    assert metrics["reward"] is None and metrics["pass_rate"] is None and metrics["masked_rows"] == 16
    metrics, _ = loop.grpo.step()
    assert metrics["step"] == 2


def test_cut_off_completions_may_be_masked(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    loop = Loop(build, tokenizer, even_share, "train.mask_truncated=true", "train.loss=grpo")
    metrics, groups = loop.grpo.step()
    assert 0 < metrics["truncated"] < 1
    expected = plainly(loop.before, groups, rows=16, skip=lambda completion: completion.finish == "length")
    assert_close(loop.moved(), expected)


# -- drawing prompts ---------------------------------------------------------------------------------------


def drawn(loop: Loop, steps: int) -> list[list[str]]:
    return [[group.prompt.id for group in loop.grpo.step()[1]] for _ in range(steps)]


def test_every_epoch_is_every_row_once_in_an_order_of_its_own(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    loop = Loop(build, tokenizer, lambda *_: 0.0, "sampling.max_tokens=1", "train.prompts=3")
    order = [name for step in drawn(loop, 14) for name in step]  # 6 epochs of 7
    epochs = [order[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == [f"p{i}" for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert loop.grpo.state == State(step=14, cursor=42)
    again = Loop(
        build, tokenizer, lambda *_: 0.0, "sampling.max_tokens=1", "train.prompts=3", state=State(12, 36)
    )
    assert [name for step in drawn(again, 2) for name in step] == order[36:]
    other = Loop(build, tokenizer, lambda *_: 0.0, "sampling.max_tokens=1", "train.prompts=3", "seed=1")
    assert [name for step in drawn(other, 2) for name in step] != order[:6]


def test_more_prompts_are_drawn_until_enough_carry_signal(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    rule = loud("p0", "p1", "p2")
    loop = Loop(build, tokenizer, rule, "train.prompts=2", "train.rounds=20", "train.learning_rate=1e-3")
    for _ in range(4):
        before = loop.grpo.state.cursor
        metrics, groups = loop.grpo.step()
        assert metrics["signal"] >= 2 and metrics["rounds"] < 20
        assert metrics["groups"] == len(groups) == loop.grpo.state.cursor - before
        assert (metrics["rounds"] == 1) == (metrics["groups"] == 2)
        # Enough is enough: all but the last round's groups did not suffice.
        assert metrics["groups"] <= 2 + 8 * (metrics["rounds"] - 1)


def test_the_rounds_are_bounded(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    rule = loud("p0")
    loop = Loop(build, tokenizer, rule, "train.prompts=5", "train.rounds=2", "sampling.max_tokens=6")
    counts = [loop.grpo.step()[0] for _ in range(3)]
    assert {metrics["rounds"] for metrics in counts} == {2}
    assert all(5 < metrics["groups"] <= 25 and metrics["signal"] < 5 for metrics in counts)


def test_a_batch_larger_than_asked_for_is_learnt_from_whole(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A last round may bring more groups with signal than were missing: none is thrown away."""
    loop = Loop(build, tokenizer, loud("p0", "p3", "p4", "p6"), "train.prompts=3", "train.rounds=9")
    for _ in range(6):
        then = copy.deepcopy(loop.model)
        metrics, groups = loop.grpo.step()
        if metrics["signal"] > 3:
            break
    else:
        pytest.fail("no step brought more than it needed; choose other prompts")
    now, was = loop.model.parameters(), then.parameters()
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(now, was, strict=True)])
    then.set_attn_implementation("sdpa")
    with_signal = [group for group in groups if len({score.total for score in group.scores}) > 1]
    assert len(with_signal) == metrics["signal"]
    assert_close(moved, plainly(then, with_signal, rows=4 * metrics["signal"]))


# -- the loop as a whole -----------------------------------------------------------------------------------


def test_the_same_again(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    one, two = (Loop(build, tokenizer, even_share, "train.learning_rate=0.1") for _ in range(2))
    for _ in range(3):
        assert one.grpo.step()[1] == two.grpo.step()[1]
    assert torch.equal(one.moved(), two.moved())


def test_interrupted_anywhere_a_step_can_be_made_again(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    class Interrupted(Exception):
        pass

    calls: list[str] = []
    expected = Loop(build, tokenizer, even_share, watch=lambda phase, done, total: calls.append(phase))
    _, groups = expected.grpo.step()
    assert set(calls) == {"generating", "scoring", "learning"} and calls.count("learning") > 2
    for stop in {0, calls.index("scoring"), calls.index("learning"), len(calls) - 1}:
        left = stop

        def watch(phase: str, done: int, total: int) -> None:
            nonlocal left
            if left == 0:
                left = -1
                raise Interrupted
            left -= 1

        loop = Loop(build, tokenizer, even_share, watch=watch)
        with pytest.raises(Interrupted):
            loop.grpo.step()
        assert not loop.moved().any() and loop.grpo.state == State()
        assert loop.grpo.step()[1] == groups
        assert torch.equal(loop.moved(), expected.moved())


def test_it_learns(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """Ids 8 to 96 are drawn almost evenly at first; the reward is the share of even ones among them."""
    loop = Loop(build, tokenizer, even_share, "train.learning_rate=0.01", "sampling.completions=8")
    loop.grpo.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=0.01)
    rewards = [loop.grpo.step()[0]["reward"] for _ in range(15)]
    assert statistics.fmean(rewards[:3]) < 0.7
    assert statistics.fmean(rewards[-3:]) > 0.9


def test_the_record_of_a_step(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    loop = Loop(build, tokenizer, even_share)
    metrics, groups = loop.grpo.step()
    completions = [completion for group in groups for completion in group.completions]
    totals = [score.total for group in groups for score in group.scores if score.total is not None]
    assert metrics["reward"] == metrics["reward/rule"] == pytest.approx(statistics.fmean(totals))
    assert metrics["reward_std"] == pytest.approx(statistics.pstdev(totals))
    assert metrics["pass_rate"] == pytest.approx(sum(total > 0.5 for total in totals) / 16)
    assert metrics["tokens"] == sum(len(completion.tokens) for completion in completions)
    assert metrics["length"] == pytest.approx(metrics["tokens"] / 16)
    assert metrics["truncated"] == sum(completion.finish == "length" for completion in completions) / 16
    assert metrics["step"] == metrics["rounds"] == 1
    assert metrics["learning_rate"] == 1.0 and metrics["clip_fraction"] == 0.0
    assert 0 < metrics["entropy"] < 4.6 and metrics["masked_rows"] == 0
    phases = [metrics[f"seconds_{phase}"] for phase in ("generate", "reward", "update")]
    assert all(seconds >= 0 for seconds in phases) and sum(phases) <= metrics["seconds"]


# -- the next batch while this one is learnt from -----------------------------------------------------------


def snapshot(model: PreTrainedModel) -> PreTrainedModel:
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("sdpa")
    return copied


def between(now: PreTrainedModel, then: PreTrainedModel) -> torch.Tensor:
    pairs = zip(now.parameters(), then.parameters(), strict=True)
    return torch.cat([(a - b).detach().flatten() for a, b in pairs])


def ahead_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


AHEAD = ("train.ahead=true", "train.steps=3", "train.learning_rate=0.05")


@pytest.mark.parametrize("inner", [1, 3])
def test_ahead_is_a_stale_sampler_then_a_corrected_update(
    inner: int, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    cap = 1.1
    loop = Loop(build, tokenizer, even_share, *AHEAD, f"train.inner={inner}", f"train.importance_cap={cap}")
    past = [snapshot(loop.model)]
    for step in range(3):
        metrics, groups = loop.grpo.step()
        past.append(snapshot(loop.model))
        sampler, learner = past[max(step - 1, 0)], past[step]
        engine = NativeEngine(snapshot(sampler), tokenizer, torch.float32)
        engine.ends = loop.engine.ends
        seeds = [random.Random(f"{loop.recipe.seed}/{step}/{4 * step + k}").getrandbits(63) for k in range(4)]
        prompts = [group.prompt_tokens for group in groups]
        drawn = engine.generate(prompts, 4, loop.grpo.collector.sampling, seeds)
        assert [group.completions for group in groups] == drawn
        moved = between(past[step + 1], learner)
        plain = {"rows": 16, "updates": inner, "rate": 0.05}
        assert_close(moved, plainly(learner, groups, **plain, cap=cap), tolerance=5e-3)
        uncorrected = plainly(learner, groups, **plain)
        if step == 0:
            assert_close(moved, uncorrected, tolerance=5e-3)
        else:
            assert metrics["mismatch"] > 0.01
            assert (moved - uncorrected).norm() > 0.02 * moved.norm(), "the correction does not matter here"
        assert (loop.grpo.state.step, loop.grpo.state.cursor) == (step + 1, 4 * (step + 1))


def test_the_last_step_draws_no_batch_for_nobody(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    loop, calls = Loop(build, tokenizer, even_share, *AHEAD), []
    generate = loop.engine.generate

    def counted(*args: Any, **kwargs: Any) -> list[list[Completion]]:
        calls.append(threading.current_thread() is threading.main_thread())
        return generate(*args, **kwargs)

    loop.engine.generate = counted
    left = [loop.grpo.step() and loop.grpo.state.ahead is not None for _ in range(3)]
    assert left == [True, True, False] and calls == [True, False, False]
    assert not ahead_threads()
    off = Loop(build, tokenizer, even_share, "train.steps=3")
    off.grpo.step()
    assert off.grpo.state.ahead is None


def test_a_batch_drawn_ahead_survives_json(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """With dynamic sampling: later rounds move the cursor of the batch, not that of the steps done."""
    overrides = (*AHEAD, "train.prompts=2", "train.rounds=9")
    loop = Loop(build, tokenizer, loud("p0", "p1", "p2"), *overrides)
    loop.grpo.step()
    state = loop.grpo.state
    assert state.ahead is not None and state.ahead["cursor"] > state.cursor
    other = Loop(
        build,
        tokenizer,
        loud("p0", "p1", "p2"),
        *overrides,
        state=State(state.step, state.cursor, json.loads(json.dumps(state.ahead))),
    )
    other.model.load_state_dict(loop.model.state_dict())
    for _ in range(2):
        (ours, groups), (theirs, again) = loop.grpo.step(), other.grpo.step()
        assert groups == again and (ours["rounds"], ours["loss"]) == (theirs["rounds"], theirs["loss"])
        assert loop.grpo.state == other.grpo.state
    assert not between(loop.model, other.model).any()


@pytest.mark.parametrize("stop", ["never", "learning", "waiting"])
def test_no_weight_moves_while_a_batch_is_drawn(
    stop: str, build: Build, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 the engine runs the policy itself. Drawing ends only once the loop waits for it."""

    class Interrupted(Exception):
        pass

    undisturbed = Loop(build, tokenizer, even_share, *AHEAD)
    expected = [undisturbed.grpo.step()[1] for _ in range(3)]
    loop = Loop(build, tokenizer, even_share, *AHEAD)
    generate, update = loop.engine.generate, loop.grpo.optimizer.step
    drawing, waited, stops = threading.Event(), threading.Event(), [stop]

    def slow(*args: Any, **kwargs: Any) -> list[list[Completion]]:
        if threading.current_thread() is threading.main_thread():
            return generate(*args, **kwargs)
        before = snapshot(loop.model)
        waited.clear()
        drawing.set()
        try:
            assert stop == "learning" or waited.wait(30), "nobody waits"
            return generate(*args, **kwargs)
        finally:
            assert not between(loop.model, before).any()
            drawing.clear()

    def watch(phase: str, done: int, total: int) -> None:
        waiting = phase == "generating" and drawing.is_set()
        if waiting:
            waited.set()
        if loop.grpo.state.step == 1 and stops[0] == ("waiting" if waiting else phase):
            stops[0] = "never"
            raise Interrupted

    def moves() -> None:
        assert not drawing.is_set(), "a weight moves while a batch is drawn"
        update()

    loop.engine.generate, loop.grpo.watch = slow, watch
    monkeypatch.setattr(loop.grpo.optimizer, "step", moves)
    groups = [loop.grpo.step()[1]]
    if stop != "never":
        state, before = copy.deepcopy(loop.grpo.state), snapshot(loop.model)
        with pytest.raises(Interrupted):
            loop.grpo.step()
        assert loop.grpo.state == state and state.ahead is not None
        assert not between(loop.model, before).any() and not ahead_threads()
    groups += [loop.grpo.step()[1] for _ in range(2)]
    assert groups == expected and torch.equal(loop.moved(), undisturbed.moved())


def test_what_drawing_ahead_raises_reaches_the_loop(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    scored: list[int] = []

    def rule(prompt: Prompt, completion: Completion) -> float:
        scored.append(1)
        if len(scored) > 16:  # the second batch
            raise LookupError("no such thing")
        return even_share(prompt, completion)

    loop = Loop(build, tokenizer, rule, *AHEAD)
    with pytest.raises(LookupError):
        loop.grpo.step()
    assert not loop.moved().any() and loop.grpo.state == State() and not ahead_threads()


# -- the learning rate -------------------------------------------------------------------------------------


def test_schedule() -> None:
    def shares(kind: str, steps: int, warmup: int) -> list[float]:
        return [schedule(kind, step, steps, warmup) for step in range(steps)]

    assert shares("constant", 3, 0) == [1.0] * 3
    assert shares("constant", 4, 2) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert shares("linear", 4, 0) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert shares("linear", 6, 2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])
    assert shares("cosine", 4, 0) == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466])
    assert shares("cosine", 3, 3) == pytest.approx([0.25, 0.5, 0.75])
    for kind in ("linear", "cosine"):
        whole = shares(kind, 50, 10)
        assert whole[:11] == sorted(whole[:11]) and whole[10:] == sorted(whole[10:], reverse=True)
        assert min(whole) > 0


def test_the_learning_rate_follows_it(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    overrides = ("train.steps=4", "train.warmup=1", "train.schedule=linear", "train.learning_rate=0.1")
    loop = Loop(build, tokenizer, even_share, *overrides)
    rates = [loop.grpo.step()[0]["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([0.05, 0.1, 0.1 * 2 / 3, 0.1 / 3])
