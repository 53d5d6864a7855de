"""How many tokens the KV cache holds: decided alike on every rank, from what all of them have free. No torch.

Every rank says after LOAD how much memory its GPU has left; the gate hands all ranks' words to all ranks, and each of
them runs the same functions over the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.errors import RankFault

CPU_TOKENS = 16_384  # a CPU's memory is not ours to fill
ROUND_TO = 64  # tokens: the block of keys that decode attention reads at a time
GRAPH_BYTES = 1 << 20  # what the driver keeps of one captured graph beside its tensors
# Of float32 logits, where most are alive. While a GPU sorts them for top-k and top-p: those that came, those of the
# requests that draw, scaled, sorted, indices (as 2), and for up to 127 rows 8 inside of torch's sort; one to spare. A
# CPU's sort takes less: there the most is 12, in the draw that follows.
LOGIT_COPIES = 15
GIB = 1 << 30


@dataclass(frozen=True)
class FreeMemory:
    """What a rank offers after LOAD: its device, by a name that is unique in the cluster, and bytes free there."""

    device: str
    free: int


@dataclass(frozen=True)
class CacheRequirements:
    """What a rank needs memory for, beside its weights; equal on all ranks.

    Attributes:
        bytes_per_token: keys and values of one token.
        reserve: bytes that the cache must leave for graphs and for the work of one step.
        max_context: tokens of the longest request.
        max_running: requests that run at the same time.
    """

    bytes_per_token: int
    reserve: int
    max_context: int
    max_running: int


def reserve_bytes(
    *,
    prefill_shapes: Sequence[int],
    decode_shapes: Sequence[int],
    graphs: bool,
    layers: int,
    kept_width: int,
    working_width: int,
    itemsize: int,
    max_running: int,
    vocab_size: int,
) -> int:
    """Bytes to leave free: an estimate from above of what capture and the largest step take.

    Args:
        graphs: whether anything is captured.
        kept_width: elements per token and layer that graphs keep for ever: what a piece returns and is given.
        working_width: elements per token that are alive at the same time inside a layer, at most.
        itemsize: bytes of an element.
    """
    rows = max(*prefill_shapes, *decode_shapes)
    working = rows * working_width * itemsize + max_running * vocab_size * 4 * LOGIT_COPIES
    if not graphs:
        return working
    # Every graph of prefill owns its results and inputs; what it works with is shared by all of them, and so is all
    # that the whole-model graphs of decode need.
    kept = sum(prefill_shapes) * layers * kept_width * itemsize
    return working + kept + ((layers + 1) * len(prefill_shapes) + len(decode_shapes)) * GRAPH_BYTES


def agree_on_kv_tokens(offers: Sequence[FreeMemory], fraction: float, required: CacheRequirements) -> int:
    """Tokens that every rank's cache gets: the least that any rank can hold, never more than requests could use.

    Args:
        offers: of all ranks, in rank order. Ranks that share a device measured it at different times; the least that
            one of them saw counts, and each gets an equal part of it.
        fraction: of the free memory that may be used at all.

    Raises:
        RankFault: not even one request of ``max_context`` tokens fits, with the sizes and what would help.
    """
    sharing = Counter(offer.device for offer in offers)
    free: dict[str, int] = {}
    for offer in offers:
        free[offer.device] = min(offer.free, free.get(offer.device, offer.free))
    tightest = min(free, key=lambda device: free[device] / sharing[device])
    share = free[tightest] / sharing[tightest]
    budget = int(share * fraction) - required.reserve
    fitting = max(0, budget // required.bytes_per_token)
    if fitting < required.max_context:
        raise RankFault(
            "F23",
            f"the KV cache would hold {fitting} tokens and one request may have {required.max_context}, which take "
            f"{_gib(required.max_context * required.bytes_per_token)}: of {_gib(free[tightest])} free beside the "
            f"weights for {sharing[tightest]} rank(s) on a GPU, engine.memory_fraction={fraction:g} allows "
            f"{_gib(share * fraction)} to a rank, of which {_gib(required.reserve)} are kept for graphs and "
            "activations; lower engine.max_context, capture smaller shapes, or use more GPUs",
        )
    wanted = required.max_running * required.max_context
    return wanted if wanted <= fitting else max(required.max_context, fitting // ROUND_TO * ROUND_TO)


def _gib(nbytes: float) -> str:
    return f"{nbytes / GIB:.1f} GiB"
