"""The answerer for OpenAI-compatible servers against a real one on loopback that behaves in every bad way."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from posttrain.harness import served
from posttrain.harness.answer import Answer, Request
from posttrain.harness.served import OpenAIAnswerer
from posttrain.stop import Stopped
from posttrain.types import PosttrainError, Prompt, Sampling

pytest.importorskip("openai")
KEY = "sk-very-secret"
GREEDY = Sampling(16, temperature=0.0)

# What comes of the n-th request (from 0) for a text: a status and a body (JSON or raw bytes), or a misdeed.
Reply = tuple[int, Any] | str
Script = Callable[[str, int], Reply]


def said(text: str, finish: str | None = "stop", tokens: int = 3) -> tuple[int, Any]:
    """A reply that is right for both kinds of completions."""
    choice = {
        "index": 0,
        "text": text,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 4}
    return 200, {"id": "1", "object": "?", "created": 1, "model": "m", "choices": [choice], "usage": usage}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: Script = lambda text, n: said(f"<{text}>")
        self.models: Reply = (200, {"object": "list", "data": []})
        self.seen: list[tuple[str, dict[str, Any], str]] = []  # path, body, authorization
        self.busy = self.most = 0
        self.lock, self.over = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the other side hung up, as some tests want


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        server = self.server
        with server.lock:
            n = sum(other[1] == body for other in server.seen)
            server.seen.append((self.path, body, self.headers["authorization"]))
            server.busy += 1
            server.most = max(server.most, server.busy)
        try:
            self.reply(server.script(text, n))
        finally:
            with server.lock:
                server.busy -= 1

    def reply(self, what: Reply) -> None:
        if what == "hang":
            self.server.over.wait(30)
        if isinstance(what, str):
            self.close_connection = True
            if what == "half":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, body = what
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0.05")
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(served, "FIRST", 0.01)
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()


def request(text: str, chat: bool = True, seed: int = 2**40 + 5) -> Request:
    content: Any = [{"role": "user", "content": text}] if chat else text
    return Request(text, 0, Prompt(text, content, None), seed)


def ask(server: Server, *texts: str, sampling: Sampling = GREEDY, **how: Any) -> dict[str, Answer]:
    answers: list[Answer] = []
    OpenAIAnswerer("m", server.url, **how).answer([request(t) for t in texts], sampling, answers.append)
    assert len({answer.id for answer in answers}) == len(answers) == len(texts)
    return {answer.id: answer for answer in answers}


def test_answers_come_back_with_their_questions(server: Server) -> None:
    texts = [f"q{i}" for i in range(50)]
    two = threading.Barrier(2)

    def script(text: str, n: int) -> Reply:
        if text in ("q0", "q1") and n == 0:
            two.wait(20)
        return said(f"<{text}>", "length" if text == "q7" else "stop", len(text))

    server.script = script
    answers = ask(server, *texts, concurrency=8)
    for text in texts:
        finish = "length" if text == "q7" else "stop"
        assert answers[text] == Answer(text, 0, f"<{text}>", len(text), finish)
    assert 1 < server.most <= 8
    assert len(server.seen) == 50


def test_what_is_sent(server: Server) -> None:
    sampling = Sampling(64, temperature=0.7, top_p=0.9, top_k=20, min_p=0.1)
    some: list[Answer] = []
    answerer = OpenAIAnswerer("m", server.url)
    answerer.answer([request("chat")], GREEDY, some.append)
    answerer.answer([request("raw", chat=False)], sampling, some.append)
    (path, body, key), (raw_path, raw, _) = server.seen
    assert path == "/v1/chat/completions" and key == f"Bearer {KEY}"
    shared = {"model": "m", "seed": 5}  # the seed in 31 bits
    messages = [{"role": "user", "content": "chat"}]
    assert body == shared | {"messages": messages, "max_tokens": 16, "temperature": 0.0, "top_p": 1.0}
    assert raw_path == "/v1/completions"
    beyond = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    assert raw == shared | beyond | {"prompt": "raw", "max_tokens": 64}
    assert [answer.completion for answer in some] == ["<chat>", "<raw>"]


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"error": {"message": "slow down"}}),
        (500, b"oops"),
        (503, b""),
        (200, b"{not json"),
        (200, b"[]"),
        (200, {"choices": []}),
        (200, {"choices": None}),
        (200, b'"text"'),
        "drop",
        "half",
    ],
    ids=str,
)
def test_what_passes_is_tried_again(trouble: Reply, server: Server) -> None:
    server.script = lambda text, n: trouble if n < 3 else said("at last")
    assert ask(server, "q")["q"] == Answer("q", 0, "at last", 3, "stop")
    assert len(server.seen) == 4


def test_a_hanging_try_is_given_up_and_made_again(server: Server) -> None:
    server.script = lambda text, n: "hang" if n == 0 and text == "q1" else said("here")
    answers = ask(server, "q0", "q1", "q2", timeout=1.0)
    assert {answer.completion for answer in answers.values()} == {"here"}
    assert sum(body["messages"][0]["content"] == "q1" for _, body, _ in server.seen) > 1


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ((500, b"oops"), "status 500"),
        ((429, {"error": {"message": "slow down"}}), "slow down"),
        ("drop", "the connection failed"),
        ("hang", "did not answer in time"),
        ((200, b"{not json"), "cannot be read"),
        ((200, {"choices": []}), "cannot be read"),
    ],
    ids=str,
)
def test_what_never_passes_fails_at_the_deadline(
    trouble: Reply, why: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "FIRST", 0.1)
    server.script = lambda text, n: trouble if text == "bad" else said("fine")
    answers = ask(server, "bad", "good", deadline=1.0)
    assert answers["good"].completion == "fine"
    bad = answers["bad"]
    assert (bad.completion, bad.tokens, bad.finish) == ("", None, "error")
    assert bad.error is not None and bad.error.startswith("request failed: ") and why in bad.error


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ((400, {"error": {"message": "the prompt is too long"}}), "too long"),
        ((422, b"no"), "status 422"),
        (said("cut", "content_filter"), "content_filter"),
        (said("call", "tool_calls"), "tool_calls"),
        (said("?", None), "None"),
    ],
    ids=str,
)
def test_what_another_try_would_not_change_is_asked_once(reply: Reply, why: str, server: Server) -> None:
    server.script = lambda text, n: reply
    answer = ask(server, "q")["q"]
    assert (answer.finish, answer.completion) == ("error", "") and why in str(answer.error)
    assert len(server.seen) == 1


def test_no_text_at_all(server: Server) -> None:
    """A server that keeps reasoning apart sends no text when the tokens ran out before the answer."""
    status, body = said("", "length", 16)
    body["choices"][0]["message"]["content"] = None
    server.script = lambda text, n: (status, body)
    assert ask(server, "q")["q"] == Answer("q", 0, "", 16, "length")
    body["choices"][0]["finish_reason"] = "stop"
    assert ask(server, "q")["q"].error == "the server sent no text"


def test_newer_models_call_the_limit_something_else(server: Server) -> None:
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    refuse = (400, {"error": {"message": message}})
    server.script = lambda text, n: refuse if "max_tokens" in server.seen[-1][1] else said("fine")
    answers = ask(server, "q0", "q1", "q2", concurrency=1)
    assert {answer.completion for answer in answers.values()} == {"fine"}
    assert ["max_tokens" in body for _, body, _ in server.seen] == [True, False, False, False]


def test_no_server_is_told_once_and_at_once(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    some: list[Answer] = []
    with pytest.raises(PosttrainError, match=f"cannot reach {url} .*(refused|failed)"):
        OpenAIAnswerer("m", url).answer([request(f"q{i}") for i in range(1000)], GREEDY, some.append)
    assert not some


def test_a_server_that_hangs_from_the_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "PROBE", 0.2)
    server.models = "hang"
    with pytest.raises(PosttrainError, match="cannot reach"):
        ask(server, "q")
    assert not server.seen


@pytest.mark.parametrize("models", [(404, b"no"), (500, b""), (200, b"{"), (200, b"hello")], ids=str)
def test_a_server_without_a_list_of_models_is_there(models: Reply, server: Server) -> None:
    server.models = models
    assert ask(server, "q")["q"].completion == "<q>"


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("at", ["list", "requests"])
def test_a_wrong_key_or_model_is_told_once_without_the_key(status: int, at: str, server: Server) -> None:
    refuse = (status, {"error": {"message": f"Incorrect key provided: {KEY}, or no such model"}})
    if at == "list" and status != 404:
        server.models = refuse
    server.script = lambda text, n: refuse
    with pytest.raises(PosttrainError, match="refuses") as caught:
        ask(server, *(f"q{i}" for i in range(100)), concurrency=4)
    assert KEY not in str(caught.value) and "***" in str(caught.value)
    assert len(server.seen) <= 4


def test_the_key_is_in_no_record(server: Server) -> None:
    server.script = lambda text, n: (400, {"error": {"message": f"{KEY} {KEY} {'long ' * 500}"}})
    answer = ask(server, "q")["q"]
    assert KEY not in str(answer) and len(str(answer.error)) < 600
    url = server.url.replace("//", "//me:password@")
    answerer = OpenAIAnswerer("m", url)
    described = json.dumps(answerer.describe())
    assert KEY not in described and "password" not in described and server.url in described


def test_a_server_that_dies_on_the_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is not worn through: after a row of failures the run ends, with what was answered kept."""
    monkeypatch.setattr(served, "FIRST", 1000.0)  # longer than the deadline: one try
    some: list[Answer] = []
    server.script = lambda text, n: said("fine") if int(text) < 20 else (500, b"")
    answerer = OpenAIAnswerer("m", server.url, concurrency=4, deadline=60)
    with pytest.raises(PosttrainError, match="has stopped answering.*status 500"):
        answerer.answer([request(str(i)) for i in range(1000)], GREEDY, some.append)
    assert sum(answer.finish == "stop" for answer in some) in range(17, 21)
    assert sum(answer.finish == "error" for answer in some) in range(8, 100)
    # Questions that are refused one by one are no sign of that.
    server.script = lambda text, n: (400, {"error": {"message": "too long"}})
    assert len(ask(server, *map(str, range(100)), concurrency=4)) == 100


