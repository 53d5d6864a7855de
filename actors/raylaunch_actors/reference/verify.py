"""VERIFY: what the graphs compute is what the model computes, and requests are answered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch

from raylaunch.errors import RankFault
from raylaunch.protocol import RoundName, ShapeVerdict
from raylaunch.wire import Sampling, SequencePart, StepPlan, Submit
from raylaunch_actors.graphs.capture import CaptureRunner
from raylaunch_actors.graphs.context import Mode
from raylaunch_actors.reference.kv_cache import KVCache
from raylaunch_actors.reference.limits import Limits
from raylaunch_actors.reference.runner import ModelRunner
from raylaunch_actors.reference.worker import RankZeroWorker, Worker

ROUNDS: tuple[RoundName, ...] = ("prefill", "decode")
PROMPT_TOKENS, REQUEST_TOKENS = 8, 4  # of the first request, where there is room
PREFIX_TOKENS = 200  # before a decoded token: several blocks of keys, of which the last is not full
SHARP = 4.0  # times what keys usually are: then few of them count, and it shows when it is others
CAPTURED_UNITS, COMPILED_UNITS = 16, 32


def verify_shapes(
    runner: ModelRunner,
    capture: CaptureRunner,
    progress: Callable[[str], None],
    *,
    compiled: bool = False,
    due: Callable[[RoundName, int], bool] = lambda *_: True,
) -> dict[str, ShapeVerdict]:
    """A verdict for every round and shape that is ``due``, by name: see :func:`verify_shape`."""
    verdicts = {}
    for round_name in ROUNDS:
        for shape in runner.limits.shapes_of(round_name):
            if due(round_name, shape):
                progress(f"verifying {round_name} {shape}")
                verdicts[f"{round_name} {shape}"] = verify_shape(runner, capture, round_name, shape, compiled)
    return verdicts


def verify_shape(
    runner: ModelRunner, capture: CaptureRunner, round_name: RoundName, shape: int, compiled: bool = False
) -> ShapeVerdict:
    """Replay against eager on random tokens, and a digest for the peers. No request may have keys in the cache.

    A replay finds neither what capture left behind nor the keys and values that eager has written: one that does not
    write its own reads, or leaves, NaN. Without graphs, eager is run twice; the digests still show whether ranks agree.
    ``compiled`` says that the graphs hold other kernels than eager runs.
    """
    plan = sample_plan(round_name, shape, runner.limits)
    fill_prefixes(runner.cache, plan)
    eager = runner.hidden(plan, Mode.EAGER).clone()
    again = Mode.REPLAY if runner.use_graphs else Mode.EAGER
    for piece in capture.pieces:
        piece.pool.poison()
    poison_written(runner.cache, plan)
    replayed = runner.hidden(plan, again).clone()
    error = float((eager.double() - replayed.double()).abs().max())
    return ShapeVerdict(
        max_error=error if all_written(runner.cache, plan) else math.nan,
        tolerance=tolerance(eager, compiled),
        digest=digest(replayed),
        graphs=sum((round_name, shape) in piece.graphs() for piece in capture.pieces_of(round_name)),
    )


def tolerance(eager: torch.Tensor, compiled: bool = False) -> float:
    """Largest difference allowed, in units of the dtype's last place at the largest value: none on a CPU.

    On a GPU a graph may choose other matrix kernels than eager does, which add up in another order. Compiled pieces
    round where eager rounds (``graphs/inductor.py``), but sum their norms in another order too and fuse
    multiplications with additions. Either may flip a rounding in each of some ten operations of a layer. Independent
    flips of half a unit add up as a square root: over 48 layers to about 11 units of a typical element, and for the
    unluckiest of millions of elements to five times as much, a typical element being a quarter of the largest. A wrong
    address, a missing reduction or a stale read changes elements by as much as they are large: 128 units in bfloat16.
    """
    if eager.device.type == "cpu" and not compiled:
        return 0.0
    units = COMPILED_UNITS if compiled else CAPTURED_UNITS
    return units * float(torch.finfo(eager.dtype).eps) * float(eager.abs().max())


def sample_plan(round_name: RoundName, shape: int, limits: Limits) -> StepPlan:
    """A step that fills a shape with seeded random tokens: one sequence for prefill, for decode one row each, at
    different positions as far as cache and context go."""
    generator = torch.Generator().manual_seed(shape)
    rows = min(shape, limits.capacity, *([limits.max_context] if round_name == "prefill" else []))
    tokens = torch.randint(0, limits.vocab_size, (rows,), generator=generator).tolist()
    if round_name == "prefill":
        return StepPlan("prefill", shape, tokens, list(range(rows)), [SequencePart(0, rows, 0, 0, True)])
    most = min(PREFIX_TOKENS, limits.max_context - 1, limits.capacity // rows - 1)
    prefixes = [most - row % (most // 2 + 1) for row in range(rows)]
    parts = [SequencePart(row, 1, row * (most + 1), prefix, True) for row, prefix in enumerate(prefixes)]
    return StepPlan("decode", shape, tokens, prefixes, parts)


def fill_prefixes(cache: KVCache, plan: StepPlan) -> None:
    """Writes random keys and values before the rows of a step, as earlier steps would have."""
    rows = [row for part in plan.sequences for row in range(part.kv_start, part.kv_start + part.kv_length)]
    if not rows:
        return
    generator = torch.Generator(cache.device).manual_seed(plan.shape)
    at = torch.tensor(rows, device=cache.device)
    shape = (len(rows), cache.kv_heads, cache.head_dim)
    for keys, values in zip(cache.keys, cache.values, strict=True):
        for kept, size in ((keys, SHARP), (values, 1.0)):
            random = torch.randn(shape, generator=generator, device=cache.device) * size
            kept.index_copy_(0, at, random.to(cache.dtype))


def poison_written(cache: KVCache, plan: StepPlan) -> None:
    """Fills the cache's rows that a step writes with NaN."""
    at = _written(cache, plan)
    for kept in (*cache.keys, *cache.values):
        kept.index_fill_(0, at, math.nan)


