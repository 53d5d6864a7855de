"""Tiny models with random weights, made where a test wants them.

8 attention heads and 4 key/value heads divide among 1, 2 and 4 ranks. Weights of deviation 0.08 keep the largest
logit well apart from the next: with the usual 0.02 logits are nearly equal and a rounding error changes a
token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB = 1024
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def qwen3_tied() -> PreTrainedModel:
    """Dense; the head is the embedding."""
    return Qwen3ForCausalLM(Qwen3Config(**_TEXT, head_dim=32, tie_word_embeddings=True))


def qwen3_untied() -> PreTrainedModel:
    """Dense, with a head of its own."""
    return Qwen3ForCausalLM(Qwen3Config(**_TEXT, head_dim=32, tie_word_embeddings=False))


def qwen3_many_heads() -> PreTrainedModel:
    """Dense, with 8 key/value heads, which divide among 8 ranks too."""
    return Qwen3ForCausalLM(Qwen3Config(**{**_TEXT, "num_key_value_heads": 8}, head_dim=32, tie_word_embeddings=True))


def qwen3_wide() -> PreTrainedModel:
    """Dense, with heads as wide as those of real models, which some kernels want."""
    config = {**_TEXT, "hidden_size": 512, "intermediate_size": 1024}
    return Qwen3ForCausalLM(Qwen3Config(**config, head_dim=128, tie_word_embeddings=False))


def qwen3_yarn() -> PreTrainedModel:
    """Dense, for 4 times the 64 positions that its configuration names, as a user of YaRN leaves it."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    config = {**_TEXT, "max_position_embeddings": 64, "rope_parameters": rope}
    return Qwen3ForCausalLM(Qwen3Config(**config, head_dim=32, tie_word_embeddings=True))


def qwen3_moe() -> PreTrainedModel:
    """Routed experts in all layers but one."""
    config = Qwen3MoeConfig(
        **_TEXT,
        head_dim=32,
        moe_intermediate_size=64,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )
    return Qwen3MoeForCausalLM(config)


def qwen2_5_vl() -> PreTrainedModel:
    """With a vision tower; the decoder takes embeddings and three positions a token."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
        },
        image_token_id=1000,
        video_token_id=1001,
        vision_start_token_id=1002,
        vision_end_token_id=1003,
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_tied": qwen3_tied,
    "qwen3_untied": qwen3_untied,
    "qwen3_moe": qwen3_moe,
    "qwen2_5_vl": qwen2_5_vl,
}
MORE_BUILDERS = {"qwen3_many_heads": qwen3_many_heads, "qwen3_wide": qwen3_wide, "qwen3_yarn": qwen3_yarn}
"""For groups that the others are too small for, for GPUs, and for long contexts."""


def save(name: str, folder: Path) -> Path:
    """Makes the model ``name`` in ``folder / name``, unless it is there, and returns that path."""
    path = folder / name
    if not path.exists():
        torch.manual_seed(0)
        model = (BUILDERS | MORE_BUILDERS)[name]().float()
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data.normal_(0, 0.08)
        # Several files for one of them, so that the index is read too.
        model.save_pretrained(path, max_shard_size="500KB" if name == "qwen3_untied" else "1GB")
    return path
