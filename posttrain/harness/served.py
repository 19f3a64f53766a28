"""Answers from any server that speaks OpenAI's protocol (vLLM, llama.cpp, Ollama, a provider's).

Messages go to chat completions and raw text to completions. A request is tried again, with growing pauses,
after 408, 409, 429, 5xx, a time-out, a dropped connection or a reply that cannot be read, until its deadline;
what then has no answer becomes a failed one. All of it runs in one event loop in the caller's thread, so that
stopping cancels what is under way at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from posttrain.harness.answer import Answer, OnAnswer, OnProgress, Request, failed
from posttrain.types import PosttrainError, Prompt, Sampling

KEY, WHERE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
PROVIDER = "https://api.openai.com/v1"
POLL = 0.2  # seconds between two reports of progress
PROBE = 10.0  # seconds that a server may take to say that it is there
FIRST, LONGEST = 0.5, 30.0  # seconds of the first pause before trying again, and of the longest
AGAIN = (408, 409, 429)  # statuses, beside 5xx, that another try may change
HOPELESS = (401, 403, 404)  # statuses that every request would get: a wrong key, no such model
OTHER = "max_completion_tokens"  # what OpenAI's newer models want max_tokens to be called
IN_A_ROW = 8  # failed requests, or twice as many as run at once, after which the server counts as gone

Fault = Literal["request", "server", "all"]


class _Unreadable(Exception):
    """A reply that is none of the protocol's."""


