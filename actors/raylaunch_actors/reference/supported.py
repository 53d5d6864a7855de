"""Which models the reference engine runs: decided by their configuration alone, without torch or transformers.

The driver asks with what is in ``config.json``, before it starts anything; a rank asks again with what transformers
makes of it, where the settings that the file leaves out have their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Rotary embeddings whose frequencies depend on the length of the input: they read data back.
_DYNAMIC_ROPE = ("dynamic", "longrope")
_NUMBER_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ACTIVATIONS = ("silu", "swish")

_LINEAR = "layers of linear attention or state space are not implemented"
_OLDER = "its decoder is older than transformers' tensor-parallel plans, and is not implemented"
_REFUSED: dict[str, str] = {
    "gpt_oss": "attention sinks are not implemented",
    "diffllama": "differential attention, which attends twice in a layer, is not implemented",
    "doge": "attention masks that depend on data are not implemented",
    "llama4": "chunked attention is not implemented",
    "llama4_text": "chunked attention is not implemented",
}
_REFUSED |= dict.fromkeys(
    ["bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe"], _LINEAR
)
_REFUSED |= dict.fromkeys(
    ["mamba", "mamba2", "minimax", "nemotron_h", "qwen3_next", "qwen3_5", "qwen3_5_text"], _LINEAR
)
_REFUSED |= dict.fromkeys(["qwen3_5_moe", "qwen3_5_moe_text", "recurrent_gemma", "rwkv", "xlstm", "zamba2"], _LINEAR)
_REFUSED |= dict.fromkeys(["bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox"], _OLDER)
_REFUSED |= dict.fromkeys(["gptj", "mpt", "opt", "xglm"], _OLDER)

# Plans that leave every layer whole; who has none at all is found by :mod:`.installed`.
_ONE_RANK = ("hunyuan_v1_dense", "phi3")


def why_unsupported(config: Mapping[str, Any], ranks: int = 1) -> str | None:
    """Why the engine cannot run this model on so many ranks, in one line; None if nothing speaks against it.

    Args:
        config: a model's ``config.json``, or the same of a transformers configuration.
    """
    inner = config.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, Mapping) else config
    name = str(config.get("model_type") or "this model")
    if quantised := config.get("quantization_config"):
        method = (quantised.get("quant_method") if isinstance(quantised, Mapping) else None) or "unknown method"
        return f"{name}: the checkpoint is quantised ({method}); the reference engine runs plain weights"
    for kind in (name, str(text.get("model_type"))):
        if kind in _REFUSED:
            return f"{name}: {_REFUSED[kind]}"
    if ranks > 1 and name in _ONE_RANK:
        return f"{name}: its layers cannot be divided among ranks; use 1 rank"
    if config.get("is_encoder_decoder"):
        return f"{name}: models with an encoder are not implemented"
    if text.get("kv_lora_rank"):
        return f"{name}: multi-head latent attention is not implemented"
    types = text.get("layer_types") or ()
    if not isinstance(types, list | tuple):
        return f"{name}: layer_types = {types!r} is no list of a type for each layer"
    if kinds := {str(kind) for kind in types} - {"full_attention"}:
        return f"{name}: layers of type {', '.join(sorted(kinds))} are not implemented"
    window = text.get("sliding_window")
    if window and not text.get("layer_types") and text.get("use_sliding_window", True):
        return f"{name}: sliding window attention ({window} tokens) is not implemented"
    if rope := _dynamic(text.get("rope_parameters") or text.get("rope_scaling")):
        return f"{name}: rotary embeddings of type {rope!r} are not implemented"
    if cap := text.get("attn_logit_softcapping"):
        return f"{name}: attn_logit_softcapping = {cap} is not implemented"
    activation = text.get("hidden_act")
    if is_mixture(text) and activation is not None and activation not in _ACTIVATIONS:
        return f"{name}: experts with activation {activation!r} are not implemented, only silu"
    return None


def is_mixture(text: Mapping[str, Any]) -> bool:
    """Whether the model with this text configuration has routed experts."""
    return any(text.get(name) for name in _NUMBER_OF_EXPERTS)


def _dynamic(rope: object) -> str | None:
    """The rope's type if it depends on the input, also where there is a rope for each type of layer."""
    if not isinstance(rope, Mapping):
        return None
    kind = rope.get("rope_type", rope.get("type"))
    if kind in _DYNAMIC_ROPE:
        return str(kind)
    return next((kind for one in rope.values() if (kind := _dynamic(one))), None)
