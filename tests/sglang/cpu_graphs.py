"""Decode "graphs" for SGLang's ranks on CPUs, where it captures none: eager passes that are told apart from its own.

:func:`install` is a worker's setup hook of Ray's. What plans, verifies and serves around them is the real thing.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

SHAPES = (2, 4, 6, 8, 10, 12)
WRONG = "RAYLAUNCH_TEST_WRONG"
"""Names a shape at which rank 1 computes something else."""


class EagerGraphs:
    """In the place of SGLang's ``DecodeCudaGraphRunner``, as far as VERIFY knows it."""

    def __init__(self, rounds: Any) -> None:
        self._rounds = rounds
        self.backend = SimpleNamespace(_graphs=[SimpleNamespace(size=size) for size in SHAPES])

    def capture_prepare(self, size: int) -> tuple[Any]:
        import torch
        from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode

        zeros, ones = torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.int64)
        batch = ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=size,
            input_ids=zeros,
            req_pool_indices=zeros,
            seq_lens=ones,
            seq_lens_cpu=ones,
            orig_seq_lens=ones,
            seq_lens_sum=size,
            out_cache_loc=zeros,
            positions=zeros,
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        return (batch,)

    def execute(self, batch: Any) -> Any:
        self._rounds.replays += 1
        output = self._rounds.model_runner.eager_runner.execute(batch)
        if self._rounds.spec.rank == 1 and os.environ.get(WRONG) == str(batch.batch_size):
            output.next_token_logits += 1
        return output


def install() -> None:
    """Gives them to the ranks that this process may become."""
    import torch
    from raylaunch_actors.sglang_engine import launch, rounds, verify

    rounds.planned_shapes = lambda runner, model_runner: {"decode": list(SHAPES)}
    rounds.graph_backend = lambda graphs, name: "full"
    warmed, verify_all, verify_one = rounds.Rounds.warmed, launch.verify, verify._verify

    def with_graphs(self: Any) -> None:
        self.runner = self.runner or EagerGraphs(self)
        warmed(self)

    def captured_before(gate: Any, its: Any) -> None:
        its.begin("decode")
        for size in reversed(SHAPES):
            its.begin_shape(size, True)
            for _ in range(rounds.ITERATIONS["full"]):
                its.iteration()
                its.between()
            its.end_shape()
        its.captured()
        its.registered()
        verify_all(gate, its)

    def on_a_cpu(its: Any, *arguments: Any) -> Any:
        runner, synchronize = its.model_runner, torch.cuda.synchronize
        kept, runner.decode_cuda_graph_runner = runner.decode_cuda_graph_runner, its.runner
        torch.cuda.synchronize = lambda *_: None
        try:
            return verify_one(its, *arguments)
        finally:
            runner.decode_cuda_graph_runner, torch.cuda.synchronize = kept, synchronize

    rounds.Rounds.warmed, launch.verify, verify._verify = with_graphs, captured_before, on_a_cpu
