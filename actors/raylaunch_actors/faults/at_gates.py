"""Faults provoked on purpose in one rank, to see that each ends in its named error.

Three kinds: another environment than the rank was promised, an action at a gate (raise, be killed, hang), and an
injection into the engine that breaks one rule of the protocol. The engine itself knows nothing of them: they are
patched in from here, those of the engine ``sglang`` from ``raylaunch_actors.sglang_engine.faults``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from raylaunch.config import FaultConfig
from raylaunch.errors import RankFault
from raylaunch.protocol import Facts, Gate, Identity, Release, RoundName, Step
from raylaunch_actors.gate import RankGate
from raylaunch_actors.spec import RankSpec

FOREVER_S = 1_000_000
MAPPED_BYTES, MAPPED_TIMES = 1 << 28, 16  # little memory, in very many page tables


def provoke(spec: RankSpec, gate: RankGate) -> RankGate:
    """Installs the faults that are configured for this rank; returns the gate to use."""
    faults = [fault for fault in spec.config.faults if fault.rank == spec.rank]
    for fault in faults:
        if fault.action in ENVIRONMENTS:
            ENVIRONMENTS[fault.action]()
    if spec.program == "sglang":
        from raylaunch_actors.sglang_engine import faults as sglang_faults

        sglang_faults.install(faults)
    else:
        for fault in faults:
            if fault.action in INJECTIONS:
                INJECTIONS[fault.action](fault)
    actions = [fault for fault in faults if fault.action in ACTIONS]
    other_version = any(fault.action == "other_version" for fault in faults)
    return FaultyGate(gate, actions, other_version) if actions or other_version else gate


def matches(at: str, step: Step) -> bool:
    """Whether a step is the one that a fault names, such as ``capture prefill 128 2``; fewer words match more."""
    words = at.lower().split()
    names = [step.phase.name.lower(), step.round or "", str(step.shape or ""), str(step.iteration or "")]
    return words == names[: len(words)]


class FaultyGate(RankGate):
    """A gate at which something happens: before a rank arrives or, in CAPTURE, once it is let into the iteration."""

    def __init__(self, gate: RankGate, actions: list[FaultConfig], other_version: bool) -> None:
        # The driver's calls reach the gate it knows: both are one object with one state.
        self.__dict__ = gate.__dict__
        self._actions, self._other_version = actions, other_version

    def arrive(
        self,
        gate: Gate,
        facts: Facts = None,
        *,
        round: RoundName | None = None,
        shape: int | None = None,
        iteration: int | None = None,
        offer: Any = None,
    ) -> Release:
        due = [fault for fault in self._actions if matches(fault.at, Step(gate, round, shape, iteration))]
        if self._other_version and isinstance(facts, Identity):
            facts = dataclasses.replace(facts, fingerprint={**facts.fingerprint, "version of torch": "0.0.0"})
        if gate is Gate.ITERATION:
            release = super().arrive(gate, facts, round=round, shape=shape, iteration=iteration, offer=offer)
            self._act(due)
            return release
        self._act(due)
        return super().arrive(gate, facts, round=round, shape=shape, iteration=iteration, offer=offer)

    def _act(self, faults: list[FaultConfig]) -> None:
        for fault in faults:
            self._actions.remove(fault)
            print(f"fault provoked on purpose: {fault.action} at {fault.at}", file=sys.stderr, flush=True)
            ACTIONS[fault.action]()


def _raise() -> None:
    raise ValueError("raised on purpose")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hold_gil() -> None:
    ctypes.PyDLL(None).sleep(FOREVER_S)  # PyDLL, unlike CDLL, keeps the interpreter while it sleeps


def _out_of_memory() -> None:
    """More than any device has is asked of its allocator."""
    import torch

    torch.empty(1 << 50, dtype=torch.uint8, device="cuda" if torch.cuda.is_initialized() else "cpu")


def _illegal_access() -> None:
    from raylaunch_actors.faults.illegal_access import write_to_nowhere

    write_to_nowhere()


ACTIONS: dict[str, Callable[[], object]] = {
    "raise": _raise,
    "exit": lambda: os._exit(3),
    "kill": _kill,
    "segv": lambda: ctypes.string_at(0),
    "stop": _stop,
    "sleep": lambda: time.sleep(FOREVER_S),
    "hold_gil": _hold_gil,
    "illegal_access": _illegal_access,
    "out_of_memory": _out_of_memory,
}


# ---- environments: variables that say something else of this node than is true -----------------------------------


def _other_nccl_host() -> None:
    """NCCL takes this rank for one of another host: it then serves two ranks on one GPU, over sockets."""
    os.environ["NCCL_HOSTID"] = f"raylaunch-{os.getpid()}"


def _visible_gpus() -> list[str]:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(gpus) < 2:
        raise RankFault(None, f"there are no GPUs to number otherwise: CUDA_VISIBLE_DEVICES is {','.join(gpus)!r}")
    return gpus


def _reversed_gpus() -> None:
    """CUDA counts this rank's GPUs from the other end."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(reversed(_visible_gpus()))


