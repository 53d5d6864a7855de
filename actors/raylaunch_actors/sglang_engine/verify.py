"""VERIFY under SGLang: a captured shape is replayed as a request would, and compared with SGLang's eager runner."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from raylaunch.protocol import ShapeVerdict
from raylaunch.protocol.rounds import RoundName
from raylaunch_actors.sglang_engine.rounds import Rounds
from raylaunch_actors.sglang_engine.slots import Slots, decode_rows, wanted_rows
from raylaunch_actors.sglang_engine.versions import forward_context, is_idle, lends_rows, lent_rows

TOKENS_BELOW = 1000  # ids that every vocabulary has
WORDS_AT_ONCE = 1 << 22
MIX = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9)  # odd, so that nothing is lost when a product wraps


def verify_shapes(rounds: Rounds) -> dict[str, ShapeVerdict]:
    """A verdict for every round and shape that is due before READY. Ranks run them in the same order: there are
    collectives inside."""
    plan, verdicts = rounds.gate.plan, {}
    all_first = not lends_rows(rounds.model_runner)
    for name, shape in plan.shapes:
        if all_first or plan.verified_first(name, shape):
            rounds.gate.progress(f"verifying {name} {shape}")
            verdicts[f"{name} {shape}"] = _verify(rounds, name, shape, Slots(rounds.model_runner))
    return verdicts


def verify_later(rounds: Rounds, scheduler: Any, name: RoundName, shape: int) -> dict[str, ShapeVerdict]:
    """The verdict on one shape while SGLang serves, in rows that its scheduler lends; none where requests run, or the
    cache is not there. All ranks decide that alike, as their schedulers are."""
    model_runner = rounds.model_runner
    if not is_idle(scheduler):
        return {}
    with lent_rows(scheduler, wanted_rows(name, shape, int(model_runner.page_size))) as rows:
        if not len(rows):
            return {}
        return {f"{name} {shape}": _verify(rounds, name, shape, Slots(model_runner, rows))}


@torch.no_grad()
def _verify(rounds: Rounds, name: RoundName, shape: int, places: Slots) -> ShapeVerdict:
    model_runner = rounds.model_runner
    runner = model_runner.prefill_cuda_graph_runner if name == "prefill" else model_runner.decode_cuda_graph_runner
    with places.borrowed() as slots, forward_context(model_runner):
        sample = sample_prefill if name == "prefill" else sample_decode
        batch = sample(runner, shape, slots, again=False)
        with forward_context(model_runner, batch):
            eager = _logits(model_runner.eager_runner.execute(batch))
        before = rounds.replays
        batch = sample(runner, shape, slots, again=True)
        with forward_context(model_runner, batch):
            replayed = _logits(runner.execute(batch))
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


def sample_prefill(runner: Any, shape: int, slots: Slots, *, again: bool) -> Any:
    """A batch as prompts would bring it: SGLang's own dummy batch of this shape with seeded tokens, each in a row of
    the KV cache of its own.

    While capturing, all tokens are written to one row: what attention then reads depends on which write came last.
    """
    batch = runner.capture_prepare(shape)[0]
    device = batch.input_ids.device
    # Prompts may be longer than the cache is in a launch with little memory: then rows are used more than once.
    rows = slots.rows[torch.arange(shape, device=device) % len(slots.rows)]
    lengths = [int(length) for length in batch.extend_seq_lens_cpu if length]
    slots.save_rows(len(lengths), max(lengths))
    slots.clear_states(len(lengths))
    start = 0
    for request, length in enumerate(lengths):
        slots.table[request, :length] = rows[start : start + length].to(slots.table.dtype)
        start += length
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device, batch.positions.dtype)
    return _changed(batch, shape, positions, rows, {"next_token_logits_buffer": None})


def sample_decode(runner: Any, shape: int, slots: Slots, *, again: bool) -> Any:
    """A batch as running requests would: seeded tokens at different positions, after keys that prefill has left.

    Args:
        again: gives new keys other rows of the cache, so that a replay that does not write them finds none.
    """
    batch = runner.capture_prepare(shape)[0]
    device = batch.input_ids.device
    prefix, lengths, new = decode_rows(shape, slots.page, len(slots.rows), slots.context, again=again)
    before = torch.tensor(lengths, device=device)
    rows = slots.rows[torch.tensor(new, device=device)]
    requests = torch.arange(shape, device=device)
    slots.save_rows(shape, prefix + 1)
    slots.clear_states(shape)
    slots.table[:shape, :prefix] = slots.rows[:prefix].to(slots.table.dtype)
    slots.table[requests, before] = rows.to(slots.table.dtype)
    lengths_now = (before + 1).to(batch.seq_lens.dtype)
    changes = {
        "req_pool_indices": requests.to(batch.req_pool_indices.dtype),
        "seq_lens": lengths_now,
        "seq_lens_cpu": lengths_now.cpu().to(batch.seq_lens_cpu.dtype),
        "seq_lens_sum": int(lengths_now.sum()),
        "orig_seq_lens": lengths_now if batch.orig_seq_lens is not None else None,
    }
    return _changed(batch, shape, before.to(batch.positions.dtype), rows, changes)


def _changed(batch: Any, shape: int, positions: torch.Tensor, rows: torch.Tensor, changes: dict[str, Any]) -> Any:
    """The batch with seeded tokens at these positions, which go to these rows of the cache."""
    generator = torch.Generator().manual_seed(shape)
    tokens = torch.randint(0, TOKENS_BELOW, (shape,), generator=generator)
    changes |= {
        "input_ids": tokens.to(batch.input_ids.device, batch.input_ids.dtype),
        "positions": positions,
        "out_cache_loc": rows.to(batch.out_cache_loc.dtype),
    }
    if batch.mrope_positions is not None:
        changes["mrope_positions"] = positions.expand(3, shape).contiguous()
    return dataclasses.replace(batch, **changes)
