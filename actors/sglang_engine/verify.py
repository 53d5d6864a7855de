"""VERIFY under SGLang: every captured shape is replayed as a request would, and compared with SGLang's eager runner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from actors.sglang_engine.rounds import Rounds
from raylaunch.protocol import ShapeVerdict
from raylaunch.protocol.rounds import RoundName

TOKENS_BELOW = 1000  # ids that every vocabulary has
WORDS_AT_ONCE = 1 << 22
MIX = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9)  # odd, so that nothing is lost when a product wraps


def verify_shapes(rounds: Rounds) -> dict[str, ShapeVerdict]:
    """A verdict for every round and shape. Ranks run them in the same order: there are collectives inside."""
    model_runner = rounds.model_runner
    runners = {"prefill": model_runner.prefill_cuda_graph_runner, "decode": model_runner.decode_cuda_graph_runner}
    verdicts = {}
    for plan in rounds.plans or ():
        runner = runners[plan.name]
        for shape in sorted(plan.shapes, reverse=True):
            rounds.gate.progress(f"verifying {plan.name} {shape}")
            verdicts[f"{plan.name} {shape}"] = _verify(rounds, runner, plan.name, shape)
    return verdicts


@torch.no_grad()
def _verify(rounds: Rounds, runner: Any, name: RoundName, shape: int) -> ShapeVerdict:
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

    model_runner = rounds.model_runner
    with (
        rows_of_their_own(model_runner, shape) as rows,
        forward_context(ForwardContext(attn_backend=model_runner.attn_backend)),
    ):
        batch = sample_batch(runner, name, shape, rows)
        eager = _logits(model_runner.eager_runner.execute(dataclasses.replace(batch)))
        before = rounds.replays
        replayed = _logits(runner.execute(dataclasses.replace(batch)))
        torch.cuda.synchronize()
    replays = rounds.replays - before
    whole = rounds.pieces.whole(name)
    return ShapeVerdict(
        max_error=float((eager.float() - replayed.float()).abs().max()),
        tolerance=tolerance(eager, model_runner.dtype),
        digest=digest(replayed),
        graphs=min(replays, 1) if whole else replays,
        eager={} if whole else rounds.pieces.eager(),
    )


def tolerance(eager: torch.Tensor, dtype: torch.dtype) -> float:
    """Largest difference allowed: a graph may choose other kernels than eager does, and rounds at other places."""
    return 16 * float(torch.finfo(dtype).eps) * float(eager.abs().max())


def digest(logits: torch.Tensor) -> str:
    """16 hexadecimal digits of a tensor's bits and their places, computed where it lies.

    Logits of a few hundred rows are some hundred megabytes: taken to the CPU for every shape, they would take longer
    than the forward passes. Integers that wrap add up to the same in any order.
    """
    words = logits.contiguous().view(torch.int16 if logits.element_size() == 2 else torch.int32).flatten()
    total = 0
    for start in range(0, words.numel(), WORDS_AT_ONCE):
        part = words[start : start + WORDS_AT_ONCE].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + part.numel(), device=part.device)
        total += int(((part ^ (places * MIX[0])) * MIX[1]).sum())
    return f"{total & (2**64 - 1):016x}"


def _logits(output: Any) -> torch.Tensor:
    """Logits ``[rows, vocabulary]`` of a forward pass, as a copy: graphs write into the same memory every time."""
    return output.next_token_logits.clone()


@contextmanager
def rows_of_their_own(model_runner: Any, shape: int) -> Iterator[torch.Tensor]:
    """Rows ``[shape]`` of the KV cache, one for each token, entered for request slots 0 and up; undone afterwards.

    While capturing, all tokens are written to one row: what attention then reads depends on which write came last.
    """
    table = model_runner.req_to_token_pool.req_to_token
    first = max(1, int(model_runner.page_size))
    last = max(first + 1, int(model_runner.max_total_num_tokens))
    # Prompts may be longer than the cache is in a launch with little memory: then rows are used more than once.
    rows = first + torch.arange(shape, device=table.device) % (last - first)
    saved = table.clone() if table.numel() < 1 << 22 else None
    yield rows
    if saved is not None:
        table.copy_(saved)
    else:
        table.zero_()


def sample_batch(runner: Any, name: RoundName, shape: int, rows: torch.Tensor) -> Any:
    """A batch as a request would bring it: SGLang's own dummy batch of this shape with seeded tokens of our own."""
    made = runner.capture_prepare(shape)
    batch = made[0]
    device = batch.input_ids.device
    generator = torch.Generator().manual_seed(shape)
    tokens = torch.randint(0, TOKENS_BELOW, (shape,), generator=generator).to(device, batch.input_ids.dtype)
    table = runner.model_runner.req_to_token_pool.req_to_token
    changes: dict[str, Any] = {"input_ids": tokens, "out_cache_loc": rows.to(batch.out_cache_loc.dtype)}
    if name == "prefill":
        lengths = [int(length) for length in batch.extend_seq_lens_cpu if length]
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device, batch.positions.dtype)
        start = 0
        for request, length in enumerate(lengths):
            table[request, :length] = rows[start : start + length].to(table.dtype)
            start += length
        changes |= {"positions": positions, "next_token_logits_buffer": None}
    else:
        requests = torch.arange(shape, device=device)
        changes |= {
            "positions": torch.zeros_like(batch.positions),
            "req_pool_indices": requests.to(batch.req_pool_indices.dtype),
            "seq_lens": torch.ones_like(batch.seq_lens),
            "seq_lens_cpu": torch.ones_like(batch.seq_lens_cpu),
            "seq_lens_sum": shape,
        }
        table[:shape, 0] = rows.to(table.dtype)
    if batch.mrope_positions is not None:
        changes["mrope_positions"] = changes["positions"].expand(3, shape).contiguous()
    return dataclasses.replace(batch, **changes)