def _hidden_gpus() -> None:
    """CUDA sees the first of this rank's GPUs only."""
    os.environ["CUDA_VISIBLE_DEVICES"] = _visible_gpus()[0]


HELD: list[mmap.mmap] = []


def _slow_to_die() -> None:
    """The kernel needs half a second and more to undo this process, as it does where a GPU's memory is given back."""
    descriptor = os.memfd_create("raylaunch-slow-to-die")
    os.ftruncate(descriptor, MAPPED_BYTES)
    HELD.extend(
        mmap.mmap(descriptor, MAPPED_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) for _ in range(MAPPED_TIMES)
    )
    os.close(descriptor)


ENVIRONMENTS: dict[str, Callable[[], None]] = {
    "other_nccl_host": _other_nccl_host,
    "reversed_gpus": _reversed_gpus,
    "hidden_gpus": _hidden_gpus,
    "slow_to_die": _slow_to_die,
}


# ---- injections: each breaks one rule of the reference engine ----------------------------------------------------


def _third_iteration(fault: FaultConfig) -> None:
    from raylaunch_actors.graphs.capture import CaptureRunner

    original = CaptureRunner.capture

    def capture(self: CaptureRunner, *arguments: Any) -> None:
        self.iterations = 3
        original(self, *arguments)

    CaptureRunner.capture = capture  # type: ignore[assignment, method-assign]


def _no_capture_context(fault: FaultConfig) -> None:
    from raylaunch_actors.communicator.parts import CaptureContext
    from raylaunch_actors.communicator.routed import RoutedAllReduce

    @contextmanager
    def nothing(self: object) -> Iterator[None]:
        yield

    CaptureContext.capture = nothing  # type: ignore[method-assign]
    RoutedAllReduce.capture = nothing  # type: ignore[method-assign]


def _extra_all_reduce(fault: FaultConfig) -> None:
    def record(communicator: Any, round_: str, shape: int) -> None:
        import torch

        _record(communicator, communicator.input_memory(64).view(torch.float32), round_, shape)

    _after_capture(fault, record)


def _free_recorded(fault: FaultConfig) -> None:
    """On a GPU: an input whose memory is given back to CUDA between its capture and its registration."""

    def record(communicator: Any, round_: str, shape: int) -> None:
        import torch

        from raylaunch_actors.communicator.cuda_memory import CudaRuntime

        runtime = CudaRuntime.load()
        address = runtime.allocate(4096)
        described = {"shape": (1024,), "typestr": "<f4", "data": (address, False), "version": 3}
        memory = type("Memory", (), {"__cuda_array_interface__": described})()
        _record(communicator, torch.as_tensor(memory, device="cuda"), round_, shape)
        runtime.free(address)

    _after_capture(fault, record)


def _after_capture(fault: FaultConfig, record: Callable[[Any, str, int], None]) -> None:
    """Calls ``record(communicator, round, shape)`` once a shape that the fault names has been captured."""
    import torch

    from raylaunch_actors.graphs.context import Mode
    from raylaunch_actors.reference.runner import ModelRunner

    original = ModelRunner.dummy

    def dummy(self: ModelRunner, mode: Mode, round_: str, shape: int) -> torch.Tensor:
        hidden = original(self, mode, round_, shape)
        if mode is Mode.CAPTURE and self.communicator is not None and _named(fault, round_, shape):
            record(self.communicator, round_, shape)
        return hidden

    ModelRunner.dummy = dummy  # type: ignore[method-assign]


def _record(communicator: Any, x: Any, round_: str, shape: int) -> None:
    """An all-reduce of x that belongs to a graph of no piece; nothing communicates."""
    import torch

    from raylaunch_actors.communicator.base import CallLabel
    from raylaunch_actors.graphs.backend import GraphLabel
    from raylaunch_actors.graphs.cuda import CudaGraphs

    if x.device.type == "cuda":
        graphs = CudaGraphs(communicator, x.device)
        graphs.capture(communicator.all_reduce, [x], GraphLabel(round_, shape, "extra"), graphs.new_pool())
    else:
        communicator.record(x, torch.empty_like(x), CallLabel(round_, shape, "extra", 0))


