"""Small models of families whose caches are not just keys and values of every token: ``config.json`` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"num_hidden_layers": 2}),
    "gemma3_text": ("Gemma3ForCausalLM", {"num_hidden_layers": 6, "head_dim": 128, "sliding_window": 128}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {"num_hidden_layers": 2, "head_dim": 128, **EXPERTS}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {"num_hidden_layers": 4, "head_dim": 64, "num_local_experts": 8, "sliding_window": 128},
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {"num_hidden_layers": 4, "head_dim": 128, "shared_expert_intermediate_size": 512, **EXPERTS},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 16,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 512,
            "q_lora_rank": 512,
        },
    ),
}
ONLY_IN_FILES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"swiglu_limit": 7.0},
    "qwen3_next": {"full_attention_interval": 4},
    "deepseek_v3": {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
}
"""What config.json of real models says and transformers' own classes do not."""


def write_family(family: str, folder: Path) -> Path:
    """A model folder of a family, without weights."""
    from transformers import AutoConfig

    architecture, changes = FAMILIES[family]
    made = AutoConfig.for_model(family, **{**TEXT, **changes}).to_dict()
    made |= {"architectures": [architecture], "torch_dtype": "bfloat16", **ONLY_IN_FILES.get(family, {})}
    made.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(made))
    return folder