@pytest.mark.parametrize("stop", [Stopped(2), KeyboardInterrupt()], ids=["Stopped", "KeyboardInterrupt"])
@pytest.mark.parametrize("at", ["answer", "progress"])
def test_stopping_cancels_what_is_under_way(stop: BaseException, at: str, server: Server) -> None:
    server.script = lambda text, n: said("fine") if int(text) < 3 else "hang"
    some: list[Answer] = []

    def on_answer(answer: Answer) -> None:
        some.append(answer)
        if at == "answer" and len(some) == 3:
            raise stop

    def on_progress(done: int, total: int) -> None:
        assert total == 50
        if at == "progress" and done == 3:
            raise stop

    answerer = OpenAIAnswerer("m", server.url, concurrency=4)
    began = time.monotonic()
    with pytest.raises(type(stop)):
        answerer.answer([request(str(i)) for i in range(50)], GREEDY, on_answer, on_progress)
    assert time.monotonic() - began < 25, "it waited for the requests that hang"
    assert sorted(answer.id for answer in some) == ["0", "1", "2"]
    server.script = lambda text, n: said("again")
    answerer.answer([request("7")], GREEDY, some.append)
    assert some[-1].completion == "again"


def test_progress_is_told_to_the_end(server: Server) -> None:
    told: list[tuple[int, int]] = []
    answerer = OpenAIAnswerer("m", server.url)
    answerer.answer([request(str(i)) for i in range(9)], GREEDY, lambda _: None, lambda *k: told.append(k))
    assert told == sorted(told) and told[-1] == (9, 9) and told[0] == (0, 9)
    answerer.answer([], GREEDY, lambda _: None)


def test_images_are_refused(server: Server) -> None:
    content: Any = [{"role": "user", "content": [{"type": "image", "image": None}]}]
    asked = Request("i", 0, Prompt("i", content, None), 1)
    with pytest.raises(PosttrainError, match="holds an image"):
        OpenAIAnswerer("m", server.url).answer([asked], GREEDY, lambda _: None)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(PosttrainError, match="set OPENAI_API_KEY"):
        OpenAIAnswerer("m")
    with pytest.raises(PosttrainError, match="'localhost:8000' is no http"):
        OpenAIAnswerer("m", "localhost:8000")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(PosttrainError, match=r"pip install 'posttrain\[openai\]'"):
        OpenAIAnswerer("m", "http://localhost")
