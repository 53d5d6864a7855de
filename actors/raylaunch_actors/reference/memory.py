"""What memory a rank has, and the sizes that the engine runs with because of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raylaunch.config import LaunchConfig
from raylaunch.resolved import ResolvedLaunch
from raylaunch_actors.reference.cache_size import (
    CPU_TOKENS,
    CacheRequirements,
    FreeMemory,
    agree_on_kv_tokens,
    reserve_bytes,
)
from raylaunch_actors.reference.kv_cache import bytes_per_token
from raylaunch_actors.reference.limits import Limits
from raylaunch_actors.reference.model import ModelFacts


def free_memory(device: torch.device) -> FreeMemory | None:
    """What is free on a rank's GPU; None on a CPU, whose memory is not counted."""
    if device.type == "cpu":
        return None
    torch.cuda.empty_cache()  # what loading has used and does not need any more
    free, _total = torch.cuda.mem_get_info(device)
    return FreeMemory(str(torch.cuda.get_device_properties(device).uuid), free)


def limits_of(resolved: ResolvedLaunch, facts: ModelFacts, offers: Sequence[FreeMemory | None]) -> Limits:
    """The engine's sizes: as configured, as the model allows, and as the memory of all ranks lets them be.

    Args:
        offers: every rank's :func:`free_memory`; all ranks come to the same sizes by them.

    Raises:
        RankFault: ``engine.kv_tokens=auto`` and no room for a single request.
    """
    config = resolved.config
    return Limits(
        prefill_shapes=config.capture.prefill_tokens,
        decode_shapes=config.capture.decode_batch_sizes,
        max_running=config.engine.max_running_requests,
        max_context=resolved.context,
        capacity=_kv_tokens(config, facts, resolved.context, offers),
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
    )


def _kv_tokens(config: LaunchConfig, facts: ModelFacts, context: int, offers: Sequence[FreeMemory | None]) -> int:
    if config.engine.kv_tokens != "auto":
        return config.engine.kv_tokens
    gpus = [offer for offer in offers if offer is not None]
    if not gpus:
        return CPU_TOKENS
    running = config.engine.max_running_requests
    reserve = reserve_bytes(
        prefill_shapes=config.capture.prefill_tokens,
        decode_shapes=config.capture.decode_batch_sizes,
        graphs=config.capture.enabled,
        layers=facts.layers,
        # A piece returns the hidden state, queries, keys and values, and is given what attention made of them.
        kept_width=facts.hidden_size + 2 * (facts.heads + facts.kv_heads) * facts.head_dim,
        working_width=facts.working_width,
        itemsize=facts.dtype.itemsize,
        max_running=running,
        vocab_size=facts.vocab_size,
    )
    per_token = bytes_per_token(facts.layers, facts.kv_heads, facts.head_dim, facts.dtype)
    return agree_on_kv_tokens(
        gpus, config.engine.memory_fraction, CacheRequirements(per_token, reserve, context, running)
    )
