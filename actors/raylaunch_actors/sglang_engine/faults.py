"""Faults provoked on purpose under SGLang: each breaks one rule in SGLang's own objects. Used by ``at_gates``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from raylaunch.config import FaultConfig
from raylaunch.sglang.source import Hook
from raylaunch_actors.sglang_engine import hooked, seams
from raylaunch_actors.sglang_engine.hooks import Seam
from raylaunch_actors.sglang_engine.rounds import Rounds

ALL_REDUCE = f"{hooked.ALL_REDUCES}.custom_all_reduce"


def install(faults: Sequence[FaultConfig]) -> None:
    """Lets the launch hook these too. What is hooked first lies inside the launch's own hooks."""
    mine = [fault for fault in faults if fault.action in INJECTIONS]
    if not mine:
        return
    original = seams.all_seams

    def all_seams(rounds: Rounds) -> list[Seam]:
        return [*(seam for fault in mine for seam in INJECTIONS[fault.action](fault)), *original(rounds)]

    seams.all_seams = all_seams


def _third_iteration(fault: FaultConfig) -> list[Seam]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_one(self: Any, shape_key: Any, forward_fn: Callable[[], Any], *rest: Any) -> Any:
            result = original(self, shape_key, forward_fn, *rest)
            forward_fn()
            return result

        return capture_one

    return [Seam(hook, wrap) for hook in hooked.CAPTURE_ONE]


def _no_capture_context(fault: FaultConfig) -> list[Seam]:
    def wrap(_: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def capture(self: Any) -> Iterator[None]:
            yield

        return capture

    return [Seam(Hook(ALL_REDUCE, "CustomAllreduce.capture"), wrap)]


def _extra_all_reduce(fault: FaultConfig) -> list[Seam]:
    """One captured all-reduce of the shape is captured twice."""
    done: list[bool] = []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def custom_all_reduce(self: Any, inp: torch.Tensor) -> Any:
            if fault.fits(len(inp)) and not done and torch.cuda.is_current_stream_capturing():
                done.append(True)
                original(self, inp)
            return original(self, inp)

        return custom_all_reduce

    return [Seam(Hook(ALL_REDUCE, "CustomAllreduce.custom_all_reduce"), wrap)]


def _skip_registration(fault: FaultConfig) -> list[Seam]:
    return [Seam(Hook(ALL_REDUCE, "CustomAllreduce.register_graph_buffers"), _nothing)]


def _zero_all_reduce(fault: FaultConfig) -> list[Seam]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def all_reduce(self: Any, inp: torch.Tensor, registered: bool) -> torch.Tensor:
            out: torch.Tensor = original(self, inp, registered)
            return out.zero_() if fault.fits(len(inp)) and torch.cuda.is_current_stream_capturing() else out

        return all_reduce

    return [Seam(Hook(ALL_REDUCE, "CustomAllreduce._all_reduce_impl"), wrap)]


def _stale_decode(fault: FaultConfig) -> list[Seam]:
    """Decode replays see the positions and lengths of the capture."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def execute(self: Any, batch: Any, *rest: Any, **options: Any) -> Any:
            if not fault.fits(len(batch.seq_lens)):
                return original(self, batch, *rest, **options)
            ones = {"seq_lens": torch.ones_like(batch.seq_lens), "seq_lens_cpu": torch.ones_like(batch.seq_lens_cpu)}
            zeros = {"positions": torch.zeros_like(batch.positions), "seq_lens_sum": len(batch.seq_lens)}
            return original(self, dataclasses.replace(batch, **ones, **zeros), *rest, **options)

        return execute

    return [Seam(Hook(hooked.DECODE, "DecodeCudaGraphRunner.execute"), wrap)]


def _warm_again(fault: FaultConfig) -> list[Seam]:
    """A piece warms in its capture iteration, as one that was compiled again there does."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            from sglang.srt.compilation.compile_phase import get_pcg_capture_stream

            if self.piecewise_compile_index == 1 and get_pcg_capture_stream() is not None:
                return self.compiled_graph_for_general_shape(*arguments)
            return original(self, *arguments)

        return call

    return [Seam(hooked.CALL_PIECE, wrap)]


def _nothing(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **options: None


INJECTIONS: dict[str, Callable[[FaultConfig], list[Seam]]] = {
    "third_iteration": _third_iteration,
    "no_capture_context": _no_capture_context,
    "extra_all_reduce": _extra_all_reduce,
    "skip_registration": _skip_registration,
    "zero_all_reduce": _zero_all_reduce,
    "stale_decode": _stale_decode,
    "warm_again": _warm_again,
}
