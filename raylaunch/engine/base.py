"""What one group of ranks and several have in common for whoever uses them: requests, and what they are checked by."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import PurePath
from typing import Any, Self, cast, overload

from raylaunch.config import LaunchConfig
from raylaunch.engine.health import Health
from raylaunch.errors import LaunchError, RequestError
from raylaunch.frontends.answers import AsyncWaiter, Start, Waiter
from raylaunch.frontends.base import Image, Listener, Prepared, Prompt, Running, TakesRequests
from raylaunch.frontends.requests import Chunk, Completion
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.group.driver import StepListener
from raylaunch.model.shape import ModelShape
from raylaunch.report import LaunchReport
from raylaunch.resolved import ResolvedLaunch
from raylaunch.tracing.export import Tracer
from raylaunch.values.encodable import problem_of


class EngineBase(ABC):
    """A model that answers requests, whoever computes them: :class:`Engine` or :class:`Replicas`.

    Attributes:
        config: what is launched.
        frontend: takes requests to the ranks.
    """

    frontend: TakesRequests

    def __init__(self, config: LaunchConfig | ResolvedLaunch, listener: StepListener | None) -> None:
        self._resolved = config if isinstance(config, ResolvedLaunch) else None
        self.config = config.config if isinstance(config, ResolvedLaunch) else config
        self._listener = listener

    # ---- life

    @abstractmethod
    def start(self) -> Self:
        """Launches. Returns when requests can be answered."""

    @abstractmethod
    def shutdown(self) -> None:
        """Ends the ranks, fails the requests that still run, leaves Ray as it was found. May be called twice."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    @abstractmethod
    def report(self) -> LaunchReport:
        """What the launch did; grows while it goes on."""

    @abstractmethod
    def health(self, ask_ranks: bool = True) -> Health:
        """Whether requests are answered now; asks every rank unless told not to. Never raises."""

    @abstractmethod
    def kept_metrics(self) -> list[Any]:
        """Prometheus metrics of SGLang's that ranks on other nodes keep; asks every rank. Never raises."""

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits while the group is launched or rebuilt; whether requests can be answered then."""
        end = time.monotonic() + timeout_s
        while (health := self.health(ask_ranks=False)).condition.starting and time.monotonic() < end:
            time.sleep(0.05)
        return health.ready

    @property
    @abstractmethod
    def failures(self) -> tuple[tuple[float, LaunchError], ...]:
        """The losses of a group since it first served: when (seconds since the epoch) and why."""

    @property
    @abstractmethod
    def last_error(self) -> LaunchError | None:
        """The last failure of a group, also after it was rebuilt; None if none failed."""

    @property
    @abstractmethod
    def restarts(self) -> int:
        """How often a group was rebuilt."""

    @property
    @abstractmethod
    def tracer(self) -> Tracer | None:
        """Takes spans to where they are wanted; None before the start, and for nowhere."""

    @property
    def continued(self) -> int:
        """How often requests have gone on in another group than the one that was lost."""
        return self.frontend.continued

    # ---- the model

    @property
    @abstractmethod
    def resolved(self) -> ResolvedLaunch | None:
        """What is decided of a launch, by its ranks too while there are any; None before the start."""

    @property
    def model_name(self) -> str:
        """What the model is called: as configured, or the last part of its path."""
        return self.config.serve.served_model_name or PurePath(self.config.model.path).name

    @property
    def shape(self) -> ModelShape:
        """The model's context, vocabulary and heads. Raises :class:`RequestError` before the start."""
        return self._started.shape

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of a group's ranks holds; 0 while there are no ranks."""
        return 0 if self.resolved is None else self.resolved.kv_tokens

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together, at most. Raises :class:`RequestError` before the start."""
        return self._started.max_context

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None if it has none."""
        return self.frontend.tokenizer

    @property
    @abstractmethod
    def sampling_defaults(self) -> Mapping[str, Any]:
        """Sampling parameters that hold where a request says nothing of them, as the model wants them."""

    # ---- requests

    @overload
    def generate(
        self, prompts: str, params: SamplingParams | None = None, *, images: Sequence[Image] = (), **changes: Any
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | None = None,
        *,
        images: Sequence[Sequence[Image]] = (),
        **changes: Any,
    ) -> list[Completion]: ...
    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | None = None,
        *,
        images: Sequence[Any] = (),
        **changes: Any,
    ) -> Completion | list[Completion]:
        """Answers one prompt, or several at once, and waits for all. The first error ends the other requests.

        Args:
            prompts: text, a list of texts, or a list of lists of token ids: one prompt of ids is a list in a list.
            params: sampling parameters; ``changes`` are single ones by name, such as ``max_new_tokens=8``.
            images: what a vision model looks at, one for each image token in the prompt: a path, a URL, a data URI,
                the file's bytes, or an image of Pillow. For several prompts a list per prompt.
        Raises:
            RequestError: a request was refused: too long, malformed; :class:`EngineBusy` if it was one too many beside
                those of others.
            RequestFailed: a request could not be finished.
        """
        sampling = SamplingParams.of(params, changes)
        if isinstance(prompts, str):
            return Waiter(self.frontend, self._start(prompts, sampling, images)).completion()
        try:
            each_prompt = cast(list[Prompt], list(prompts))
        except TypeError:
            text = f"the prompts are {type(prompts).__name__}: they must be text, or a list of prompts"
            raise RequestError(text) from None
        if any(isinstance(prompt, int) for prompt in each_prompt):
            raise RequestError("these prompts are numbers: one prompt of token ids is a list in a list, [[1, 2, 3]]")
        if images and len(images) != len(each_prompt):
            text = f"there are {len(each_prompt)} prompts and {len(images)} lists of images: one per prompt"
            raise RequestError(text)
        each: Sequence[Sequence[Image]] = images or [()] * len(each_prompt)
        starts = [self._start(prompt, sampling, own) for prompt, own in zip(each_prompt, each, strict=True)]
        room = self.frontend.room
        # Fewer than are refused, so that there is room for what others ask meanwhile.
        at_once = len(starts) if room is None else room - self.config.engine.max_waiting_requests // 2
        with ExitStack() as waiting:
            waiters: list[Waiter] = []
            found: list[Completion] = []
            for start in starts:
                if len(waiters) - len(found) == at_once:
                    found.append(waiters[len(found)].completion())
                waiters.append(Waiter(self.frontend, start))
                waiting.callback(waiters[-1].close)
            return found + [waiter.completion() for waiter in waiters[len(found) :]]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        images: Sequence[Image] = (),
        request_id: str | None = None,
        **changes: Any,
    ) -> Iterator[Chunk]:
        """Answers a prompt chunk by chunk. Leaving the loop early aborts the request. Raises as :meth:`generate`."""
        sampling = SamplingParams.of(params, changes)
        waiter = Waiter(self.frontend, self._start(prompt, sampling, images, request_id))
        try:
            yield from waiter
        finally:
            waiter.close()

    async def agenerate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, images: Sequence[Image] = (), **changes: Any
    ) -> Completion:
        """Answers a prompt without blocking the event loop; cancelling it aborts the request.

        Raises as :meth:`generate`.
        """
        start = self._start(prompt, SamplingParams.of(params, changes), images)
        return await AsyncWaiter(self.frontend, start).completion()

    async def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        images: Sequence[Image] = (),
        request_id: str | None = None,
        **changes: Any,
    ) -> AsyncIterator[Chunk]:
        """Answers a prompt chunk by chunk without blocking the event loop; leaving early aborts the request.

        Raises as :meth:`generate`.
        """
        sampling = SamplingParams.of(params, changes)
        waiter = AsyncWaiter(self.frontend, self._start(prompt, sampling, images, request_id))
        try:
            async for chunk in waiter:
                yield chunk
        finally:
            waiter.close()

    def abort(self, request_id: str) -> bool:
        """Ends a request: its last chunk says ``abort``. Returns whether it was running."""
        return self.frontend.abort(request_id)

    # ---- inside

    @abstractmethod
    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Running:
        """Starts a request that the frontend has checked. Raises as :meth:`Frontend.submit`."""

    @property
    def _started(self) -> ResolvedLaunch:
        if (resolved := self.resolved) is None:
            raise RequestError("the engine is not started")
        return resolved

    def _start(
        self, prompt: Prompt, params: SamplingParams, images: Sequence[Image], request_id: str | None = None
    ) -> Start:
        """A request that was checked; called, it is submitted. Raises :class:`RequestError`."""
        texts = {"the prompt": prompt, "stop": params.stop, "extra": params.extra, "request_id": request_id}
        for name, value in texts.items():
            if problem := problem_of(value if name != "the prompt" or isinstance(prompt, str) else ""):
                raise RequestError(f"{name} cannot be encoded: {problem}")
        prepared = self.frontend.prepare(prompt, params.filled(self.sampling_defaults), images)

        def start(listener: Listener) -> Running:
            return self.submit(prepared, listener, request_id or secrets.token_hex(8))

        return start
