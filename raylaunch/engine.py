"""The Python API: an engine that is launched, answers requests, and is shut down."""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, overload

from ray.util.placement_group import PlacementGroup

from raylaunch.client import RankZeroClient
from raylaunch.config import LaunchConfig
from raylaunch.driver import StepListener
from raylaunch.errors import LaunchError, RaylaunchError, RequestError, RequestFailed
from raylaunch.model_check import ModelShape, check_model
from raylaunch.protocol import Step
from raylaunch.report import LaunchReport
from raylaunch.requests import Chunk, Completion, RequestTable, RunningRequest
from raylaunch.sampling import SamplingParams
from raylaunch.supervisor import Condition, Health, Supervisor
from raylaunch.tokenizer import load_tokenizer
from raylaunch.wire import Abort, Output, Submit

Prompt = str | Sequence[int]


class Engine:
    """A tensor-parallel model that answers requests.

    Use it as a context manager, or call :meth:`start` and :meth:`shutdown`. It works inside an existing Ray session,
    inside a Ray task or actor, and without any: then it starts a private one. All methods may be called from any
    thread, and many requests may run at once.

    Args:
        config: what to launch.
        placement_group: place the ranks here instead of in a group of their own; it is left alone at the end.
        listener: told before each step of the launch: the step, its index, the number of steps.

    Attributes:
        kv_tokens: tokens that the ranks' KV cache holds; 0 before the launch, or if the engine does not say.
    """

    def __init__(
        self,
        config: LaunchConfig,
        *,
        placement_group: PlacementGroup | None = None,
        listener: StepListener | None = None,
    ) -> None:
        self.config = config
        self._listener = listener
        self._loading: _Background | None = None
        self._supervisor = Supervisor(config, self._step, self._up, self._down, placement_group)
        limit = config.engine.max_running_requests + config.engine.max_waiting_requests
        self._requests = RequestTable(limit)
        self._client: RankZeroClient | None = None
        self._shape: ModelShape | None = None
        self._tokenizer: Any = None
        self.kv_tokens = 0

    # ---- life

    def start(self) -> Engine:
        """Launches. Returns when requests can be answered.

        Raises:
            ConfigError: the configuration cannot be launched; nothing was started.
            LaunchError: the launch failed; everything that was started has been given back.
        """
        if self._supervisor.condition is not Condition.NEW:
            raise RaylaunchError("an Engine is started once; make a new one")
        self._shape = check_model(self.config)
        # The tokenizer's import takes as long as the ranks' own: do both at once.
        self._loading = loading = _Background(lambda: load_tokenizer(self.config))
        self._supervisor.start()
        try:
            self._tokenizer = loading.result()
        except BaseException:
            self.shutdown()
            raise
        return self

    def shutdown(self) -> None:
        """Ends the ranks, fails the requests that still run, leaves Ray as it was found. May be called twice."""
        self._supervisor.stop()
        self._down(LaunchError("the engine was shut down"))

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def report(self) -> LaunchReport:
        """What the launch did; grows while it goes on."""
        return self._supervisor.report

    def health(self, ask_ranks: bool = True) -> Health:
        """Whether requests are answered now; asks every rank unless told not to. Never raises."""
        return self._supervisor.health(len(self._requests), ask_ranks)

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits while the group is launched or rebuilt; whether requests can be answered then."""
        end = time.monotonic() + timeout_s
        while self._supervisor.condition is Condition.LAUNCHING and time.monotonic() < end:
            time.sleep(0.05)
        return self._supervisor.condition is Condition.READY

    @property
    def failures(self) -> tuple[tuple[float, LaunchError], ...]:
        """The losses of the group since it first served: when (seconds since the epoch) and why."""
        return tuple(self._supervisor.failures)

    @property
    def last_error(self) -> LaunchError | None:
        """The last failure of the group, also after it was rebuilt; None if it never failed."""
        return self._supervisor.error or (self._supervisor.failures[-1][1] if self._supervisor.failures else None)

    @property
    def restarts(self) -> int:
        """How often the group was rebuilt."""
        return self.config.restarts - self._supervisor.restarts_left

    @property
    def model_name(self) -> str:
        """What the model is called: as configured, or the last part of its path."""
        return self.config.serve.served_model_name or PurePath(self.config.model.path).name

    @property
    def shape(self) -> ModelShape:
        """The model's context, vocabulary and heads. Raises :class:`RequestError` before the start."""
        if self._shape is None:
            raise RequestError("the engine is not started")
        return self._shape

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together, at most."""
        positions = self.shape.max_positions
        return min(positions, self.config.engine.max_context or positions, self.kv_tokens or positions)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None if it has none."""
        return self._tokenizer

    # ---- requests

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None, **changes: Any) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | None = None,
        **changes: Any,
    ) -> list[Completion]: ...
    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | None = None,
        **changes: Any,
    ) -> Completion | list[Completion]:
        """Answers one prompt, or several at once, and waits for all.

        Args:
            prompts: text, a list of texts, or a list of lists of token ids.
            params: sampling parameters; ``changes`` are single ones by name, such as ``max_new_tokens=8``.
        Raises:
            RequestError: a request was refused: too long, malformed. None of them has been started.
            RequestFailed: a request could not be finished.
        """
        sampling = SamplingParams.of(params, changes)
        if isinstance(prompts, str):
            return _Waiter(self, prompts, sampling).completion()
        prepared = [self._prepare(prompt, sampling) for prompt in prompts]
        waiters = [_Waiter(self, prompt, sampling) for prompt in prepared]
        return [waiter.completion() for waiter in waiters]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **changes: Any,
    ) -> Iterator[Chunk]:
        """Answers a prompt chunk by chunk. Leaving the loop early aborts the request. Raises as :meth:`generate`."""
        waiter = _Waiter(self, prompt, SamplingParams.of(params, changes), request_id)
        try:
            yield from waiter
        finally:
            waiter.close()

    async def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, **changes: Any) -> Completion:
        """Answers a prompt without blocking the event loop; cancelling it aborts the request."""
        sampling = SamplingParams.of(params, changes)
        ids = self._prepare(prompt, sampling)
        return _joined([chunk async for chunk in self.astream(ids, sampling)], len(ids))

    async def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **changes: Any,
    ) -> AsyncIterator[Chunk]:
        """Answers a prompt chunk by chunk without blocking the event loop; leaving early aborts the request."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Chunk | RaylaunchError]()
        request = self._submit(
            prompt,
            SamplingParams.of(params, changes),
            lambda item: loop.call_soon_threadsafe(arrived.put_nowait, item),
            request_id,
        )
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, RaylaunchError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self._forget(request)

    def abort(self, request_id: str) -> bool:
        """Ends a request: its last chunk says ``abort``. Returns whether it was running."""
        request = self._requests.get(request_id)
        if request is None or self._client is None:
            return False
        self._client.send(Abort(request_id))
        return True

    # ---- inside

    def _prepare(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """The prompt as token ids. Raises :class:`RequestError`."""
        shape = self.shape
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise RequestError("this model has no tokenizer: give the prompt as token ids")
            ids = list(self._tokenizer(prompt)["input_ids"])
        else:
            ids = list(prompt)
        if not ids:
            raise RequestError("the prompt is empty: it needs at least one token")
        for position, token in enumerate(ids):
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < shape.vocab_size:
                limit = shape.vocab_size - 1
                raise RequestError(
                    f"token {position} of the prompt is {token!r}: token ids are integers from 0 to {limit}"
                )
        if len(ids) + params.max_new_tokens > self.max_context:
            raise RequestError(
                f"the prompt has {len(ids)} tokens and max_new_tokens is {params.max_new_tokens}: together at most "
                f"{self.max_context} (the model's positions are {shape.max_positions}, the KV cache holds "
                f"{self.kv_tokens})"
            )
        return ids

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        listener: Callable[[Chunk | RaylaunchError], object],
        request_id: str | None = None,
    ) -> RunningRequest:
        ids = self._prepare(prompt, params)
        request = RunningRequest(request_id or secrets.token_hex(8), ids, params, self._tokenizer, listener)
        client = self._client
        if client is None or self._supervisor.condition is not Condition.READY:
            raise RequestFailed(f"the engine is not ready: {self.health(ask_ranks=False).reason}")
        self._requests.add(request)
        try:
            client.send(Submit(request.request_id, ids, params.on_wire()))
        except RequestFailed:
            self._requests.remove(request.request_id)
            raise
        return request

    def _forget(self, request: RunningRequest) -> None:
        """The caller has left: the request ends wherever it is."""
        if not request.finished:
            request.finished = True
            self._requests.remove(request.request_id)
            if self._client is not None:
                try:
                    self._client.send(Abort(request.request_id))
                except RequestFailed:
                    return

    def _step(self, step: Step, index: int, steps: int) -> None:
        if self._loading is not None:
            self._loading.raise_if_failed()  # a tokenizer that cannot be loaded ends the launch before its end
        if self._listener is not None:
            self._listener(step, index, steps)

    def _up(self, offer: Any) -> None:
        client = RankZeroClient(offer, self._deliver)
        client.open()
        self._client, self.kv_tokens = client, self.report.kv_tokens

    def _down(self, error: LaunchError) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        for request in self._requests.take_all():
            request.fail(RequestFailed(f"request {request.request_id} was lost: {error.headline()}"))

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            request = self._requests.get(output.request_id)
            if request is None:
                continue
            stopped_early = request.take(output)
            if request.finished:
                self._requests.remove(output.request_id)
            if stopped_early and self._client is not None:
                self._client.send(Abort(output.request_id))


class _Waiter:
    """A caller that blocks for its request's chunks."""

    def __init__(self, engine: Engine, prompt: Prompt, params: SamplingParams, request_id: str | None = None) -> None:
        self._engine = engine
        self._arrived: queue.SimpleQueue[Chunk | RaylaunchError] = queue.SimpleQueue()
        self._request = engine._submit(prompt, params, self._arrived.put, request_id)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            item = self._arrived.get()
            if isinstance(item, RaylaunchError):
                raise item
            yield item
            if item.finish_reason is not None:
                return

    def completion(self) -> Completion:
        try:
            return _joined(list(self), len(self._request.prompt))
        finally:
            self.close()

    def close(self) -> None:
        self._engine._forget(self._request)


class _Background:
    """A function that runs on its own thread; :meth:`result` waits for it and raises what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def result(self) -> Any:
        self._thread.join()
        self.raise_if_failed()
        return self._value


def _joined(chunks: list[Chunk], prompt_tokens: int) -> Completion:
    text = "".join(chunk.text for chunk in chunks)
    ids = tuple(token for chunk in chunks for token in chunk.token_ids)
    logprobs = None
    if any(chunk.logprobs is not None for chunk in chunks):
        logprobs = tuple(one for chunk in chunks for one in chunk.logprobs or ())
    return Completion(chunks[-1].request_id, text, ids, chunks[-1].finish_reason or "abort", prompt_tokens, logprobs)
