"""The two functions that transformers models call in place of their own attention and experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.moe import ExpertsInterface

import raylaunch_actors.graphs.ops  # noqa: F401  registers the raylaunch ops
from raylaunch.errors import RankFault

NAME = "raylaunch"

# What other models pass, that changes the result and is not implemented; a value that is None, 0 or False is
# fine.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a packed step.

    Args:
        module: the model's attention layer; its ``layer_idx`` selects the KV cache.
        query: ``[1, heads, T, head_dim]``; key and value: ``[1, kv_heads, T, head_dim]``.
        attention_mask: must be None: the context's batch knows who sees whom.
        scaling: of the scores; by default ``head_dim ** -0.5``.
        **options: transformers' other arguments; those that would change the result must be unset.

    Returns:
        ``[1, T, heads, head_dim]`` and None.
    """
    for name in _UNSUPPORTED:
        if options.get(name):
            raise RankFault(None, f"the model's attention uses {name} = {options[name]}, which is not implemented")
    if attention_mask is not None:
        raise RankFault(None, "the model passes its own attention mask, which is not implemented")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return torch.ops.raylaunch.attention(query, key, value, scale, module.layer_idx), None


def experts(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Gated experts over ``[T, hidden]``, as one opaque op; summed over the ranks where they are divided."""
    gate_up: Any = module.gate_up_proj
    down: Any = module.down_proj
    out: Tensor = torch.ops.raylaunch.experts(hidden_states, top_k_index, top_k_weights, gate_up, down)
    group = getattr(module, "raylaunch_group", None)
    return out if group is None else torch.ops.raylaunch.all_reduce(out, group)


def register() -> None:
    """Makes both known to transformers under ``NAME``; doing it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    ExpertsInterface.register(NAME, experts)
