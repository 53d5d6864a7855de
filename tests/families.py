"""Tiny random models of many families, and what becomes of each: launched, or refused in one line.

As in :mod:`tests.models`, weights of deviation 0.08 keep the largest logit apart from the next.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 256
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
ERNIE = {
    "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
GRANITE = {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 8.0}
FULL = {"layer_types": ["full_attention"] * 2}
TIED = {"tie_word_embeddings": True}
NO_CAP = {"attn_logit_softcapping": None}
NO_WINDOW = {"sliding_window": None}
TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model"}
SQUARE = {"image_size": [28, 28], "patch_size": [14, 14]}


def seeing(text: dict[str, Any], tower: dict[str, Any]) -> dict[str, Any]:
    """A model that takes images too: a decoder, what differs from BASE, behind a vision tower."""
    return {"text_config": {**BASE, **text}, "vision_config": {**TOWER, **tower}}


# name -> (model type, what differs from BASE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "cohere": ("cohere", {**TIED, "logit_scale": 0.0625}),
    "cohere_norm": ("cohere", {"use_qk_norm": True, "logit_scale": 2.0}),
    "cohere2": ("cohere2", {**FULL, **TIED}),
    "cwm": ("cwm", FULL),
    "dots1": ("dots1", ROUTED),
    "ernie": ("ernie4_5", TIED),
    "ernie_bias": ("ernie4_5", {"use_bias": True}),
    "ernie_moe": ("ernie4_5_moe", ERNIE),
    "exaone4": ("exaone4", {**FULL, **NO_WINDOW}),
    "gemma": ("gemma", TIED),
    "gemma2": ("gemma2", {**FULL, **NO_CAP, **TIED, "final_logit_softcapping": 3.0}),
    "gemma2_untied": ("gemma2", {**FULL, **NO_CAP, "final_logit_softcapping": None}),
    "gemma3": ("gemma3_text", {**FULL, **TIED}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {"attention_bias": True}),
    "glm4_moe": ("glm4_moe", ROUTED),
    "glm4_moe_norm": ("glm4_moe", {**ROUTED, "use_qk_norm": True, "attention_bias": True}),
    "granite": ("granite", {**GRANITE, **TIED}),
    "granitemoe": ("granitemoe", {**GRANITE, **LOCAL, **TIED}),
    "granitemoeshared": ("granitemoeshared", {**LOCAL, "shared_intermediate_size": 32}),
    "helium": ("helium", {}),
    "hunyuan_moe": ("hunyuan_v1_moe", {**EXPERTS, "moe_topk": 2}),
    "llama": ("llama", {}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True, **TIED}),
    "llama_many_kv": ("llama", {"num_key_value_heads": 4}),
    "llama_llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama_yarn": ("llama", {"rope_parameters": YARN}),
    "minimax_m2": ("minimax_m2", LOCAL),
    "ministral3": ("ministral3", {}),
    "mistral": ("mistral", NO_WINDOW),
    "mixtral": ("mixtral", {**LOCAL, **NO_WINDOW}),
    "mixtral_tied": ("mixtral", {**LOCAL, **NO_WINDOW, **TIED}),
    "nanochat": ("nanochat", {}),
    "nemotron": ("nemotron", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmoe": ("olmoe", EXPERTS),
    "phi": ("phi", {}),
    "phimoe": ("phimoe", {**LOCAL, **NO_WINDOW}),
    "qwen2": ("qwen2", {}),
    "qwen2_tied": ("qwen2", TIED),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", {}),
    "qwen3_biases": ("qwen3", {"attention_bias": True, **TIED}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "seed_oss": ("seed_oss", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0], **TIED}),
    "starcoder2": ("starcoder2", {**NO_WINDOW, **TIED}),
    # Those that take images as well: text goes through them.
    "aya_vision": ("aya_vision", seeing({"model_type": "cohere2", **FULL, **TIED}, SIGLIP)),
    "gemma3_images": ("gemma3", seeing({"model_type": "gemma3_text", **FULL}, {})),
    "internvl": ("internvl", seeing({"model_type": "qwen2"}, SQUARE)),
    "internvl_moe": ("internvl", seeing({"model_type": "qwen3_moe", **EXPERTS}, SQUARE)),
    "llava": ("llava", seeing({"model_type": "llama"}, {"model_type": "clip_vision_model"})),
    "llava_onevision": ("llava_onevision", seeing({"model_type": "qwen2"}, SIGLIP)),
    "mistral3": ("mistral3", seeing({"model_type": "mistral", **NO_WINDOW}, {"model_type": "pixtral"})),
    "paligemma": ("paligemma", seeing({"model_type": "gemma"}, SIGLIP)),
}

# What runs on one rank alone: the plans that transformers has for them leave every layer whole.
ONE_RANK: dict[str, tuple[str, dict[str, Any]]] = {
    "hunyuan": ("hunyuan_v1_dense", {}),
    "phi3": ("phi3", {}),
    "stablelm": ("stablelm", {}),
}

_MLA = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 16, "q_lora_rank": 16}

# name -> (model type, what differs from BASE, what is said)
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "deepseek_v3": ("deepseek_v3", {**ROUTED, **_MLA}, "deepseek_v3: multi-head latent attention is not implemented"),
    "diffllama": ("diffllama", {}, "diffllama: differential attention, which attends twice in a layer"),
    "doge": ("doge", {}, "doge: attention masks that depend on data are not implemented"),
    "gemma2_scores": ("gemma2", FULL, "gemma2: attn_logit_softcapping = 50.0 is not implemented"),
    "gemma3_window": ("gemma3_text", {}, "gemma3_text: layers of type sliding_attention are not implemented"),
    "gpt2": ("gpt2", {}, "gpt2: its decoder is older than transformers' tensor-parallel plans"),
    "gpt_oss": ("gpt_oss", {**LOCAL, **FULL}, "gpt_oss: attention sinks are not implemented"),
    "mamba": ("mamba", {}, "mamba: layers of linear attention or state space are not implemented"),
    "minimax": ("minimax", LOCAL, "minimax: layers of linear attention or state space are not implemented"),
    "mistral_window": ("mistral", {"sliding_window": 64}, "mistral: sliding window attention (64 tokens)"),
    "qwen3_next": ("qwen3_next", EXPERTS, "qwen3_next: layers of linear attention or state space are not implemented"),
}

UNKNOWN, OWN_ATTENTION, NO_PLAN = "knows no such model", "lets it have no attention but its own", "has no plan"


def lacking(name: str) -> str | None:
    """What the installed transformers lacks for a row of FAMILIES, asked of its classes; None if nothing."""
    kind, own = FAMILIES[name]
    if kind not in CONFIG_MAPPING:
        return UNKNOWN
    settings = CONFIG_MAPPING[own["text_config"]["model_type"] if "text_config" in own else kind]
    module = import_module(settings.__module__.replace("configuration", "modeling"))
    if any(one.endswith("_ATTENTION_CLASSES") for one in vars(module)):
        return OWN_ATTENTION
    return NO_PLAN if settings.base_model_tp_plan is None else None


def auto_class(config: Any) -> Any:
    """Of transformers, the class that makes the language model of a configuration."""
    return AutoModelForCausalLM if getattr(config, "vision_config", None) is None else AutoModelForImageTextToText


def save_family(name: str, folder: Path) -> Path:
    """Makes the model ``name`` in ``folder / name``, unless it is there, and returns that path."""
    path = folder / name
    if not path.exists():
        kind, own = (FAMILIES | ONE_RANK)[name] if name not in REFUSED else REFUSED[name][:2]
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(own if "text_config" in own else {**BASE, **own}))
        model = auto_class(config).from_config(config).float()
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data.normal_(0, 0.08)
            else:
                parameter.data += torch.empty_like(parameter).uniform_(-0.1, 0.1)
        for buffer_name, buffer in model.named_buffers():
            if "correction_bias" in buffer_name:  # which experts are chosen depends on it
                buffer.uniform_(-0.5, 0.5)
        model.save_pretrained(path)
    return path