class OpenAIAnswerer:
    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 16,
        deadline: float = 600.0,
        timeout: float = 300.0,
    ):
        """
        Args:
            base_url: such as http://localhost:8000/v1; $OPENAI_BASE_URL, then OpenAI's own, if not said.
            concurrency: most requests under way at once.
            deadline: seconds a request may take with all its tries and pauses. timeout: those of one try.

        The key is $OPENAI_API_KEY. It is kept out of all that is recorded or raised.

        Raises:
            PosttrainError: the client is not installed, or there is no key for OpenAI's own server.
        """
        try:
            import openai
        except ImportError:
            raise PosttrainError(
                "the client of OpenAI-compatible servers is missing; run: pip install 'posttrain[openai]'"
            ) from None
        self._openai: Any = openai
        self.model, self.base_url = model, base_url or os.environ.get(WHERE) or PROVIDER
        self.concurrency, self.deadline, self.timeout = concurrency, deadline, timeout
        self._key = os.environ.get(KEY, "")
        if not self._key and self.base_url == PROVIDER:
            raise PosttrainError(f"set {KEY} to your key, or give the base_url of a server that needs none")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PosttrainError(f"base_url {self._clean(self.base_url)!r} is no http(s) address")
        # A name and password in the address are secrets too.
        self.shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
        self._limit = "max_tokens"  # or OTHER, once the server has asked for that
        self._reached = False

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "openai",
            "model": self.model,
            "base_url": self.shown,
            "versions": {"openai": version("openai")},
        }

    def close(self) -> None:
        pass  # a client lives for one call of `answer`

    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_answer: OnAnswer,
        on_progress: OnProgress | None = None,
    ) -> None:
        """See harness.answer.Answerer.

        Raises:
            PosttrainError: the server cannot be reached, refuses the key or the model, or has stopped
                answering (many requests in a row failed).
        """
        for request in requests:
            _check_text(request.prompt)
        if requests:
            asyncio.run(self._all(requests, sampling, on_answer, on_progress))

    async def _all(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_answer: OnAnswer,
        on_progress: OnProgress | None,
    ) -> None:
        left = iter(requests)
        done = good = row = 0  # handed over; of them with a completion; failures of the server's in a row

        async def work(client: Any) -> None:
            nonlocal done, good, row
            for request in left:
                answer, fault = await self._one(client, request, sampling)
                if fault == "all" and not good:
                    raise PosttrainError(f"{self.shown} refuses {self.model!r}: {answer.error}")
                done, good = done + 1, good + (answer.finish != "error")
                row = row + (fault == "server") if fault else 0
                on_answer(answer)
                if row >= max(IN_A_ROW, 2 * self.concurrency):
                    raise PosttrainError(
                        f"{self.shown} has stopped answering: {row} requests in a row failed, the last with "
                        f"{answer.error!r}; what was answered is kept"
                    )

        async with self._client() as client:
            await self._probe(client)
            workers = {asyncio.create_task(work(client)) for _ in range(min(self.concurrency, len(requests)))}
            try:
                waiting = workers
                while waiting:
                    if on_progress is not None:
                        on_progress(done, len(requests))
                    ended, waiting = await asyncio.wait(
                        waiting, timeout=POLL, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for worker in ended:
                        worker.result()
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if on_progress is not None:
            on_progress(done, len(requests))

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        # Its own retries know no deadline: they are off, and ours are below.
        async with self._openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self.base_url, timeout=self.timeout, max_retries=0
        ) as client:
            yield client

    async def _probe(self, client: Any) -> None:
        """Ask for the list of models, once: whatever a server says to that, it is there."""
        if self._reached:
            return
        api = self._openai
        try:
            await client.models.list(timeout=PROBE)
        except (api.AuthenticationError, api.PermissionDeniedError) as error:
            raise PosttrainError(
                f"{self.shown} refuses the key in {KEY}: {self._clean(error.message)[:500]}"
            ) from None
        except api.APIConnectionError as error:  # time-outs too
            cause = error.__cause__ or error
            said = self._clean(str(cause)) or "it does not answer"
            raise PosttrainError(f"cannot reach {self.shown} ({type(cause).__name__}: {said})") from None
        except (api.APIError, ValueError):
            pass  # it has no such list, or is busy: the requests will tell
        self._reached = True

    async def _one(self, client: Any, request: Request, sampling: Sampling) -> tuple[Answer, Fault | None]:
        """-> the answer, and whose fault it is that there is none: the request's, the server's, or that of
        what all requests have in common (the key, the model)."""
        end, pause, tries, trouble = time.monotonic() + self.deadline, FIRST, 0, ""
        api = self._openai
        while True:
            tries, limit = tries + 1, self._limit
            asked: float | None = None
            left = max(0.001, end - time.monotonic())
            try:
                async with asyncio.timeout(min(self.timeout, left)):
                    return await self._ask(client, request, sampling, limit), None
            except (TimeoutError, api.APITimeoutError):
                if not trouble or left > self.timeout:  # a last try cut short says less than the one before
                    trouble = "it did not answer in time"
            except api.APIConnectionError as error:
                cause = error.__cause__ or error
                trouble = f"the connection failed ({type(cause).__name__}: {cause})"
            except api.APIStatusError as error:
                status, trouble = error.status_code, f"status {error.status_code}: {error.message}"
                if status == 400 and limit == "max_tokens" and OTHER in error.message:
                    self._limit = OTHER
                    continue
                if status < 500 and status not in AGAIN:
                    return failed(request, self._short(trouble)), "all" if status in HOPELESS else "request"
                asked = _seconds(error.response.headers.get("retry-after"))
            except (_Unreadable, api.APIError, ValueError) as error:
                trouble = f"a reply that cannot be read ({type(error).__name__}: {error})"
            # Pauses of different lengths, so that requests refused together do not come back together.
            wait = max(asked or 0.0, pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST)
            if time.monotonic() + wait >= end:
                many = f"after {tries} tries, " if tries > 1 else ""
                return failed(request, self._short(many + trouble)), "server"
            await asyncio.sleep(wait)

    async def _ask(self, client: Any, request: Request, sampling: Sampling, limit: str) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed & 0x7FFFFFFF,  # some servers hold it in 32 bits
        }
        # Not of the protocol, though many servers take them: sent only where they change something.
        beyond = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        body["extra_body"] = {name: value for name, value in beyond.items() if value}
        content = request.prompt.content
        if isinstance(content, str):
            body |= {"prompt": content, "max_tokens": sampling.max_tokens}
            reply = await client.completions.create(**body)
        else:
            body |= {"messages": content, limit: sampling.max_tokens}
            reply = await client.chat.completions.create(**body)
        return _answer(request, reply)

    def _short(self, text: str) -> str:
        return "request failed: " + " ".join(self._clean(text).split())[:500]

    def _clean(self, text: str) -> str:
        """Without the key and whatever stands before an @ in the address, which servers and errors repeat."""
        for secret in (self._key, urlsplit(self.base_url).netloc.rpartition("@")[0]):
            text = text.replace(secret, "***") if secret else text
        return text


def _answer(request: Request, reply: Any) -> Answer:
    """
    Raises:
        _Unreadable: the reply is not what the protocol says. The client hands on whatever JSON it gets.
    """
    try:
        choice = reply.choices[0]
        text = choice.text if isinstance(request.prompt.content, str) else choice.message.content
        finish = choice.finish_reason
        usage = getattr(reply, "usage", None)
        tokens = getattr(usage, "completion_tokens", None)
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise _Unreadable(f"{type(reply).__name__}: {error}") from None
    if finish not in ("stop", "length"):
        return failed(request, f"the server ended it with finish_reason {finish!r}")
    if text is None and finish == "length":
        text = ""  # all tokens went into reasoning that the server keeps apart
    if not isinstance(text, str):
        return failed(request, "the server sent no text")
    whole = tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None
    return Answer(request.id, request.sample, text, whole, finish)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is left to our own pauses."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _check_text(prompt: Prompt) -> None:
    if prompt.pictures:
        raise PosttrainError(f"question {prompt.id!r} holds an image, which this engine does not send")
