"""Engines of this process as answerers: what comes back, in pieces, whatever is asked beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import models
from posttrain.harness import native as module
from posttrain.harness.answer import Answer, Request, requests_for, seed_of
from posttrain.harness.native import NativeAnswerer, native
from posttrain.harness.records import Answers
from posttrain.recipe import Model
from posttrain.rollout.engine import Engine
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.plain import PlainEngine
from posttrain.rollout.steady import SteadyEngine
from posttrain.stop import Stopped
from posttrain.types import PosttrainError, Prompt, Sampling

Build = Callable[..., PreTrainedModel]
SAMPLED = Sampling(12, temperature=1.1)
PROMPTS = {f"q{i}": Prompt(f"q{i}", f"{'<7>' * (i % 5)}<{i + 2}>", None) for i in range(12)}
KEYS = [(id, k) for id in PROMPTS for k in range(3)]


class Words:
    """The tests' tokenizer has no way to cut a text: this reads "<5><9>" as [5, 9]."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.decode, self.chat_template = tokenizer.decode, None

    def encode(self, text: str) -> list[int]:
        return [int(part) for part in text.strip("<>").split("><")] if text else []


@pytest.fixture(params=[SteadyEngine, NativeEngine, PlainEngine])
def engine(request: Any, build: Build, tokenizer: PreTrainedTokenizerFast) -> Engine:
    made = request.param(build(), tokenizer, torch.float32)
    made.ends = list(range(1, 9)) if request.param is PlainEngine else torch.arange(1, 9)
    return made


@pytest.fixture
def words(tokenizer: PreTrainedTokenizerFast) -> Any:
    return Words(tokenizer)


def ask(answerer: NativeAnswerer, requests: list[Request], sampling: Sampling = SAMPLED) -> list[Answer]:
    answers: list[Answer] = []
    answerer.answer(requests, sampling, answers.append)
    assert sorted(answer.key for answer in answers) == sorted(request.key for request in requests)
    return sorted(answers, key=lambda answer: answer.key)


def test_answers_are_the_engines(engine: Engine, words: Any) -> None:
    answers = ask(NativeAnswerer(engine, models.text_encoder(words)), requests_for(KEYS, PROMPTS, 5))
    assert {answer.finish for answer in answers} == {"stop", "length"}
    for answer in answers:
        tokens = words.encode(str(PROMPTS[answer.id].content))
        [[alone]] = engine.generate([tokens], 1, SAMPLED, [seed_of(5, *answer.key)])
        assert (answer.completion, answer.finish) == (alone.text, alone.finish)
        assert answer.tokens == len(alone.tokens) and answer.error is None


def test_stopped_on_the_way_and_gone_on_with(engine: Engine, words: Any, tmp_path: Path) -> None:
    """What had arrived is kept, the rest is drawn as if nothing had happened."""
    answerer = NativeAnswerer(engine, models.text_encoder(words))
    whole = ask(answerer, requests_for(KEYS, PROMPTS, 5))
    for stop in (Stopped(15), KeyboardInterrupt()):
        path = tmp_path / f"{type(stop).__name__}.jsonl"
        for most in (5, 11, 17, 100):
            with Answers(path) as answers:
                missing = answers.missing(list(PROMPTS), 3)

                def watch(done: int, total: int, missing=missing, most=most, stop=stop) -> None:
                    assert total == len(missing)
                    if done >= most:
                        raise stop

                try:
                    answerer.answer(requests_for(missing, PROMPTS, 5), SAMPLED, answers.add, watch)
                except type(stop):
                    assert len(KEYS) - len(missing) < len(answers)
        with Answers(path) as answers:
            assert sorted(answers, key=lambda answer: answer.key) == whole


def test_calls_of_a_few_requests_each(engine: Engine, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer, requests = NativeAnswerer(engine, models.text_encoder(words)), requests_for(KEYS, PROMPTS, 5)
    whole = ask(answerer, requests)
    monkeypatch.setattr(module, "CALL", 5)
    told: list[tuple[int, int]] = []
    answers: list[Answer] = []
    answerer.answer(requests[::-1], SAMPLED, answers.append, lambda *k: told.append(k))
    assert sorted(answers, key=lambda answer: answer.key) == whole
    assert told == sorted(told) and told[-1] == (36, 36)


def test_the_context_cuts_and_refuses(engine: Engine, words: Any) -> None:
    prompts = {str(n): Prompt(str(n), "<9>" * n, None) for n in (1, 10, 15, 16, 30)}
    requests = requests_for([(id, 0) for id in prompts], prompts, 0)
    never: Any = [1000] if isinstance(engine, PlainEngine) else torch.tensor([1000])
    engine.ends = never  # pyright: ignore[reportAttributeAccessIssue]
    engine.context = 16
    answers = {
        answer.id: answer for answer in ask(NativeAnswerer(engine, models.text_encoder(words)), requests)
    }
    assert {id: answer.tokens for id, answer in answers.items()} == {
        "1": 12,
        "10": 6,
        "15": 1,
        "16": None,
        "30": None,
    }
    assert answers["15"].finish == "length"
    assert answers["30"].error == "the prompt has 30 tokens, the model takes 16"


def test_messages_without_a_template(engine: Engine, words: Any) -> None:
    prompt = Prompt("a", [{"role": "user", "content": "hi"}], None)
    with pytest.raises(PosttrainError, match="no chat template"):
        ask(NativeAnswerer(engine, models.text_encoder(words)), [Request("a", 0, prompt, 1)])


@pytest.mark.parametrize("steady", [True, False])
def test_a_model_by_name(steady: bool, home: Path) -> None:
    answerer = native(Model(name="tiny", compute="float32"), rows=8, steady=steady)
    prompts = {str(i): Prompt(str(i), [{"role": "user", "content": "?" * i}], None) for i in range(1, 4)}
    answers = ask(answerer, requests_for([(id, 0) for id in prompts], prompts, 0), Sampling(4, temperature=0))
    assert all(answer.error is None for answer in answers)
    said = answerer.describe()
    assert (said["engine"], said["model"], said["compute"]) == ("native", "tiny", "float32")
    assert said["steady"] is steady and set(said["versions"]) == {"torch", "transformers"}
    answerer.close()
