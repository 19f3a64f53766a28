"""vLLM as an answerer, against a stand-in of its engine: what is asked, what comes of it, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from posttrain import models
from posttrain.harness import vllm as module
from posttrain.harness.answer import Answer, Request
from posttrain.harness.vllm import VllmAnswerer
from posttrain.stop import Stopped
from posttrain.types import PosttrainError, Prompt, Sampling

GREEDY = Sampling(4, temperature=0.0)


class Engine:
    """Says each prompt's last token as often as it is long, and ends; no more than max_tokens in all."""

    def __init__(self) -> None:
        self.under: dict[str, tuple[list[int], Any]] = {}
        self.most, self.aborted = 0, []

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any) -> str:
        if len(prompt["prompt_token_ids"]) > 40:
            raise ValueError("longer than max_model_len")
        self.under[name] = prompt["prompt_token_ids"], params
        self.most = max(self.most, len(self.under))
        return name + "-internal"

    def step(self) -> list[Any]:
        name = list(self.under)[-1]  # in another order than asked
        ids, params = self.under.pop(name)
        tokens = ([ids[-1]] * len(ids) + [1])[: params.max_tokens]
        output = SimpleNamespace(token_ids=tokens, finish_reason="stop" if tokens[-1] == 1 else "length")
        running = [SimpleNamespace(request_id=other, finished=False, outputs=[]) for other in self.under]
        return [*running, SimpleNamespace(request_id=name, finished=True, outputs=[output])]

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            del self.under[name]


@pytest.fixture
def engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    tokenizer = models.load("tiny")[1]
    fake, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    llm = SimpleNamespace(llm_engine=made, get_tokenizer=lambda: tokenizer)
    vars(fake).update(LLM=lambda *_, **__: llm, SamplingParams=SimpleNamespace)
    vars(params).update(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final"))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    return made


def request(text: str, seed: int = 7) -> Request:
    return Request(text, 0, Prompt(text, text, None), seed)


def test_answers_come_back_with_their_questions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", 3)
    answerer = VllmAnswerer("tiny", "float32")
    texts, told, answers = ["a", "bb", "ccc", "dddd", "eeeee", "f" * 50], [], []
    answerer.answer([request(t) for t in texts], GREEDY, answers.append, lambda *k: told.append(k))
    by = {answer.id: answer for answer in answers}
    assert len(answers) == len(by) == 6 and engine.most == 3
    assert by["bb"] == Answer("bb", 0, "bb", 3, "stop")
    assert by["dddd"] == Answer("dddd", 0, "dddd", 4, "length")
    assert by["f" * 50].error == "vLLM does not take it: longer than max_model_len"
    assert told == sorted(told) and told[-1] == (6, 6)
    assert answerer.describe()["engine"] == "vllm" and answerer.describe()["compute"] == "float32"


def test_greedy_needs_no_seed_and_sampling_has_its_own(engine: Engine) -> None:
    answerer = VllmAnswerer("tiny", "float32")
    sampling = Sampling(4, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1)
    greedy = answerer._params(request("a"), GREEDY)
    assert (greedy.seed, greedy.temperature, greedy.max_tokens) == (None, 0.0, 4)
    drawn = answerer._params(request("a", seed=9), sampling)
    assert (drawn.seed, drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p) == (9, 0.5, 3, 0.9, 0.1)


@pytest.mark.parametrize("stop", [Stopped(2), KeyboardInterrupt()], ids=["Stopped", "KeyboardInterrupt"])
def test_stopping_aborts_what_is_under_way(stop: BaseException, engine: Engine) -> None:
    def watch(done: int, total: int) -> None:
        if done == 2:
            raise stop

    answerer, answers = VllmAnswerer("tiny", "float32"), []
    with pytest.raises(type(stop)):
        answerer.answer([request(t) for t in "abcde"], GREEDY, answers.append, watch)
    assert len(answers) == 2 and len(engine.aborted) == 3 and not engine.under
    answerer.answer([request("z")], GREEDY, answers.append)
    assert answers[-1].completion == "z"


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PosttrainError, match=r"pip install 'posttrain\[vllm\]'"):
        VllmAnswerer("tiny")
