"""What differs between SGLang's versions on the driver's side is here, and nowhere else.

A way is chosen by what SGLang has, never by its number. The versions that are named are those that brought a change.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import zmq

from raylaunch.errors import ConfigError
from raylaunch.sglang.listeners import Doors

OF_ONE_ENGINE = (
    "random_seed", "host", "port", "nccl_port", "engine_info_bootstrap_port", "disaggregation_bootstrap_port",
    "dist_init_addr", "base_gpu_id", "gpu_id_step",
)  # fmt: skip
"""Arguments in which engines of one process may differ: nothing on the driver's side is computed by them."""


class Settled:
    """SGLang's arguments as it has settled them, by name: since 0.5.19 its own object keeps those that it was given."""

    def __init__(self, server_args: Any) -> None:
        self._args = server_args

    def __getattr__(self, name: str) -> Any:
        from raylaunch_actors.sglang_engine.versions import value

        return value(self._args, name)


class Published:
    """The arguments that SGLang's side of this process works by: there is one set for all of its engines, as SGLang
    (0.5.17, 0.5.23) keeps it in a global, and the last one to be published counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[object, Mapping[str, str]] = {}
        self._whole = set[object]()

    def join(self, engine: object, server_args: Any) -> None:
        """An engine will work by these, until it leaves. Raises :class:`ConfigError` if another works by others."""
        from raylaunch_actors.sglang_engine import versions

        mine = versions.resolved_arguments(server_args, OF_ONE_ENGINE)
        with self._lock:
            for theirs in self._engines.values():
                if difference := versions.unlike(theirs, mine):
                    text = "SGLang keeps its arguments once for a process, and another engine of this one has others: "
                    text += f"{difference}; shut that one down first, or use another process"
                    raise ConfigError("engine.kind", "sglang", text)
            self._engines[engine] = mine

    @contextmanager
    def held(self, server_args: Any) -> Iterator[None]:
        """Around what SGLang makes of them here: since 0.5.19 it looks for the very object that was published."""
        with self._lock:
            publish(server_args, "tokenizer")
            yield

    def images_whole(self, engine: object, whole: bool) -> None:
        """Whether images go to an engine's ranks as they are, or by the name of shared memory, which is of one node:
        SGLang asks that once for all."""
        from sglang.srt.managers import mm_utils

        with self._lock:
            (self._whole.add if whole else self._whole.discard)(engine)
            mm_utils._is_default_tensor_transport = True if self._whole else None

    def leave(self, engine: object) -> None:
        """The engine is gone. May be called more than once, and without :meth:`join`."""
        with self._lock:
            self._engines.pop(engine, None)


published = Published()
"""Of this process."""


def publish(server_args: Any, role: str) -> None:
    """Tells SGLang what this process is. Before 0.5.18 or 0.5.19 its own objects did so by themselves too."""
    from sglang.srt import runtime_context

    runtime_context.publish(server_args, role=role)


def apply_settled(arguments: bytes, values: Mapping[str, Any]) -> Any:
    """The arguments that rank 0 has settled, with those of the server.

    Args:
        arguments: a pickle, of a rank of our own that has sent it through Ray.
        values: arguments by name.
    """
    from sglang.srt.parser.template_detection import resolve_auto_parsers

    args = pickle.loads(arguments)
    if hasattr(args, "override"):  # until 0.5.18
        args.override("raylaunch", **values)
    else:
        from sglang.srt.arg_groups.overrides import declare_resolution

        declare_resolution(args, "raylaunch", **values)
    resolve_auto_parsers(args)
    return args


def receive_loads(manager: Any, doors: Doors, name: str) -> None:
    """Lets ranks on other nodes say how busy they are. SGLang's reader (0.5.17, 0.5.23) takes what anybody sends."""
    reader = manager.load_snapshot_reader
    reader._socket.close()
    context: zmq.Context[Any] = zmq.Context()  # SGLang's is the process's own, and the user's
    reader._socket = context.socket(zmq.PULL)
    reader._socket.linger, reader._socket.conflate = 0, True
    doors.open(context, reader._socket, name)


def forget(manager: Any, request_id: str) -> None:
    """Has a tokenizer manager know nothing of a request any more."""
    if hasattr(manager, "_remove_req_state"):  # until 0.5.17: requests of several samples are kept in two more tables
        manager._remove_req_state(request_id)
    else:
        manager.rid_to_state.pop(request_id, None)


def guard_dispatch(manager: Any) -> None:
    """Ends a request on its way to the ranks that were lost meanwhile, with the reason that its object has then.

    What was sent is told by ``sent`` of its state: SGLang's own mark is not in 0.5.18 and 0.5.19. Its object tells it
    too, also when SGLang knows it no more.
    """
    from fastapi import HTTPException

    dispatch = manager._dispatch_to_scheduler

    def dispatch_unless_lost(message: Any) -> None:
        requests = [one for one in getattr(message, "batch", None) or [message] if hasattr(one, "input_ids")]
        states = [state for one in requests if (state := manager.rid_to_state.get(one.rid)) is not None]
        for state in states:
            # Each sample of a request is a copy of its object.
            if (reason := getattr(state.obj, "lost_for", None)) is not None:
                raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, reason)
        dispatch(message)
        for state in states:
            state.sent = state.obj.sent = True

    manager._dispatch_to_scheduler = dispatch_unless_lost


def send_again(dispatch: Callable[[Any], None], request: Any) -> None:
    """Sends the ranks a request that its manager has sent before: of its own way only what the ranks must have."""
    stats = request.time_stats
    request.wrap_pickle_fields()
    try:
        dispatch(request)
    finally:
        request.time_stats = stats


def freeze_garbage(send: Callable[[Any], None]) -> None:
    """Has the ranks and the detokenizer leave out of their garbage collections what is there by now, as SGLang's server
    does since 0.5.18; not this process, which is the user's."""
    from sglang.srt.entrypoints import http_server
    from sglang.srt.managers.io_struct import FreezeGCReq

    if hasattr(http_server, FREEZE):
        send(FreezeGCReq())


FREEZE = "_freeze_gc_after_server_warmup"
CONTRACT = "generate_contract_error"


def prepare_application(http_server: Any, *, metrics: bool) -> None:
    """Before SGLang's HTTP application is first run."""
    if hasattr(http_server, FREEZE):  # by a request to its own address, where another server may listen
        setattr(http_server, FREEZE, lambda server_args: None)
    if hasattr(http_server, CONTRACT):  # 0.5.22 looks at a body before we do, and answers in a shape of its own
        setattr(http_server, CONTRACT, lambda body: None)
    add = getattr(http_server, "add_prometheus_track_response_middleware", None)
    if add is not None and metrics and http_server.app.middleware_stack is None:  # 0.5.23 does so in its lifespan
        add(http_server.app)


def close_transports(manager: Any) -> None:
    """Ends what hands images over on GPUs, of 0.5.18 and later."""
    transport = getattr(manager, "cuda_vmm_feature_transport", None)
    if transport is not None:
        transport.shutdown()