def all_written(cache: KVCache, plan: StepPlan) -> bool:
    """Whether no NaN is left in the cache's rows that a step writes."""
    at = _written(cache, plan)
    return not any(bool(kept.index_select(0, at).isnan().any()) for kept in (*cache.keys, *cache.values))


def _written(cache: KVCache, plan: StepPlan) -> torch.Tensor:
    first = [part.kv_start + part.kv_length for part in plan.sequences]
    rows = [row for one, part in zip(first, plan.sequences, strict=True) for row in range(one, one + part.rows)]
    return torch.tensor(rows, device=cache.device)


def digest(tensor: torch.Tensor) -> str:
    """Of a tensor's bytes: equal where ranks have computed the same bits."""
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def answer_one_request(worker: Worker, limits: Limits) -> tuple[int, ...]:
    """Sends one request through the serve loop. Returns its tokens on rank 0, nothing elsewhere.

    Raises RankFault F12 if it is not answered in full.
    """
    if not isinstance(worker, RankZeroWorker):
        worker.run_until_idle()
        return ()
    room = min(limits.max_context, limits.capacity)
    length = max(1, min(PROMPT_TOKENS, room - REQUEST_TOKENS))
    prompt = [token % limits.vocab_size for token in range(1, 1 + length)]
    wanted = min(REQUEST_TOKENS, room - length)
    request = Submit("verify", prompt, Sampling(max_new_tokens=wanted, ignore_eos=True))
    outputs = worker.submit(request) or worker.run_until_idle()
    tokens = tuple(token for output in outputs for token in output.tokens)
    if len(tokens) != wanted or outputs[-1].finish != "length":
        raise RankFault("F12", f"the first request got {len(tokens)} of {wanted} tokens: {outputs[-1]}")
    return tokens
