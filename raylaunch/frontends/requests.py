"""Requests on the driver's side: from tokens that arrive to chunks of text that a caller waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from raylaunch.errors import EngineBusy, RaylaunchError, RequestError, RequestFailed
from raylaunch.frontends.client import RankZeroClient
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.frontends.text import AnswerText
from raylaunch.wire import FinishReason, Output, TokenLogprob

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        request_id: of its request.
        text: what it adds; "" where the engine has no tokenizer, or while a character is incomplete.
        token_ids: what it adds, as tokens.
        finish_reason: on the last chunk: ``stop``, ``length`` or ``abort``.
        logprobs: one entry per token, if they were asked for.
        matched: on the last chunk, if that says ``stop``: the stop string or the token that ended the answer.
        prompt_logprobs: on the first chunk, if they were asked for: those of the prompt's tokens but the first.
        matched_logprob: on the last chunk, if they were asked for and a token ended the answer: that of the token.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    matched: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    matched_logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer. ``prompt_tokens`` is the prompt's length; what follows it as in :class:`Chunk`."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    matched: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


def notify(listener: Callable[[Chunk | RaylaunchError], object], item: Chunk | RaylaunchError) -> bool:
    """Calls a request's listener. Whether it could take the item: a caller's event loop may be closed already, and
    must not keep the other callers from what is theirs."""
    try:
        listener(item)
    except Exception:
        log.exception("the caller of a request could not be told")
        return False
    return True


@dataclass
class RunningRequest:
    """One request between its submission and its last chunk. Ends once, whichever thread is the first to end it.

    Attributes:
        listener: called with each chunk, or with the error that ends the request, on the receiving thread.
        wire_id: what the ranks know it by. They may still run a request whose caller has its end, and gives its id to
            another; and each group that it is sent to knows it by another.
        given: tokens that were passed on.
        client: of the ranks that answer it, or did last.
        waits_until: while there are no ranks, how long it waits for others, on the monotonic clock.
        aborted: whether ranks were told to end it, who may be lost already.
        on_end: called once, before the listener hears of the end.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    tokenizer: Any
    listener: Callable[[Chunk | RaylaunchError], object]
    wire_id: str = ""
    on_end: Callable[[], object] = lambda: None
    finished: bool = False
    given: list[int] = field(default_factory=list)
    client: RankZeroClient | None = None
    waits_until: float = 0.0
    aborted: bool = False
    _ending: threading.Lock = field(default_factory=threading.Lock)
    _text: AnswerText | None = None  # made with the first output: the tokenizer may fail, as a request does

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt)

    def receive(self, output: Output) -> bool:
        """Passes on what an output adds. Returns whether the rank must be told to abort: a stop string was found, the
        output cannot be made text, or the caller cannot be told any more. Never raises."""
        if self.finished:
            return False
        if output.finish == "error":
            self.fail(RequestFailed(f"request {self.request_id}: {output.message}"))
            return False
        try:
            text = self._text_of(output)
        except Exception as error:  # of the model's tokenizer, which may run code of its own
            log.exception("tokens of request %s cannot be made text", self.request_id)
            self.fail(RequestFailed(f"request {self.request_id}: its tokens cannot be made text: {error}"))
            return output.finish is None
        stopped = self._text.matched if self._text else None
        finish = "stop" if stopped else output.finish
        if finish is not None and not self.end():
            return False  # the caller has left meanwhile
        told = True
        self.given += output.tokens
        if text or output.tokens or finish:
            logprobs, prompt = (
                None if given is None else tuple(given) for given in (output.logprobs, output.prompt_logprobs)
            )
            matched = stopped or output.matched
            chunk = Chunk(
                self.request_id, text, tuple(output.tokens), finish, logprobs, matched, prompt, output.matched_logprob
            )
            told = notify(self.listener, chunk)
        gone = not told and self.end()
        return output.finish is None and (bool(stopped) or gone)

    def _text_of(self, output: Output) -> str:
        if self.tokenizer is None:
            return ""
        if self._text is None:
            self._text = AnswerText(self.tokenizer, self.prompt, self.params.stop)
        text = self._text.push(output.tokens)
        return text + self._text.finish(output.matched) if output.finish else text

    def fail(self, error: RaylaunchError) -> None:
        """Ends the request with an error. Does nothing if it has ended. Never raises."""
        if self.end():
            notify(self.listener, error)

    def abort(self) -> None:
        """Ends the request as ranks would that were told to. Never raises."""
        self.receive(Output(self.wire_id, [], "abort"))

    def end(self) -> bool:
        """Ends the request without another word. Returns whether it had not ended before."""
        with self._ending:
            ended, self.finished = self.finished, True
        if not ended:
            self.on_end()
        return not ended


class Identified(Protocol):
    """What has a request's id."""

    @property
    def request_id(self) -> str: ...


R = TypeVar("R", bound=Identified)


class RequestTable(Generic[R]):
    """The requests that run, by id. Thread-safe.

    Args:
        limit: how many may run; None for any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._running: dict[str, R] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._running)

    def add(self, request: R) -> None:
        """Raises :class:`RequestError` if the id is in use, :class:`EngineBusy` if too many requests run."""
        with self._lock:
            if request.request_id in self._running:
                raise RequestError(f"request id {request.request_id!r} is in use by a running request")
            if self._limit is not None and len(self._running) >= self._limit:
                raise EngineBusy(f"{self._limit} requests are running or waiting already; try again later")
            self._running[request.request_id] = request

    def get(self, request_id: str) -> R | None:
        return self._running.get(request_id)

    def remove(self, request_id: str) -> None:
        with self._lock:
            self._running.pop(request_id, None)

    def all(self) -> list[R]:
        """Every request."""
        with self._lock:
            return list(self._running.values())

    def pop_all(self) -> list[R]:
        """Removes and returns every request."""
        with self._lock:
            requests = list(self._running.values())
            self._running.clear()
        return requests