def _skip_registration(fault: FaultConfig) -> None:
    from raylaunch_actors.communicator.sgl_kernel import SglKernelAllReduce
    from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce

    SharedMemoryAllReduce.register = lambda self, peers: 0  # type: ignore[method-assign]
    SglKernelAllReduce.register = lambda self, peers: 0  # type: ignore[method-assign]


def _no_shared_memory(fault: FaultConfig) -> None:
    """The host gives no memory that peers can map: neither a segment nor a handle of GPU memory."""
    from raylaunch_actors.communicator.arena import Arena
    from raylaunch_actors.communicator.cuda_memory import CudaRuntime

    def refuse(*arguments: Any) -> Any:
        raise RankFault("F16", "refused on purpose")

    Arena.create = refuse  # type: ignore[assignment, method-assign]
    CudaRuntime.handle_of = refuse  # type: ignore[assignment, method-assign]


def _no_peer_access(fault: FaultConfig) -> None:
    """This rank's GPU reaches no other, not even its own through another process."""
    from raylaunch_actors.communicator import topology

    original = topology.gpu_place
    topology.gpu_place = lambda: dataclasses.replace(original(), peers=(), nvlinked=())


def _strip_symbols(fault: FaultConfig) -> None:
    """Drops what ``split_module`` needs to hand sizes to pieces, as a graph pass that forgets metadata would."""
    from raylaunch_actors.graphs import split

    original = split.split_module  # type: ignore[attr-defined]

    def split_module(module: Any, *arguments: Any, **options: Any) -> Any:
        for node in module.graph.nodes:
            if node.op != "placeholder":
                node.meta.pop("example_value", None)
        return original(module, *arguments, **options)

    split.split_module = split_module  # type: ignore[attr-defined]


def _zero_all_reduce(fault: FaultConfig) -> None:
    import torch

    from raylaunch_actors.communicator.sgl_kernel import SglKernelAllReduce
    from raylaunch_actors.communicator.shared_memory import SharedMemoryCall

    original, reduce = SharedMemoryCall.run, SglKernelAllReduce._reduce

    def run(self: SharedMemoryCall) -> None:
        original(self)
        if _named(fault, self.label.round, self.label.shape):
            self.out.zero_()

    def zeroed(self: SglKernelAllReduce, x: torch.Tensor) -> torch.Tensor:
        out = reduce(self, x)
        return out.zero_() if fault.fits(len(x)) and torch.cuda.is_current_stream_capturing() else out

    SharedMemoryCall.run = run  # type: ignore[method-assign]
    SglKernelAllReduce._reduce = zeroed  # type: ignore[method-assign]


def _stale_decode(fault: FaultConfig) -> None:
    """Decode replays see the positions and lengths of the capture."""
    from raylaunch_actors.graphs.context import Mode
    from raylaunch_actors.reference.runner import ModelRunner

    original = ModelRunner.hidden

    def hidden(self: ModelRunner, plan: Any, mode: Mode) -> Any:
        if plan.round == "decode" and mode is Mode.REPLAY and _named(fault, plan.round, plan.shape):
            alone = [msgspec.structs.replace(part, kv_length=0) for part in plan.sequences]
            plan = msgspec.structs.replace(plan, positions=[0] * len(alone), sequences=alone)
        return original(self, plan, mode)

    ModelRunner.hidden = hidden  # type: ignore[method-assign]


def _warm_again(fault: FaultConfig) -> None:
    """The last piece warms in its capture iteration, as one that was recompiled there does."""
    from raylaunch_actors.graphs import context
    from raylaunch_actors.graphs.context import Mode
    from raylaunch_actors.graphs.piecewise import PiecewiseGraph

    original = PiecewiseGraph.forward

    def forward(self: PiecewiseGraph, *arguments: Any) -> Any:
        now = context.current()
        if self.name == "piece1" and now.mode is Mode.CAPTURE and _named(fault, now.round, now.shape):
            return self.module(*arguments)
        return original(self, *arguments)

    PiecewiseGraph.forward = forward  # type: ignore[method-assign]


def _named(fault: FaultConfig, round_name: str, shape: int) -> bool:
    words = fault.at.lower().split()[1:]
    return words == [round_name, str(shape)][: len(words)]


INJECTIONS: dict[str, Callable[[FaultConfig], None]] = {
    "third_iteration": _third_iteration,
    "no_capture_context": _no_capture_context,
    "extra_all_reduce": _extra_all_reduce,
    "skip_registration": _skip_registration,
    "strip_symbols": _strip_symbols,
    "zero_all_reduce": _zero_all_reduce,
    "stale_decode": _stale_decode,
    "warm_again": _warm_again,
    "free_recorded": _free_recorded,
    "no_shared_memory": _no_shared_memory,
    "no_peer_access": _no_peer_access,
}
