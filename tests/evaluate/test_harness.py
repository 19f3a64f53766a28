"""The harness with a made-up engine, and the real rewards process as its judge."""

import pytest

from posttrain.evaluate.harness import evaluate, judge_specs
from posttrain.evaluate.metrics import wilson
from posttrain.rewards import Rewards, RewardSpec
from posttrain.types import Completion, PosttrainError, Prompt, Sampling, Score

GREEDY = [
    "So 2 + 3 = 5.\nThe answer is: 5",  # right in both ways, with a step
    "So there are 7 apples",  # only the number
    "The answer is: 9",  # wrong
    "",
]
PROMPTS = [Prompt(f"p{i}", f"q{i}", answer) for i, answer in enumerate(["5", "7", "8", "1"])]


class Engine:
    """Writes GREEDY at temperature 0; sampled, right once for the first prompt and never for the others."""

    def __init__(self, greedy=GREEDY):
        self.greedy, self.calls = greedy, []

    def generate(self, prompts, n, sampling, seeds, on_progress=None, on_group=None):
        self.calls.append((prompts, n, sampling, list(seeds)))
        groups = []
        for i, _ in enumerate(prompts):
            if sampling.temperature == 0:
                texts = [self.greedy[i]]
            else:
                texts = [f"The answer is: {5 if i == j == 0 else 1000}" for j in range(n)]
            groups.append(
                [Completion([1] * (i + 1), [0.0] * (i + 1), "length" if i == 3 else "stop", t) for t in texts]
            )
            if on_progress:
                on_progress((i + 1) * n, len(prompts) * n)
        return groups

    def sync(self, policy):
        raise AssertionError("evaluation must not touch the weights")

    def rest(self):
        raise AssertionError("evaluation must not touch the weights")


class Judge:
    """Gives prepared scores, in order."""

    def __init__(self, scores, names=("a", "b")):
        self.names, self.scores = list(names), scores

    def score(self, prompts, completions):
        taken, self.scores = self.scores[: len(prompts)], self.scores[len(prompts) :]
        return taken


def run(judge, engine=None, prompts=PROMPTS, **options):
    settings = {
        "form": "the_answer_is",
        "samples": 0,
        "temperature": 1.0,
        "seed": 0,
        "sampling": Sampling(32),
    }
    return evaluate(engine or Engine(), prompts, lambda p: [1, 2], judge=judge, **{**settings, **options})


@pytest.fixture(scope="module")
def judge():
    with Rewards(judge_specs("the_answer_is", RewardSpec("format"))) as rewards:
        yield rewards


def test_strict_lenient_and_shape_of_the_completions(judge):
    evaluation, records = run(judge)
    assert evaluation["strict"] == {"accuracy": 0.25, "ci95": list(wilson(1, 4)), "n": 4}
    assert evaluation["lenient"] == {"accuracy": 0.5, "ci95": list(wilson(2, 4)), "n": 4}
    assert evaluation["sampled"] is None
    assert evaluation["length"] == 2.5
    assert evaluation["steps_share"] == 0.25
    assert evaluation["truncated"] == 0.25
    assert "failures" not in evaluation
    assert [(r["strict"], r["lenient"], r["total"]) for r in records] == [
        (True, True, 1.0),
        (False, True, 0.0),
        (False, False, 0.0),
        (False, False, 0.0),
    ]
    assert records[1]["id"] == "p1"
    assert records[1]["prompt"] == "q1"
    assert records[1]["completion"] == GREEDY[1]
    assert records[3]["finish"] == "length"
    assert records[3]["tokens"] == 4


def test_sampled_is_strict_and_clustered_by_question(judge):
    engine = Engine()
    evaluation, records = run(judge, engine, samples=4, temperature=0.7, sampling=Sampling(32, top_p=0.9))
    assert evaluation["sampled"]["accuracy"] == 1 / 16
    assert evaluation["sampled"]["n"] == 4
    assert evaluation["sampled"]["samples"] == 16
    assert len(records) == 4
    (_, n1, greedy, seeds1), (_, n2, sampled, seeds2) = engine.calls
    assert (n1, n2) == (1, 4)
    assert greedy.temperature == 0
    assert sampled == Sampling(32, temperature=0.7, top_p=0.9)
    assert seeds1 == seeds2


def test_seeds_belong_to_prompts_not_to_places(judge):
    engine = Engine()
    run(judge, engine)
    run(judge, engine, prompts=PROMPTS[::-1], seed=0)
    run(judge, engine, seed=1)
    first, turned, other = (call[3] for call in engine.calls)
    assert first == turned[::-1]
    assert len(set(first)) == 4
    assert not set(first) & set(other)
    assert all(0 <= seed < 2**63 for seed in first + other)


def test_progress_counts_greedy_and_sampled_together(judge):
    seen = []
    run(judge, samples=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 12), (2, 12), (3, 12), (4, 12), (6, 12), (8, 12), (10, 12), (12, 12)]


def test_a_progress_callback_may_stop_the_evaluation(judge):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(judge, on_progress=stop)


def test_a_failed_verdict_counts_as_wrong_and_is_reported():
    failed = Score(None, {"a": None, "b": 1.0}, {"a": "took longer than 10 s"})
    evaluation, records = run(Judge([Score(1.0, {"a": 1.0, "b": 1.0}), failed, failed, failed]))
    assert evaluation["strict"]["accuracy"] == 0.25
    assert evaluation["strict"]["n"] == 4
    assert evaluation["failures"] == {"a: took longer than 10 s": 3}
    assert records[1]["strict"] is False
    assert records[1]["total"] is None


def test_a_rule_that_does_not_apply_leaves_the_prompt_out():
    nothing = Score(None, {"a": None, "b": None})
    right = Score(1.0, {"a": 1.0, "b": 1.0})
    evaluation, records = run(Judge([right, nothing, right, nothing]))
    assert evaluation["strict"]["n"] == 2
    assert records[1]["strict"] is None
    with pytest.raises(PosttrainError, match=r"data\.answer"):
        run(Judge([nothing] * 4))


def test_without_a_form_the_first_reward_decides():
    specs = judge_specs(None, RewardSpec("./mine.py:fn", 0.3, {"x": 1}))
    assert specs[0] == RewardSpec("./mine.py:fn", 1.0, {"x": 1})
    assert specs[1].args == {"form": "last_number"}
    with Rewards(judge_specs(None, RewardSpec("accuracy", 1.0, {"form": "the_answer_is"}))) as twice:
        evaluation, _ = run(twice, form=None)
    assert evaluation["strict"]["accuracy"] == 0.25
    assert evaluation["lenient"]["accuracy"] == 0.5


def test_odd_model_text_gets_a_verdict(judge):
    greedy = ["٥", "The answer is: 7\ud800\x00", "9" * 5000 + "^" * 200, "<answer>" * 500]
    evaluation, _ = run(judge, Engine(greedy))
    assert evaluation["strict"]["n"] == 4


def test_no_prompts_and_a_judge_that_cannot_tell_its_rewards_apart():
    with pytest.raises(PosttrainError, match=r"data\.heldout"):
        run(Judge([]), prompts=[])
    with pytest.raises(ValueError, match="different names"):
        run(Judge([], names=("accuracy", "accuracy")))
