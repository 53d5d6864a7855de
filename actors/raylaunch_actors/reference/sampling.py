"""Picks the next token of each request from its logits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from raylaunch.wire import Sampling, TokenLogprob

GREEDY_BELOW = 1e-5  # a temperature below it is greedy: dividing by it would overflow
NO_TOKEN = -1


def is_greedy(params: Sampling) -> bool:
    """Whether the most likely token is taken and no random number is drawn."""
    return params.temperature < GREEDY_BELOW


def make_generator(params: Sampling, device: torch.device, vocab: int = 0) -> torch.Generator | None:
    """One request's random numbers: from its seed, or the system's entropy; None if it is greedy.

    Args:
        vocab: logits of a row, for each of which a number was drawn with every token that is there already.
    """
    if is_greedy(params):
        return None
    seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
    generator = torch.Generator(device=device)
    generator.manual_seed(_seed_of(seed & (2**63 - 1), device))
    if params.seed is not None:
        for _ in range(params.drawn):
            torch.empty(vocab, device=device).exponential_(generator=generator)
    return generator


def _seed_of(seed: int, device: torch.device) -> int:
    """Torch's generator on CPUs takes the low 32 bits of a seed alone: where there are more, a digest of all."""
    if device.type != "cpu" or seed < 2**32:
        return seed
    return int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=4).digest(), "little")


def sample(logits: Tensor, params: Sequence[Sampling], generators: Sequence[torch.Generator | None]) -> Tensor:
    """One token id for each row.

    A row's token depends on that row, its parameters and its own generator only, never on the rows beside it.

    Args:
        logits: float32 ``[n, vocab]``.
        params: of the ``n`` requests.
        generators: of the ``n`` requests; None for greedy ones.

    Returns:
        int64 ``[n]`` on the device of the logits; ``NO_TOKEN`` where a row holds a NaN or +inf, or only -inf.
    """
    if not len(params) == len(generators) == logits.shape[0]:
        raise ValueError(f"{logits.shape[0]} rows of logits, {len(params)} parameters, {len(generators)} generators")
    with biased(logits, params):
        ids = logits.argmax(-1)  # the first, lowest index where several are equal
        largest = logits.amax(-1)
        drawn = [row for row, param in enumerate(params) if not is_greedy(param)]
        if drawn:
            rows = torch.tensor(drawn, device=logits.device)
            ids[rows] = _draw(logits[rows], largest[rows], [params[r] for r in drawn], [generators[r] for r in drawn])
    return ids.masked_fill_(~largest.isfinite(), NO_TOKEN)


@contextmanager
def biased(logits: Tensor, params: Sequence[Sampling]) -> Iterator[None]:
    """Adds to logits ``[n, vocab]`` what the requests want added. Afterwards they are bit for bit what they were: log
    probabilities are those without it."""
    places = [(row, token, bias) for row, param in enumerate(params) for token, bias in param.logit_bias]
    if not places:
        yield
        return
    rows, tokens, biases = (torch.tensor(column, device=logits.device) for column in zip(*places, strict=True))
    before = logits[rows, tokens]
    logits[rows, tokens] = before + biases
    try:
        yield
    finally:
        logits[rows, tokens] = before


def _draw(
    logits: Tensor, largest: Tensor, params: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> Tensor:
    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    # The largest becomes 0 before the division, which then cannot overflow.
    scaled = (logits - largest[:, None]) / column([p.temperature for p in params])
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        vocab = logits.shape[-1]
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(vocab, device=logits.device)[None]
        outside_k = rank >= column([p.top_k or vocab for p in params], torch.int64)
        ordered = ordered.masked_fill(outside_k, -torch.inf)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # mass of what is more likely: 0 for the first, which stays
        top_p = column([p.top_p for p in params])
        outside = outside_k | ((before >= top_p) & (top_p < 1))  # at 1, rounding must not cut the tail
        scaled = scaled.masked_fill(torch.empty_like(outside).scatter_(1, order, outside), -torch.inf)
    # argmax(p / exponential noise) draws from p (the Gumbel trick), with noise from each request's own
    # generator.
    noise = torch.stack(
        [torch.empty_like(row).exponential_(generator=own) for row, own in zip(scaled, generators, strict=True)]
    )
    return (scaled.softmax(-1) / noise.clamp_min_(torch.finfo(noise.dtype).tiny)).argmax(-1)


def token_logprobs(logits: Tensor, tokens: Sequence[int], wanted: Sequence[int]) -> list[TokenLogprob]:
    """Log probability of each row's token, and of as many of the likeliest tokens as are wanted with it.

    Args:
        logits: float32 ``[n, vocab]``.
        tokens, wanted: of the ``n`` rows.
    """
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    found = [TokenLogprob(token, value, []) for token, value in zip(tokens, own, strict=True)]
    for many in set(wanted) - {0}:  # which of equal ones come last may depend on how many are asked for
        rows = [row for row, one in enumerate(wanted) if one == many]
        values, ids = logprobs[rows].topk(min(many, logprobs.shape[-1]))
        for row, *top in zip(rows, ids.tolist(), values.tolist(), strict=True):
            found[row].top.extend(zip(*top, strict=True))
    return found
