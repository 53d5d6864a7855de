"""SGLang's tokenizer manager and templates, made and used on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

import zmq

from raylaunch.config.sections import RecoveryConfig
from raylaunch.errors import RequestFailed
from raylaunch.frontends.base import Prepared
from raylaunch.protocol import RoundName
from raylaunch.sglang import versions
from raylaunch.sglang.fields import FieldLimits, check_fields, embeds_problem
from raylaunch.sglang.listeners import Doors, Listeners
from raylaunch.sglang.mapping import logprob_arguments, note, sampling_parameters
from raylaunch.sglang.replay import Replay
from raylaunch.sglang.sampling import check_parameters
from raylaunch.sglang.unsent import Recallable
from raylaunch.tracing.spans import of_request
from raylaunch.wire import SGLANG_VERIFY

PROBE_TOKENS = 4
LAST_WORDS_S = 1.0  # for answers that say that the ranks are lost

log = logging.getLogger(__name__)


class TokenizerSide:
    """Everything that touches SGLang's objects. All methods are called on the loop that :meth:`open` ran on.

    Attributes:
        server_args, port_args: what SGLang's objects are made with; ``listeners`` are for ranks on other nodes.
        settled: the server arguments as they hold.
        manager: SGLang's ``TokenizerManager``; binds the sockets that ranks and detokenizer connect to.
        templates: SGLang's ``TemplateManager``.
        scheduler_info: what rank 0 said at its last gate.
        replay: keeps requests while there are no ranks.
        callers: tasks that may wait for the ranks in ways of SGLang's own; cancelled when those are lost.
        patient: those of them that may go on when requests do.
        given_up: those of them that were cancelled for that, with what was lost.
    """

    def __init__(
        self, server_args: Any, port_args: Any, recovery: RecoveryConfig, listeners: Listeners | None = None
    ) -> None:
        self.server_args, self.port_args, self._recovery = server_args, port_args, recovery
        self._listeners, self._doors = listeners, Doors(listeners)
        self.settled = versions.Settled(server_args)
        self._images_whole = False
        self.manager: Any = None
        self.templates: Any = None
        self.scheduler_info: dict[str, Any] = {}
        self.replay: Any = None
        self.callers: set[asyncio.Task[Any]] = set()
        self.patient: set[asyncio.Task[Any]] = set()
        self.given_up: dict[asyncio.Task[Any], str] = {}
        self._receiving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Loads the tokenizer, binds the sockets, and begins to receive. Raises what SGLang raises."""
        from sglang.srt.entrypoints.engine import init_tokenizer_manager
        from sglang.srt.managers import tokenizer_manager

        with versions.published.held(self.server_args):
            original = tokenizer_manager.get_zmq_socket
            tokenizer_manager.get_zmq_socket = self._doors.on(original)
            try:
                self.manager, self.templates = init_tokenizer_manager(self.server_args, self.port_args)
            finally:
                tokenizer_manager.get_zmq_socket = original
        self.manager.send_to_scheduler = Recallable(self.manager.send_to_scheduler)
        if self._listeners is not None:
            versions.receive_loads(self.manager, self._doors, self.port_args.load_collector_ipc_name)
        if self.manager.mm_processor is not None and self.settled.mm_feature_transport == "cpu":
            # Or images are prepared on the first GPU that the driver sees, whoever has it, and memory of it is kept
            # (https://github.com/sgl-project/sglang/issues/40072).
            self.manager.mm_processor._fast_image_processor_device = lambda _: "cpu"
        # The manager would begin by itself with its first request, with handlers that kill the whole process, the
        # user's, at SIGTERM (https://github.com/sgl-project/sglang/pull/16484) and at any error. It does not once it
        # has a loop.
        self.manager.event_loop = asyncio.get_running_loop()
        self.replay = Replay(self.manager, self._recovery, self._fail)
        versions.guard_dispatch(self.manager)
        self._check_first()
        self._abort_what_has_not_ended()
        self._receiving = asyncio.create_task(self._receive())

    def share_images(self, one_node: bool) -> None:
        """Whether images can be handed to the ranks in memory that they share with this process."""
        self._images_whole = not one_node
        versions.published.images_whole(self, self._images_whole)

    async def probe(self, info: Mapping[str, Any] | None, check: Callable[[], None]) -> None:
        """One real request, from its tokens to its answer; :meth:`lose` ends it.

        Args:
            info: what rank 0 of a new group said at its last gate.
            check: raises if the ranks were lost before this began.
        Raises:
            RuntimeError: the answer is not as asked.
        """
        from sglang.srt.managers.tokenizer_manager import ServerStatus

        check()
        if info is not None:
            self._set_scheduler_info(info)
        vocabulary = self.manager.model_config.vocab_size
        ids = [token % vocabulary for token in range(1, 1 + PROBE_TOKENS)]
        parameters = {"max_new_tokens": PROBE_TOKENS, "temperature": 0.0, "ignore_eos": True}
        meta: Mapping[str, Any] = {}
        request_id = f"probe-{secrets.token_hex(8)}"
        self.replay.probes.add(request_id)
        try:
            async for output in self._send(
                rid=request_id, input_ids=ids, sampling_params=parameters, log_metrics=False
            ):
                meta = output["meta_info"]
        finally:
            self.replay.probes.discard(request_id)
        if meta.get("completion_tokens") != PROBE_TOKENS or (meta.get("finish_reason") or {}).get("type") != "length":
            raise RuntimeError(f"{PROBE_TOKENS} tokens were asked for, and this came back: {dict(meta)}")
        versions.freeze_garbage(self.replay.send)  # while requests are still held
        self.manager.server_status = ServerStatus.Up

    def _set_scheduler_info(self, info: Mapping[str, Any]) -> None:
        self.scheduler_info.clear()  # SGLang's application holds it
        self.scheduler_info.update(info)
        self.manager.max_req_input_len = info["max_req_input_len"]
        if info.get("startup_time") is not None:
            from sglang.srt.observability.startup_time import build_engine_startup_time

            self.manager.set_startup_time(build_engine_startup_time([info["startup_time"]], tokenizer_e2e=0.0))

    def input_of(self, request_id: str, prepared: Prepared) -> Any:
        """SGLang's object for a request. ``sent`` of it is set once the ranks were sent it."""
        prompt = {"text": prepared.text} if prepared.text is not None else {"input_ids": prepared.ids}
        return _input(
            **prompt,
            rid=request_id,
            image_data=list(prepared.images) or None,
            sampling_params=sampling_parameters(prepared.params, self.settled.preferred_sampling_params or ()),
            **logprob_arguments(prepared.params),
        )

    async def stream(self, given: Any) -> AsyncGenerator[dict[str, Any], None]:
        """SGLang's outputs for an object of :meth:`input_of`. Closing it aborts the request.

        Raises:
            ValueError: SGLang refuses it.
        """
        async with contextlib.aclosing(self.manager.generate_request(given)) as one:
            async for output in one:
                yield output

    def _send(self, **arguments: Any) -> AsyncGenerator[dict[str, Any], None]:
        return self.stream(_input(**arguments))

    async def one_token(self) -> None:
        """Asks the ranks for a token as SGLang's own health does: of ranks that are busy any output is the answer.

        Raises:
            RequestFailed, HTTPException: they were lost meanwhile.
        """
        from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

        request_id = f"{HEALTH_CHECK_RID_PREFIX}_{secrets.token_hex(16)}"
        parameters = {"max_new_tokens": 1, "temperature": 0.0}
        outputs = self._send(rid=request_id, input_ids=[0], sampling_params=parameters, log_metrics=False)
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    reason = output["meta_info"].get("finish_reason") or {}
                    if reason.get("type") == "abort":
                        raise RequestFailed(str(reason.get("message")))
                    return
        finally:
            self.manager.rid_to_state.pop(request_id, None)  # ranks that are busy do not end it

    def heard_at(self) -> float:
        """When the ranks were last heard, in seconds since the epoch."""
        return float(self.manager.last_receive_tstamp)

    def health_generates(self) -> bool:
        """Whether ``/health`` too asks the ranks for a token: SGLang's variable for it."""
        from sglang.srt.environ import envs

        return bool(envs.SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION.get())

    def health_seconds(self) -> float:
        """How long they may take for it: SGLang's variable, or its default."""
        from sglang.srt.entrypoints.http_server import HEALTH_CHECK_TIMEOUT

        return float(HEALTH_CHECK_TIMEOUT)

    def verify(self, name: RoundName, shape: int) -> None:
        """Has all ranks verify a shape, behind what they were sent before."""
        from sglang.srt.managers.io_struct import RpcReqInput

        self.replay.send(RpcReqInput(method=SGLANG_VERIFY, parameters={"round_name": name, "shape": shape}))

    def abort(self, request_id: str = "", *, everything: bool = False) -> None:
        """Asks rank 0 to end a request, or all."""
        self.manager.abort_request(request_id, abort_all=everything)

    def lose(self, reason: str, *, ranks_go_on: bool = False, rebuilding: bool = False) -> None:
        """The ranks, or the detokenizer, are gone. Every request ends, those of the HTTP server too, as if rank 0 had
        said that it is unavailable, and SGLang's health says the same until the next :meth:`probe`.

        Args:
            ranks_go_on: they are there, and must be told not to go on with the requests.
            rebuilding: others may take their place: requests that can go on there, and not at another replica, wait
                for them.
        """
        from fastapi import HTTPException
        from sglang.srt.managers.tokenizer_manager import ServerStatus

        self.manager.server_status = ServerStatus.Starting
        if not ranks_go_on:
            # Requests that can go on are sent again.
            self.manager.send_to_scheduler.take_back(HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, reason))
        if not rebuilding and (ranks_go_on or not self.replay.others()):
            self._fail_all(reason, ranks_go_on)
            return
        from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

        probes = [one for one in self.manager.rid_to_state if one.startswith(HEALTH_CHECK_RID_PREFIX)]
        for request_id in [*probes, *self.replay.probes]:
            self._fail(request_id, reason)
        self.replay.hold(reason, rebuilding)
        self._end_other_callers(self.callers - self.patient, reason)

    def _fail_all(self, reason: str, ranks_go_on: bool) -> None:
        if ranks_go_on:
            self.abort(everything=True)
        self.replay.return_guests(reason)
        for request_id in list(self.manager.rid_to_state):
            self._fail(request_id, reason)
        self._end_other_callers(self.callers, reason)

    def _fail(self, request_id: str, reason: str, *, aborted: bool = False) -> None:
        """Ends a request as unavailable, or as aborted, with what it has said so far."""
        from sglang.srt.managers.io_struct import AbortReq
        from sglang.srt.managers.utils import is_health_check_generate_req

        state = self.manager.rid_to_state.get(request_id)
        if state is None:
            return
        finish: dict[str, Any] = {"type": "abort", "message": reason}
        if not aborted:
            finish |= {"status_code": HTTPStatus.SERVICE_UNAVAILABLE, "err_type": "ServiceUnavailable"}
        if is_health_check_generate_req(state.obj):  # to SGLang an abort of that is nothing
            self._end_bare(request_id, state, finish)
        elif getattr(state, "sent", False):
            try:
                self.manager._handle_abort_req(AbortReq(rid=request_id, finished_reason=finish))
            except Exception:  # of what it has said so far no answer can be made
                log.exception("request %s ends without what it has said so far", request_id)
                self._end_bare(request_id, state, finish)
        else:  # on its way to the ranks, or of several samples, which are requests of their own there
            state.obj.lost_for = reason

    def _end_other_callers(self, callers: Iterable[asyncio.Task[Any]], reason: str) -> None:
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._give_up, tuple(callers), reason)

    def _end_bare(self, request_id: str, state: Any, finish: Mapping[str, Any]) -> None:
        """Ends a request with an output of nothing but the reason, as SGLang's own would: it is the last."""
        versions.forget(self.manager, request_id)
        meta = {"id": request_id, "finish_reason": finish, "completion_tokens": 0, "output_token_logprobs_length": 0}
        state.finished = True
        state.out_list.append({"text": "", "output_ids": [], "meta_info": meta})
        state.event.set()

    def _check_first(self) -> None:
        from sglang.srt.managers.io_struct import GenerateReqInput, SessionParams

        generate, limits = self.manager.generate_request, self._limits()

        async def generate_request(request: Any, caller: Any = None) -> AsyncIterator[Any]:
            given, facts = request.sampling_params or {}, of_request.get()
            try:
                for parameters in given if isinstance(given, list) else [given]:
                    self.check_parameters(parameters)
                if isinstance(request, GenerateReqInput):
                    check_fields(request, SessionParams, limits)
                async with contextlib.aclosing(generate(request, caller)) as outputs:
                    async for output in outputs:
                        if facts is not None:
                            note(facts, output, first_token=bool(getattr(request, "stream", False)))
                        yield output
            except Exception:
                request.ended = True  # refused or failed, and what SGLang had begun is ended by now
                raise
            request.ended = True  # but not where its caller has left

        self.manager.generate_request = generate_request

    def _abort_what_has_not_ended(self) -> None:
        """Two seconds after a stream SGLang (0.5.17, 0.5.23) aborts what was asked for, in case its client has left.
        Where the stream has ended there is nothing to abort, and the id may be another request's by then."""
        from starlette.background import BackgroundTask

        create_abort_task = self.manager.create_abort_task

        def create(request: Any) -> BackgroundTask:
            abort = create_abort_task(request)

            async def abort_unless_ended() -> None:
                if not getattr(request, "ended", False):
                    await abort()

            return BackgroundTask(abort_unless_ended)

        self.manager.create_abort_task = create

    def _limits(self) -> FieldLimits:
        model, arguments = self.manager.model_config, self.settled
        dtype = str(model.dtype).removeprefix("torch.")
        no_embeds = embeds_problem(dtype, arguments.max_running_requests, not arguments.disable_radix_cache)
        labels = frozenset(arguments.tokenizer_metrics_allowed_custom_labels or ())
        return FieldLimits(model.vocab_size, model.hidden_size, no_embeds, labels if arguments.enable_metrics else None)

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Sampling parameters by SGLang's names. Raises :class:`RequestError`."""
        manager = self.manager
        vocab_size = manager.model_config.vocab_size
        seeded = bool(self.settled.enable_deterministic_inference)
        check_parameters(parameters, manager.sampling_params_class, manager.tokenizer, vocab_size, seeded=seeded)

    def _give_up(self, callers: Iterable[asyncio.Task[Any]], reason: str) -> None:
        """Ends those that wait for another answer than a request's, such as to an operator: no rank will give it."""
        from sglang.srt.managers.communicator import FanOutCommunicator

        for caller in self.callers.intersection(callers):
            self.given_up[caller] = reason
            caller.cancel()
        for each in vars(self.manager).values():
            if isinstance(each, FanOutCommunicator) and each._mode == "watching":
                # Or the next caller would wait for the last answer (0.5.17, 0.5.23).
                each._result_event = each._result_values = None

    async def close(self) -> None:
        """Ends receiving and closes the sockets."""
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)
        if self.manager is None:
            return
        for name in ("io_executor", "cpu_executor"):  # of a vision model
            executor = getattr(self.manager.mm_processor, name, None)
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)
        for socket in (self.manager.recv_from_detokenizer, self.manager.send_to_scheduler):
            socket.close(linger=0)
        versions.close_transports(self.manager)
        self.manager.load_snapshot_reader.close()
        self._doors.close()
        if self._images_whole:
            self.share_images(True)

    async def _receive(self) -> None:
        while True:
            try:
                await self.manager.handle_loop()
            except zmq.Again:
                continue  # woken up for nothing, as when the connection to a rank ends
            except Exception as error:
                # One bad message must not silence all that follow; whose answer it was cannot be told.
                log.exception("an output of the ranks could not be delivered")
                self._fail_all(f"an output could not be delivered: {type(error).__name__}: {error}", ranks_go_on=True)


def _input(**arguments: Any) -> Any:
    """SGLang's own object for a request, whose answer comes as it grows."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    return GenerateReqInput(stream=True, **arguments)
