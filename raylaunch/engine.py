"""The Python API: an engine that is launched, answers requests, and is shut down."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePath
from typing import Any, cast, overload

from ray.util.placement_group import PlacementGroup

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError, RaylaunchError, RequestError, RequestFailed
from raylaunch.frontends.answers import AsyncWaiter, Start, Waiter
from raylaunch.frontends.base import Frontend, Image, Listener, Prepared, Prompt, Running
from raylaunch.frontends.generation_config import SamplingDefaults, sampling_defaults
from raylaunch.frontends.requests import Chunk, Completion
from raylaunch.group.driver import StepListener
from raylaunch.health import Condition, Health
from raylaunch.model.shape import ModelShape
from raylaunch.model_check import resolve
from raylaunch.protocol import Step
from raylaunch.report import LaunchReport
from raylaunch.resolved import ResolvedLaunch
from raylaunch.sampling import SamplingParams
from raylaunch.supervisor import Supervisor
from raylaunch.tracing.export import Tracer
from raylaunch.values.encodable import problem_of


class Engine:
    """A tensor-parallel model that answers requests.

    Use it as a context manager, or call :meth:`start` and :meth:`shutdown`. It works inside an existing Ray session,
    inside a Ray task or actor, and without any: then it starts a private one. All methods may be called from any
    thread, and many requests may run at once.

    Args:
        config: what to launch; or what :func:`raylaunch.model_check.resolve` has made of it, which is checked.
        placement_group: place the ranks here instead of in a group of their own; it is left alone at the end.
        listener: told before each step of the launch: the step, its index, the number of steps.
    """

    def __init__(
        self,
        config: LaunchConfig | ResolvedLaunch,
        *,
        placement_group: PlacementGroup | None = None,
        listener: StepListener | None = None,
    ) -> None:
        self._resolved = config if isinstance(config, ResolvedLaunch) else None
        self.config = config.config if isinstance(config, ResolvedLaunch) else config
        self._listener, self._placement_group = listener, placement_group
        self.frontend = frontend_of(self.config)
        self._supervisor = Supervisor(self.config, self._step, self.frontend)
        self._sampling = SamplingDefaults()

    # ---- life

    def start(self) -> Engine:
        """Launches. Returns when requests can be answered.

        Raises:
            ConfigError: the configuration cannot be launched; nothing was started.
            LaunchError: the launch failed; everything that was started has been given back.
            RaylaunchError: it was started before.
        """
        if self._supervisor.condition is not Condition.NEW:
            raise RaylaunchError("an Engine is started once; make a new one")
        if (count := self.config.parallel.replicas) > 1:
            expected = "an Engine is one group: raylaunch.Replicas(config) is several"
            raise ConfigError("parallel.replicas", count, expected)
        self._resolved = resolved = self._resolved or resolve(self.config)
        self._sampling = sampling_defaults(self.config)
        self._supervisor.sampling = str(self._sampling)
        self._supervisor.start(replace(resolved, placement_group=self._placement_group))
        return self

    def shutdown(self) -> None:
        """Ends the ranks, fails the requests that still run, leaves Ray as it was found. May be called twice."""
        self._supervisor.stop()

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
        return self._supervisor.health(ask_ranks)

    def kept_metrics(self) -> list[Any]:
        """Prometheus metrics of SGLang's that ranks on other nodes keep; asks every rank. Never raises."""
        return self._supervisor.metrics()

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits while the group is launched or rebuilt; whether requests can be answered then."""
        end = time.monotonic() + timeout_s
        while (health := self.health(ask_ranks=False)).condition.starting and time.monotonic() < end:
            time.sleep(0.05)
        return health.ready

    @property
    def failures(self) -> tuple[tuple[float, LaunchError], ...]:
        """The losses of the group since it first served: when (seconds since the epoch) and why."""
        return tuple(self._supervisor.failures)

    @property
    def last_error(self) -> LaunchError | None:
        """The last failure of the group, also after it was rebuilt; None if it never failed."""
        lost = self._supervisor.failures[-1][1] if self._supervisor.failures else None
        return self._supervisor.error or self.frontend.failure() or lost

    @property
    def restarts(self) -> int:
        """How often the group was rebuilt."""
        return self._supervisor.rebuilds

    @property
    def tracer(self) -> Tracer | None:
        """Takes spans to where they are wanted; None before the start, and for nowhere."""
        return self._supervisor.tracer

    @property
    def continued(self) -> int:
        """How often requests have gone on in another group than the one that was lost."""
        return self.frontend.continued

    @property
    def model_name(self) -> str:
        """What the model is called: as configured, or the last part of its path."""
        return self.config.serve.served_model_name or PurePath(self.config.model.path).name

    @property
    def shape(self) -> ModelShape:
        """The model's context, vocabulary and heads. Raises :class:`RequestError` before the start."""
        return self._launch.shape

    @property
    def kv_tokens(self) -> int:
        """Tokens that the ranks' KV cache holds; 0 while there are no ranks."""
        resolved = self._supervisor.resolved
        return 0 if resolved is None else resolved.kv_tokens

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together, at most. Raises :class:`RequestError` before the start."""
        return self._launch.max_context

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None if it has none."""
        return self.frontend.tokenizer

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """Sampling parameters that hold where a request says nothing of them, as the model wants them."""
        return self._sampling.values

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
            RequestError: a request was refused: too long, malformed; :class:`EngineBusy` if it was one too many.
            RequestFailed: a request could not be finished.
        """
        sampling = SamplingParams.of(params, changes)
        if isinstance(prompts, str):
            return Waiter(self.frontend, self._start(prompts, sampling, images)).completion()
        if any(isinstance(prompt, int) for prompt in prompts):
            raise RequestError("these prompts are numbers: one prompt of token ids is a list in a list, [[1, 2, 3]]")
        if images and len(images) != len(prompts):
            raise RequestError(f"there are {len(prompts)} prompts and {len(images)} lists of images: one per prompt")
        each: Sequence[Sequence[Image]] = images or [()] * len(prompts)
        starts = [
            self._start(prompt, sampling, own)
            for prompt, own in zip(cast(Sequence[Prompt], prompts), each, strict=True)
        ]
        with ExitStack() as waiting:
            waiters = []
            for start in starts:
                waiters.append(Waiter(self.frontend, start))
                waiting.callback(waiters[-1].close)
            return [waiter.completion() for waiter in waiters]

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

    @property
    def _launch(self) -> ResolvedLaunch:
        """What is decided of the launch: that of the ranks that there are, or what was before any."""
        resolved = self._supervisor.resolved or self._resolved
        if resolved is None:
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
        prepared = self.frontend.prepare(prompt, params.filled(self._sampling.values), images)

        def start(listener: Listener) -> Running:
            return self._submit(prepared, listener, request_id or secrets.token_hex(8))

        return start

    def _submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Running:
        if refusal := self.health(ask_ranks=False).refusal(self.config.recovery.while_rebuilding == "wait"):
            raise RequestFailed(refusal)
        return self.frontend.submit(prepared, listener, request_id)

    def _step(self, step: Step, index: int, steps: int) -> None:
        self.frontend.raise_if_failed()  # what cannot work ends the launch before its end
        if self._listener is not None:
            self._listener(step, index, steps)


def frontend_of(config: LaunchConfig) -> Frontend:
    """The frontend of the configured engine; nothing is started yet."""
    if config.engine.kind == "sglang":
        from raylaunch.sglang.frontend import SglangFrontend

        return SglangFrontend(config)
    from raylaunch.frontends.reference import ReferenceFrontend

    return ReferenceFrontend(config)
