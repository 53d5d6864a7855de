"""VERIFY sees what a decode graph does wrong: other positions, keys that are not written, queries that are not used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs import context, ops
from raylaunch_actors.graphs.capture import CaptureRunner
from raylaunch_actors.graphs.context import Mode
from raylaunch_actors.graphs.piecewise import PiecewiseGraph, ShapeState
from raylaunch_actors.graphs.recorded import RecordedGraphs
from raylaunch_actors.graphs.split import CompiledOnce, PieceBackend
from raylaunch_actors.reference import verify
from raylaunch_actors.reference.attention import AttentionBatch
from raylaunch_actors.reference.limits import Limits
from raylaunch_actors.reference.runner import ModelRunner
from raylaunch_actors.reference.verify import PREFIX_TOKENS, sample_plan, verify_shapes

from raylaunch.wire import StepPlan
from tests.models import save
from tests.reference.engines import make_runner

Attend = Callable[..., Any]


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModelRunner, CaptureRunner]]:
    communicator = SingleRank()
    ops.bind_group("tp", communicator)
    runner = make_runner(save("qwen3_tied", Path(tmp_path_factory.mktemp("model"))), prefill=(32,), decode=(2, 8))
    backend = PieceBackend(RecordedGraphs(communicator), runner.fixed_addresses())
    runner.compile(CompiledOnce(runner.loaded.inner, backend))
    capture = CaptureRunner(communicator, runner.dummy, dict.fromkeys(("prefill", "decode"), backend.pieces))
    for name in ("prefill", "decode"):
        capture.capture(name, runner.limits.shapes_of(name), lambda *_: None)
    yield runner, capture
    ops.unbind_group("tp")


def wrong_shapes(rank: tuple[ModelRunner, CaptureRunner]) -> set[str]:
    verdicts = verify_shapes(*rank, lambda _: None)
    return {name for name, one in verdicts.items() if not one.max_error <= one.tolerance}


def test_what_is_right_passes(rank: tuple[ModelRunner, CaptureRunner]) -> None:
    assert wrong_shapes(rank) == set()


def elsewhere(attend: Attend) -> Attend:
    def attended(self: AttentionBatch, *arguments: Any) -> Any:
        rows, self._rows = self._rows, self._rows * 0 + self.cache.spare_row
        try:
            return attend(self, *arguments)
        finally:
            self._rows = rows

    return attended


def without_queries(attend: Attend) -> Attend:
    return lambda self, q, *arguments: attend(self, q * 0, *arguments)


def shorter(attend: Attend) -> Attend:
    """The last block of keys is left out."""

    def attended(self: AttentionBatch, *arguments: Any) -> Any:
        whole = self.sequences
        self.sequences = [
            type(part)(part.start, part.rows, part.kv_start + 1, part.kv_length - 1, part.wants_token) for part in whole
        ]
        try:
            return attend(self, *arguments)
        finally:
            self.sequences = whole

    return attended


@pytest.mark.parametrize("change", [elsewhere, without_queries, shorter])
def test_a_decode_that_attends_otherwise_is_seen(
    rank: tuple[ModelRunner, CaptureRunner], change: Callable[[Attend], Attend], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = AttentionBatch.attend, change(AttentionBatch.attend)

    def attend(self: AttentionBatch, *arguments: Any) -> Any:
        now = context.current()
        return (wrong if now.round == "decode" and now.mode is Mode.REPLAY else right)(self, *arguments)

    monkeypatch.setattr(AttentionBatch, "attend", attend)
    assert wrong_shapes(rank) == {"decode 2", "decode 8"}


def test_a_decode_at_the_positions_of_the_capture_is_seen(
    rank: tuple[ModelRunner, CaptureRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = ModelRunner.hidden

    def stale(self: ModelRunner, plan: StepPlan, mode: Mode) -> Any:
        if plan.round == "decode" and mode is Mode.REPLAY:
            plan = msgspec.structs.replace(plan, positions=[0] * len(plan.positions))
        return hidden(self, plan, mode)

    monkeypatch.setattr(ModelRunner, "hidden", stale)
    assert wrong_shapes(rank) == {"decode 2", "decode 8"}


def test_a_replay_that_reads_inputs_of_an_earlier_step_is_seen(
    rank: tuple[ModelRunner, CaptureRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if they are the right ones, as capture or an earlier step may leave them: VERIFY has poisoned them."""
    replay = PiecewiseGraph._replay

    def without_copies(self: PiecewiseGraph, state: ShapeState, *arguments: Any) -> Any:
        return replay(self, dataclasses.replace(state, copies=[]), *arguments)

    monkeypatch.setattr(verify, "ROUNDS", ("prefill",))
    assert wrong_shapes(rank) == set()
    monkeypatch.setattr(PiecewiseGraph, "_replay", without_copies)
    assert wrong_shapes(rank) == {"prefill 32"}


def test_a_prefill_that_keeps_nothing_is_seen(
    rank: tuple[ModelRunner, CaptureRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it computes itself is right: only a later step would miss the keys."""
    attend = AttentionBatch.attend

    def forgetful(self: AttentionBatch, q: Any, k: Any, v: Any, scale: float, layer: int) -> Any:
        kept = self.cache.keys[layer].clone()
        out = attend(self, q, k, v, scale, layer)
        if context.current().round == "prefill" and context.current().mode is Mode.REPLAY:
            self.cache.keys[layer].copy_(kept)
        return out

    monkeypatch.setattr(AttentionBatch, "attend", forgetful)
    assert wrong_shapes(rank) == {"prefill 32"}


@pytest.mark.parametrize(
    ("capacity", "context_length", "longest"),
    [(4096, 1024, PREFIX_TOKENS), (4096, 50, 49), (80, 1024, 9), (8, 1024, 0), (5, 1024, 0)],
)
def test_sampled_rows_fit_the_cache_and_differ(capacity: int, context_length: int, longest: int) -> None:
    plan = sample_plan("decode", 8, Limits((32,), (8,), 8, context_length, capacity, 1000))
    ends = [part.kv_start + part.kv_length for part in plan.sequences]
    assert len(ends) == min(8, capacity)
    assert max(plan.positions) == longest
    assert plan.positions == [part.kv_length for part in plan.sequences]
    assert max(ends) < capacity
    assert len(set(plan.positions)) == min(8, longest // 2 + 1)
    ranges = [set(range(part.kv_start, end + 1)) for part, end in zip(plan.sequences, ends, strict=True)]
    assert sum(map(len, ranges)) == len(set().union(*ranges)), "no two rows share a place in the cache"
