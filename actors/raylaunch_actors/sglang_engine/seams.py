"""What is done where SGLang is hooked, and why. ``hooked.py`` has the names. Nothing is left when the rank serves."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import zmq

from raylaunch.protocol import Gate, LoadFacts
from raylaunch.protocol.rounds import RoundName
from raylaunch.wire import CurveKeys
from raylaunch_actors.progress import bytes_fetched, reported
from raylaunch_actors.sglang_engine import communicators, hooked, versions
from raylaunch_actors.sglang_engine.hooks import Seam, Wrapper
from raylaunch_actors.sglang_engine.rounds import Rounds
from raylaunch_actors.sglang_engine.shorter import shorter_seams
from raylaunch_actors.sglang_engine.warmup import build_kernels


def all_seams(rounds: Rounds) -> list[Seam]:
    """Every hook of a launch. On a CPU nothing is captured, and SGLang lacks what would be hooked for it."""
    sockets = rounds.spec.sockets
    between_nodes = socket_seams(sockets.keys) if sockets is not None and sockets.keys is not None else []
    if rounds.spec.device == "cpu":
        return [*between_nodes, *life_seams(rounds), *progress_seams(rounds), *shorter_seams()]
    return [
        *between_nodes,
        *life_seams(rounds),
        *capture_seams(rounds),
        *all_reduce_seams(rounds),
        *progress_seams(rounds),
        *shorter_seams(),
    ]


# ---- sockets to a driver on another node


def socket_seams(keys: CurveKeys) -> list[Seam]:
    """Every socket that SGLang makes is encrypted, and hears nobody but the driver: it unpickles what arrives
    (https://github.com/sgl-project/sglang/pull/21435)."""
    options: dict[int, Any] = {
        zmq.CURVE_SERVERKEY: keys.server,
        zmq.CURVE_PUBLICKEY: keys.public,
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.TCP_KEEPALIVE: 1,
    }

    def wrap(original: Callable[..., Any], context: Callable[..., Any]) -> Callable[..., Any]:
        def make(*arguments: Any, **named: Any) -> Any:
            defaults = context(*arguments).sockopts
            defaults.update(options)
            try:
                return original(*arguments, **named)
            finally:
                for one in options:
                    del defaults[one]

        return make

    return [
        Seam(hooked.SOCKETS, lambda original: wrap(original, lambda context, *_: context)),
        Seam(hooked.LOADS, lambda original: wrap(original, lambda *_: zmq.Context.instance())),
    ]


# ---- CONNECT and LOAD


def life_seams(rounds: Rounds) -> list[Seam]:
    """Ends of phases that SGLang runs through by itself."""
    said = communicators.SetUpLog()
    return [
        Seam(hooked.MAKE_GROUPS, _heard(said)),
        Seam(hooked.CONNECT, _connected(rounds, said)),
        Seam(hooked.LOAD, _loaded(rounds)),
        Seam(hooked.WATCHDOG, _watchdog),
    ]


def _heard(said: communicators.SetUpLog) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def init_parallel_runtime(*arguments: Any, **options: Any) -> Any:
            with said:
                return original(*arguments, **options)

        return init_parallel_runtime

    return wrap


def _connected(rounds: Rounds, said: communicators.SetUpLog) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def init_torch_distributed(self: Any, *arguments: Any, **options: Any) -> Any:
            with said:
                result = original(self, *arguments, **options)
            if not self.is_draft_worker:
                rounds.model_runner = self
                chosen = versions.settled_communication()
                problem = said.reason(off=chosen.disable_custom_all_reduce)
                if rounds.spec.world_size > 1:
                    rounds.fused = chosen.flashinfer_allreduce_fusion_backend
                rounds.gate.arrive(Gate.CONNECTED, communicators.connected(rounds.spec, problem, rounds.fused))
            return result

        return init_torch_distributed

    return wrap


def _loaded(rounds: Rounds) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def load_model(self: Any, *arguments: Any, **options: Any) -> Any:
            path = rounds.spec.config.model.path  # SGLang fetches it from the Hub here if it has to
            with reported(rounds.gate, "loading weights", lambda: (_memory_taken(), bytes_fetched(path))):
                result = original(self, *arguments, **options)
            if not self.is_draft_worker:
                sizes = [one.numel() * one.element_size() for one in self.model.parameters()]
                dtype = str(getattr(self, "dtype", "")).removeprefix("torch.")
                rounds.gate.arrive(Gate.LOADED, LoadFacts(len(sizes), sum(sizes), 0, dtype))
            return result

        return load_model

    return wrap


def _memory_taken() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _watchdog(original: Callable[..., Any]) -> Callable[..., Any]:
    """SGLang's watchdog signals its parent process, which under Ray is the raylet: a whole node would be lost
    (https://github.com/sgl-project/sglang/pull/1816)."""

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.parent_process = _OwnProcess()

    return init


class _OwnProcess:
    """Takes the watchdog's signal in place of the parent: the rank ends, and the driver sees why in its log."""

    def send_signal(self, number: int) -> None:
        text = f"SGLang's watchdog found no progress (signal {number}): this rank ends itself"
        print(text, file=sys.stderr, flush=True)
        os._exit(70)


# ---- CAPTURE and REGISTER


def capture_seams(rounds: Rounds) -> list[Seam]:
    """Rounds, iterations, graphs and pieces."""
    return [
        Seam(hooked.CAPTURE_PREFILL, _prefill(rounds)),
        Seam(hooked.CAPTURE_DECODE, _decode(rounds)),
        Seam(hooked.PREFILL_CONTEXT, _round(rounds, "prefill")),
        Seam(hooked.DECODE_CONTEXT, _round(rounds, "decode")),
        Seam(hooked.REPLAY, _before(rounds.before_replay)),
        Seam(hooked.BEGIN_GRAPH, _before(rounds.before_graph)),
        Seam(hooked.MAKE_PIECE, _then(rounds.pieces.add)),
        Seam(hooked.CALL_PIECE, _before(rounds.before_piece)),
        *(Seam(hook, _capture_one(rounds)) for hook in hooked.CAPTURE_ONE),
    ]


def _then(after: Callable[[Any], None]) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            result = original(self, *arguments, **options)
            after(self)
            return result

        return method

    return wrap


def _before(check: Callable[..., None]) -> Wrapper:
    """Calls ``check`` with the arguments that have no name, the object first."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(*arguments: Any, **options: Any) -> Any:
            check(*arguments)
            return original(*arguments, **options)

        return method

    return wrap


def _prefill(rounds: Rounds) -> Wrapper:
    def begin(runner: Any) -> None:
        rounds.runner = runner
        rounds.gate.progress("building kernels")
        build_kernels(runner)

    return _before(begin)


def _decode(rounds: Rounds) -> Wrapper:
    def begin(runner: Any) -> None:
        rounds.runner = runner

    return _before(begin)


def _round(rounds: Rounds, name: RoundName) -> Wrapper:
    """Gates around SGLang's capture context, and inside it before its exit exchanges addresses.

    Its exit runs a collective in any outcome: after a failure that must not happen, or the error is hidden by a hang
    (https://github.com/sgl-project/sglang/pull/11275).
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def graph_capture(*arguments: Any, **options: Any) -> Iterator[Any]:
            rounds.begin(name)
            with original(*arguments, **options) as context:
                try:
                    yield context
                    rounds.captured()
                except BaseException as error:
                    rounds.failed(error)
                    raise
            rounds.registered()

        return graph_capture

    return wrap


def _capture_one(rounds: Rounds) -> Wrapper:
    """The gate before each iteration. While a stream captures, the rank never waits: the gate came before."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_one(
            self: Any,
            shape_key: Any,
            forward_fn: Callable[[], Any],
            capture_inputs: Any = None,
            post_warmup_hook: Callable[[], None] | None = None,
        ) -> Any:
            def forward() -> Any:
                rounds.iteration()
                return forward_fn()

            def warmed_up() -> None:
                if post_warmup_hook is not None:
                    post_warmup_hook()
                rounds.between()

            plain = shape_key == type(shape_key)(shape_key.size)
            rounds.begin_shape(shape_key.size, plain)
            result = original(self, shape_key, forward, capture_inputs, warmed_up)
            rounds.end_shape()
            return result

        return capture_one

    return wrap


# ---- all-reduces while a stream captures


def all_reduce_seams(rounds: Rounds) -> list[Seam]:
    """Where SGLang's two custom all-reduces take the address of an input."""
    return [
        Seam(hooked.SGL_KERNEL, _sgl_kernel(rounds)),
        Seam(hooked.JIT, _jit(rounds)),
    ]


def _sgl_kernel(rounds: Rounds) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def all_reduce(fa: int, inp: torch.Tensor, out: torch.Tensor, reg_buffer: int, reg_buffer_bytes: int) -> None:
            captured = torch.cuda.is_current_stream_capturing()
            rounds.reduces(fa, captured, staged=bool(reg_buffer))
            if captured:
                rounds.record(inp.numel() * inp.element_size(), inp.shape, inp.dtype)
            original(fa, inp, out, reg_buffer, reg_buffer_bytes)

        return all_reduce

    return wrap


def _jit(rounds: Rounds) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def allocate(self: Any, inp: torch.Tensor, nbytes: int) -> Any:
            rounds.record(nbytes, inp.shape, inp.dtype)
            return original(self, inp, nbytes)

        return allocate

    return wrap


# ---- progress


def progress_seams(rounds: Rounds) -> list[Seam]:
    """Slow steps say that they go on; a compiler that works is not a hang."""
    return [
        Seam(hooked.POOLS, _said(rounds, "allocating the KV cache")),
        Seam(hooked.ATTENTION, _said(rounds, "preparing attention")),
        Seam(hooked.GRAPHS, _said(rounds, "warming up")),
        Seam(hooked.DUMMY, _shape_said(rounds)),
        *(Seam(hook, _built(rounds)) for hook in hooked.KERNELS),
    ]


def _said(rounds: Rounds, activity: str) -> Wrapper:
    return _before(lambda *_: rounds.gate.progress(activity))


def _shape_said(rounds: Rounds) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, num_tokens: int) -> Any:
            rounds.gate.progress(f"compiling for {num_tokens} tokens")
            return original(self, num_tokens)

        return run

    return wrap


def _built(rounds: Rounds) -> Wrapper:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def build(*arguments: Any, **options: Any) -> Any:
            name = options.get("name", arguments[0] if arguments else "?")
            rounds.gate.progress(f"building the kernel {name}")
            return original(*arguments, **options)

        return build

    return wrap
