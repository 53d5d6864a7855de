"""Builds a transformers model without its weights, and refuses what the engine cannot run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from raylaunch.errors import RankFault
from raylaunch_actors.reference import interfaces

# Rotary embeddings whose frequencies depend on the length of the input: they read data back.
_DYNAMIC_ROPE = ("dynamic", "longrope")
# Factors on the attention's or the head's output that other models have and the engine does not apply.
_LOGIT_FACTORS = ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale")


def read_config(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The model's transformers configuration. Raises RankFault if there is none."""
    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise RankFault(None, f"{path}: no usable model configuration: {error}") from error


def check_supported(config: Any, world_size: int) -> None:
    """Raises RankFault, with what is wrong, if the engine cannot run this model on ``world_size`` ranks."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    name = config.model_type
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        details = quantised if isinstance(quantised, dict) else vars(quantised)
        method = details.get("quant_method", "unknown method")
        raise RankFault(
            None, f"{name}: the checkpoint is quantised ({method}); the reference engine runs plain weights"
        )
    if getattr(text, "kv_lora_rank", None):
        raise RankFault(None, f"{name}: multi-head latent attention is not implemented")
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise RankFault(
            None,
            f"{name}: layers of type {', '.join(sorted(kinds - {'full_attention'}))} are not implemented",
        )
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        raise RankFault(None, f"{name}: sliding window attention ({text.sliding_window} tokens) is not implemented")
    if heads % world_size or kv_heads % world_size:
        raise RankFault(
            None,
            f"{name}: {heads} attention heads and {kv_heads} key/value heads must divide by the "
            f"{world_size} ranks; key/value heads are not replicated",
        )
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) in _DYNAMIC_ROPE:
        raise RankFault(None, f"{name}: rotary embeddings of type {rope.get('rope_type')!r} are not implemented")
    for factor in _LOGIT_FACTORS:
        if getattr(text, factor, None) not in (None, 1, 1.0):
            raise RankFault(None, f"{name}: {factor} = {getattr(text, factor)} is not implemented")
    if is_mixture(text) and text.hidden_act not in ("silu", "swish"):
        raise RankFault(None, f"{name}: experts with activation {text.hidden_act!r} are not implemented, only silu")


def is_mixture(text_config: Any) -> bool:
    """Whether the model has routed experts."""
    return bool(getattr(text_config, "num_experts", 0) or getattr(text_config, "num_local_experts", 0))


def build(config: Any, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """The model, in evaluation mode, its parameters on the meta device and its buffers real, on the CPU."""
    interfaces.register()
    images = getattr(config, "vision_config", None) is not None
    kind = AutoModelForImageTextToText if images else AutoModelForCausalLM
    # The vision tower keeps PyTorch's own attention: it runs outside the graphs, on whole images.
    attention: Any = {"text_config": interfaces.NAME, "vision_config": "sdpa"} if images else interfaces.NAME
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype}
    if is_mixture(config.get_text_config()):
        options["experts_implementation"] = interfaces.NAME
    if trust_remote_code:
        options["trust_remote_code"] = True
    with _parameters_on_meta():
        try:
            model = kind.from_config(config, **options)
        except (ValueError, TypeError, KeyError) as error:
            raise RankFault(None, f"transformers cannot build a {config.model_type} model: {error}") from error
    model.eval()
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj_bias") or getattr(module, "is_transposed", False):
            raise RankFault(None, f"{name}: experts with biases or transposed weights are not implemented")
    return model


def eos_token_ids(path: str | Path, config: Any) -> frozenset[int]:
    """Tokens that end an answer: those of ``generation_config.json`` and of ``config.json``, the text model's too."""
    named = [getattr(one, "eos_token_id", None) for one in (config, config.get_text_config())]
    with contextlib.suppress(OSError):  # no such file
        named.append(GenerationConfig.from_pretrained(str(path)).eos_token_id)
    return frozenset(one for ids in named for one in ([ids] if isinstance(ids, int) else ids or ()))


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside take no memory; buffers are real, as rotary frequencies are computed when made.

    ``torch.device("meta")`` would lose the buffers. The patch is undone in every outcome.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
