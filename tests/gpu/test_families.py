"""Under SGLang: models whose caches are not just keys and values of every token, small and with dummy weights.

VERIFY places tokens itself: in windows, in states and in compressed caches that must be right too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylaunch import Engine
from tests.gpu.test_sglang import config_for, installed  # noqa: F401  # a fixture

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

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
    "deepseek_v3": {"moe_layer_freq": 1},
}
"""What config.json of real models says and transformers' own classes do not."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_verified_and_answers_twice_alike(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    architecture, changes = FAMILIES[family]
    made = AutoConfig.for_model(family, **{**TEXT, **changes}).to_dict()
    made |= {"architectures": [architecture], "torch_dtype": "bfloat16", **ONLY_IN_FILES.get(family, {})}
    made.pop("quantization_config", None)
    (tmp_path / "config.json").write_text(json.dumps(made))
    config = config_for(tmp_path, "capture.prefill_tokens=[64, 512]")
    with Engine(config) as engine:
        print(engine.report.table(200))
        for length in (300, 500):
            prompt = [2 + i % 900 for i in range(length)]
            answers = [engine.generate([prompt], max_new_tokens=16, ignore_eos=True)[0].token_ids for _ in range(2)]
            assert answers[0] == answers[1]
