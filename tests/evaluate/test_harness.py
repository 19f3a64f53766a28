"""The held-out evaluation of a made-up model, and the real rewards process as its judge."""

import pytest

from posttrain.evaluate.harness import evaluate, judge_specs
from posttrain.evaluate.metrics import wilson
from posttrain.harness.answer import Answer, failed, seed_of
from posttrain.rewards import Rewards, RewardSpec
from posttrain.types import PosttrainError, Prompt, Sampling, Score

GREEDY = [
    "So 2 + 3 = 5.\nThe answer is: 5",  # right in both ways, with a step
    "So there are 7 apples",  # only the number
    "The answer is: 9",  # wrong
    "",
]
PROMPTS = [Prompt(f"p{i}", f"q{i}", answer) for i, answer in enumerate(["5", "7", "8", "1"])]


class Model:
    """Answers GREEDY at temperature 0; sampled, right once for the first prompt and never for the others."""

    def __init__(self, greedy=GREEDY):
        self.greedy, self.calls = greedy, []

    def answer(self, requests, sampling, on_answer, on_progress=None):
        self.calls.append((requests, sampling))
        for done, request in enumerate(requests, 1):
            i = int(request.id[1:])
            text = f"The answer is: {5 if i == request.sample == 0 else 1000}"
            if sampling.temperature == 0:
                text = self.greedy[i]
            finish = "length" if i == 3 else "stop"
            on_answer(Answer(request.id, request.sample, text, i + 1, finish))
            if on_progress:
                on_progress(done, len(requests))

    def describe(self):
        return {}

    def close(self):
        raise AssertionError("the policy's memory is the loop's to give back")


class Judge:
    """Gives prepared scores, in order."""

    def __init__(self, scores, names=("a", "b")):
        self.names, self.scores = list(names), scores

    def score(self, prompts, completions):
        taken, self.scores = self.scores[: len(prompts)], self.scores[len(prompts) :]
        return taken


def run(judge, model=None, prompts=PROMPTS, **options):
    settings = {
        "form": "the_answer_is",
        "samples": 0,
        "temperature": 1.0,
        "seed": 0,
        "sampling": Sampling(32),
    }
    return evaluate(model or Model(), prompts, judge=judge, **{**settings, **options})


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


@pytest.mark.parametrize(
    ("answers", "said"), [(["[1, 2, 3, 4]"] * 4, False), (["[1, 2]", "a", "b", "1000"], True)]
)
def test_a_last_number_is_not_looked_for_where_no_answer_is_one(answers, said):
    prompts = [Prompt(f"p{i}", f"q{i}", answer) for i, answer in enumerate(answers)]
    with Rewards(judge_specs(None, RewardSpec("iou"))) as judge:
        evaluation, _ = run(judge, prompts=prompts, form=None)
    assert (evaluation["lenient"] is not None) is said
    assert evaluation["strict"]["n"] == 4


def test_sampled_is_strict_and_clustered_by_question(judge):
    model = Model()
    evaluation, records = run(judge, model, samples=4, temperature=0.7, sampling=Sampling(32, top_p=0.9))
    assert evaluation["sampled"]["accuracy"] == 1 / 16
    assert evaluation["sampled"]["n"] == 4
    assert evaluation["sampled"]["samples"] == 16
    assert len(records) == 4
    (once, greedy), (drawn, sampled) = model.calls
    assert [request.key for request in once] == [(f"p{i}", 0) for i in range(4)]
    assert [request.key for request in drawn] == [(f"p{i}", k) for i in range(4) for k in range(4)]
    assert greedy.temperature == 0
    assert sampled == Sampling(32, temperature=0.7, top_p=0.9)
    assert all(request.seed == seed_of(0, *request.key) for request in drawn)


def test_seeds_belong_to_prompts_not_to_places(judge):
    model = Model()
    run(judge, model)
    run(judge, model, prompts=PROMPTS[::-1], seed=0)
    run(judge, model, seed=1)
    first, turned, other = ([request.seed for request in call[0]] for call in model.calls)
    assert first == turned[::-1]
    assert len(set(first)) == 4
    assert not set(first) & set(other)
    assert all(0 <= seed < 2**63 for seed in first + other)


def test_progress_counts_greedy_and_sampled_together(judge):
    seen = []
    run(judge, samples=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


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


def test_a_prompt_that_no_answer_fits_behind_is_left_out_and_reported(judge):
    class Short(Model):
        def answer(self, requests, sampling, on_answer, on_progress=None):
            super().answer(requests[1:], sampling, on_answer, on_progress)
            on_answer(failed(requests[0], "the prompt has 9 tokens"))

    evaluation, records = run(judge, Short())
    assert evaluation["strict"]["n"] == 3 and evaluation["length"] == 3.0
    assert evaluation["failures"] == {"request: the prompt has 9 tokens": 1}
    assert (records[0]["strict"], records[0]["finish"], records[0]["tokens"]) == (None, "error", None)


def test_rewards_that_count_tokens_can():
    long = RewardSpec("overlong", 1.0, {"max_tokens": 3, "buffer": 1})
    with Rewards(judge_specs(None, long)) as counting:
        _, records = run(counting, form=None)
    assert [record["parts"]["overlong"] for record in records] == [0.0, 0.0, -1.0, -1.0]


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
    evaluation, _ = run(judge, Model(greedy))
    assert evaluation["strict"]["n"] == 4


def test_no_prompts_and_a_judge_that_cannot_tell_its_rewards_apart():
    with pytest.raises(PosttrainError, match=r"data\.heldout"):
        run(Judge([]), prompts=[])
    with pytest.raises(ValueError, match="different names"):
        run(Judge([], names=("accuracy", "accuracy")))
