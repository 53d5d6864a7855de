"""The frontend of the engine ``sglang``: SGLang's own tokenizer manager and detokenizer, on a loop of their own."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylaunch.background import Background
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError, RaylaunchError, RequestError, RequestFailed
from raylaunch.frontends.base import Image, Listener, Meeting, Prepared, Prompt, Running, ids_of
from raylaunch.frontends.requests import Chunk, RequestTable, notify
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.protocol import Phase, RoundName
from raylaunch.report import Span, timed
from raylaunch.resolved import ResolvedLaunch
from raylaunch.sglang.arguments import (
    LOADS_BY_SOCKET,
    LONGER_CONTEXT,
    METRICS_VARIABLE,
    metrics_enabled,
    of_the_server,
)
from raylaunch.sglang.detokenizer_keeper import DetokenizerKeeper
from raylaunch.sglang.detokenizer_process import DetokenizerProcess
from raylaunch.sglang.environment import switches
from raylaunch.sglang.importing import import_sglang
from raylaunch.sglang.loop import Loop, LoopThread
from raylaunch.sglang.manager import TokenizerSide
from raylaunch.sglang.mapping import StreamedAnswer, image_data, sampling_parameters
from raylaunch.sglang.metrics import SharedMetrics
from raylaunch.sglang.request import SglangRequest
from raylaunch.sglang.sockets import SocketFolder
from raylaunch.sglang.source import installed_version
from raylaunch.sglang.versions import apply_settled, published
from raylaunch.wire import SglangSettled, SglangSockets

IMPORT_S = 10.0  # how long close() waits for an import, which nothing can interrupt
CLOSE_S = 5.0
LOOK_S = 0.05

log = logging.getLogger(__name__)


class SglangFrontend:
    """Keeps SGLang's side of the driver while groups come and go. A :class:`raylaunch.frontends.base.Frontend`.

    Attributes:
        loop: that everything of SGLang is to run on, its HTTP application too. Another one, such as that of another
            frontend, may be put in its place until :meth:`begin`.
        others: frontends on the same loop whose groups are ready, the least loaded first: there requests go on.
        runs: the same while it runs.
        side: SGLang's objects; None until they are made.
    """

    def __init__(self, config: LaunchConfig) -> None:
        self._config = config
        self._folder = SocketFolder()
        self._metrics = SharedMetrics()
        self._met = threading.Event()
        self.spans: list[Span] = []
        self.room: int | None = None  # SGLang queues them, and refuses those beyond its own limit
        self._requests = RequestTable[SglangRequest]()
        self._lock = threading.Lock()
        self._importing: Background | None = None
        self._making: Background | None = None
        self._detokenizer = DetokenizerKeeper(
            self._new_detokenizer, self._lose_detokenizer, self._probe_again, config.deadlines.load
        )
        self._resolved: ResolvedLaunch | None = None
        self._up = self._rebuilding = self._closing = False
        self._losses = 0  # what began before the last one is of ranks that are gone
        self._same_node = True
        self._ports: SglangSockets  # as rank 0 was told them
        self._gone = "it has no ranks"
        self._settled: Mapping[str, str] = {}
        self.loop: Loop = LoopThread(_new_loop, "raylaunch-sglang")
        self.others: Callable[[], Sequence[Any]] = lambda: ()
        self.runs: Loop | None = None
        self.side: TokenizerSide | None = None

    @property
    def sockets(self) -> SglangSockets:
        """Names of SGLang's sockets on this node."""
        assert self._folder.names is not None
        return self._folder.names

    @property
    def tokenizer(self) -> Any:
        return self.side.manager.tokenizer if self.side is not None else None

    @property
    def continued(self) -> int:
        return self.side.replay.continued if self.side is not None and self.side.replay is not None else 0

    # ---- life

    def begin(self, resolved: ResolvedLaunch) -> None:
        self._resolved, self._config = resolved, resolved.config
        self._folder.open()
        self._importing = Background(lambda: import_sglang(self.spans, self._met, lambda: self._closing))
        self._detokenizer.start()

    def meet(self, where: Meeting) -> SglangSockets:
        self._met.set()
        self._ports = sockets = self._folder.meet(where)
        self._same_node = where.same_node
        self._detokenizer.start(anew=self._folder.listeners is not None)
        return sockets

    def attach(self, offer: SglangSettled) -> None:
        if self._making is not None and not self._making.failed:
            self._compare(offer.texts)
            return
        if offer.version != (here := installed_version()):
            text = f"SGLang is {offer.version} on rank 0 and {here} on the driver, and speaks to its own version alone"
            raise LaunchError(text, "F19", Phase.CONNECT.name)
        self._settled = offer.texts
        self._making = Background(functools.partial(self._make, offer))  # while the ranks load

    def raise_if_failed(self) -> None:
        if self._detokenizer.failure is not None:
            raise self._detokenizer.failure
        for work in (self._importing, self._making):
            if work is not None:
                work.raise_if_failed()

    def up(self, offer: Any, resolved: ResolvedLaunch) -> None:
        losses = self._losses
        with timed(self.spans, "has a request answered"):
            self._await_side()
            if self.side is not None:
                self.side.share_images(self._same_node and self.side.settled.nnodes == 1)
            self._detokenizer.answer(functools.partial(self._probe, losses, offer))
        with self._lock:
            self._raise_if_lost(losses)
            self._up, self._rebuilding = True, False
            if self.side is not None and self.runs is not None:
                self.runs.soon(self.side.replay.resume)

    def down(self, error: LaunchError, rebuilding: bool = False) -> None:
        with self._lock:
            self._up, self._rebuilding, self._gone = False, rebuilding, error.headline()
            self._losses += 1
        if not rebuilding and (self._closing or not self.others()):
            self._fail_requests(error.headline())
        elif self.side is not None and self.runs is not None:
            self.runs.soon(functools.partial(self.side.lose, error.headline(), rebuilding=rebuilding))

    def trouble(self) -> str:
        return self._detokenizer.trouble

    def failure(self) -> LaunchError | None:
        return self._detokenizer.failure

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._met.set()
        self.down(LaunchError("the engine was shut down"))
        self._detokenizer.close()
        for work in (self._importing, self._making):
            try:
                if work is not None:
                    work.result(IMPORT_S)
            except BaseException as error:  # it was told to whoever started
                log.debug("what was begun had failed: %s", error)
        if self.runs is not None:
            if self.side is not None:
                try:
                    self.runs.submit(self.side.close()).result(CLOSE_S)
                except (TimeoutError, RuntimeError):
                    log.warning("SGLang's sockets could not be closed within %g s", CLOSE_S)
            self.runs.close()
            self.runs = None
        published.leave(self)
        self._metrics.close()
        self._folder.close()

    # ---- requests

    def prepare(self, prompt: Prompt, params: SamplingParams, images: Sequence[Image] = ()) -> Prepared:
        if self._resolved is None or self.side is None:
            raise RequestError("the engine is not started")
        if params.extra:
            self.side.check_parameters(sampling_parameters(params))
        if images:
            if not self.side.manager.model_config.is_multimodal:
                raise RequestError(f"{self._resolved.shape.architecture} takes no images")
            if not isinstance(prompt, str):
                raise RequestError("a prompt with images must be text: the images decide how many tokens it has")
            return Prepared([], params, prompt, image_data(images))
        ids = ids_of(prompt, self.tokenizer, self._resolved.shape.vocab_size)
        if params.stop and self.tokenizer is None:
            raise RequestError("this model has no tokenizer: stop strings cannot be looked for")
        longest = self.side.manager.context_len
        room = self.side.scheduler_info.get("max_req_input_len", longest)
        if len(ids) >= room:
            raise RequestError(f"the prompt has {len(ids)} tokens: there is room for {room - 1} in the KV cache")
        if len(ids) + params.max_new_tokens > longest:
            raise RequestError(
                f"the prompt has {len(ids)} tokens and max_new_tokens is {params.max_new_tokens}: together at most "
                f"{longest} (the model's context)"
            )
        return Prepared(ids, params)

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> SglangRequest:
        with self._lock:  # a loss ends what was submitted before, and refuses what comes after
            side, runs = self.side, self.runs
            if side is None or runs is None or not (self._up or self._rebuilding):
                raise RequestFailed(f"the engine is not ready: {self._gone}")
            if self._detokenizer.trouble:
                raise RequestFailed(f"the engine is not ready: {self._detokenizer.trouble}")
            answer = StreamedAnswer(request_id, prepared.params, incremental=side.manager.incremental_streaming_output)
            request = SglangRequest(request_id, prepared, answer, listener)
            self._requests.add(request)
            runs.soon(self._begin_request, request)
            return request

    def forget(self, request: Running) -> None:
        assert isinstance(request, SglangRequest)
        if not request.finished:
            request.finished = True
            self._requests.remove(request.request_id)
            if self.runs is not None:
                self.runs.soon(request.cancel)

    def abort(self, request_id: str) -> bool:
        request, side, runs = self._requests.get(request_id), self.side, self.runs
        if request is None or side is None or runs is None:
            return False
        runs.soon(self._abort, request)
        return True

    def busy(self) -> bool:
        side = self.side
        return len(self._requests) > 0 or (side is not None and bool(side.manager.rid_to_state or side.replay.guests))

    def verify(self, name: RoundName, shape: int) -> bool:
        if not self._up or self.side is None or self.runs is None:
            return False
        self.runs.soon(self.side.verify, name, shape)
        return True

    def __len__(self) -> int:
        beside = len(self.side.patient) + self.side.replay.surplus if self.side is not None else 0
        return max(0, len(self._requests) + beside)  # one of SGLang's callers may have several that are elsewhere

    # ---- on the loop

    def _begin_request(self, request: SglangRequest) -> None:
        if not request.finished:
            request.task = asyncio.get_running_loop().create_task(self._answer(request))

    def _abort(self, request: SglangRequest) -> None:
        """SGLang lets an abort go by of what it has not sent to the ranks yet: that ends here."""
        assert self.side is not None
        if request.sent:
            self.side.abort(request.rid)  # its last tokens may be on their way already, and are its answer then
        else:
            request.cancel()
            self._end(request, Chunk(request.request_id, "", (), "abort"))

    async def _answer(self, request: SglangRequest) -> None:
        assert self.side is not None
        self._end(request, await request.run(self.side))

    def _end(self, request: SglangRequest, item: Chunk | RaylaunchError) -> None:
        with self._lock:
            ended, request.finished = request.finished, True
        if not ended:
            self._requests.remove(request.request_id)
            notify(request.listener, item)

    # ---- inside

    def _await_side(self) -> None:
        assert self._making is not None
        seconds = self._config.deadlines.load
        try:
            self._making.result(seconds)
        except TimeoutError:
            text = f"SGLang's tokenizer manager was not there within {seconds:g} s"
            raise LaunchError(text, phase=Phase.VERIFY.name) from None

    def _make(self, settled: SglangSettled) -> None:
        """Makes SGLang's objects of what rank 0 has settled. Raises :class:`ConfigError` for what cannot be used."""
        assert self._importing is not None
        self._importing.result()
        with timed(self.spans, "makes the tokenizer manager"):
            self._make_side(settled)

    def _make_side(self, settled: SglangSettled) -> None:
        from raylaunch_actors.sglang_engine.versions import port_args as port_args_of

        server_args = apply_settled(settled.arguments, {**of_the_server(self._config), "skip_server_warmup": True})
        port_args = port_args_of(self.sockets)
        listeners = self._folder.listeners
        variables = {**LONGER_CONTEXT, **self._config.environment, **settled.variables}
        if listeners is not None:
            variables |= LOADS_BY_SOCKET
        with self._lock:
            if self._closing:
                return
            published.join(self, server_args)
            self._detokenizer.configure(server_args, port_args, settled.variables)
            self.loop.start()
            self.runs = self.loop
        if metrics_enabled(self._config):
            self._share_metrics()
        side = TokenizerSide(server_args, port_args, self._config.recovery, listeners)
        try:
            with switches(variables):
                self.runs.submit(side.open()).result()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
            key = "model.tokenizer" if self._config.model.tokenizer else "model.path"
            value = self._config.model.tokenizer or self._config.model.path
            text = f"SGLang cannot load its tokenizer: {type(error).__name__}: {error}"
            raise ConfigError(key, value, text) from error
        side.replay.others = lambda: [one.side.replay for one in self.others()]
        self.side = side

    def _share_metrics(self) -> None:
        import ray

        while not ray.is_initialized():  # it is started beside this, and close() is called if it cannot be
            if self._closing:
                return
            time.sleep(LOOK_S)
        self._metrics.open(Path(self.sockets.metrics_folder))

    def _compare(self, ranks: Mapping[str, str]) -> None:
        """SGLang settles defaults by the machine: of a group in the place of another, perhaps on another node, that is
        worth knowing and no reason to stop."""
        from raylaunch_actors.sglang_engine.versions import unlike

        if difference := unlike(ranks, self._settled):
            text = "SGLang has settled arguments differently on this group and on the first: %s; the ranks' count"
            log.warning(text, difference)

    def _raise_if_lost(self, losses: int) -> None:
        if losses != self._losses:
            raise _verify(f"the ranks were lost before requests were sent: {self._gone}")

    def _probe(self, losses: int, offer: Mapping[str, Any] | None = None) -> None:
        assert self.side is not None
        assert self.runs is not None
        seconds = self._config.deadlines.verify
        answer = self.runs.submit(self.side.probe(offer, functools.partial(self._raise_if_lost, losses)))
        try:
            answer.result(seconds)
        except TimeoutError:
            answer.cancel()
            way = (
                "" if self._same_node else f"; rank 0 must reach the driver's ports, such as {self._ports.detokenizer}"
            )
            raise _verify(f"the first request got no answer within {seconds:g} s{way}") from None
        except Exception as error:
            raise _verify(f"the first request failed: {type(error).__name__}: {error}") from error

    def _probe_again(self) -> None:
        """Another detokenizer was started. While there are no ranks nothing can be asked: :meth:`up` will."""
        losses = self._losses
        try:
            if self._up:
                self._probe(losses)
        except LaunchError:
            if self._up:
                raise

    def _lose_detokenizer(self, reason: str) -> None:
        self._fail_requests(reason, ranks_go_on=True)

    def _fail_requests(self, reason: str, *, ranks_go_on: bool = False) -> None:
        for request in self._requests.pop_all():
            self._end(request, RequestFailed(f"request {request.request_id} was lost: {reason}"))
        if self.side is not None and self.runs is not None:
            self.runs.soon(functools.partial(self.side.lose, reason, ranks_go_on=ranks_go_on))

    def _new_detokenizer(self, on_death: Callable[[str], None]) -> DetokenizerProcess:
        assert self._folder.path is not None
        environment = dict(self._config.environment)
        if metrics_enabled(self._config):
            environment[METRICS_VARIABLE] = self.sockets.metrics_folder
        log_file, stopped_s = Path(self._folder.path) / "detokenizer.log", self._config.deadlines.stopped
        listeners = self._folder.listeners.only(self.sockets.detokenizer) if self._folder.listeners else None
        return DetokenizerProcess(log_file, on_death, environment, stopped_s, listeners)


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _verify(text: str) -> LaunchError:
    return LaunchError(text, "F12", Phase.VERIFY.name)
