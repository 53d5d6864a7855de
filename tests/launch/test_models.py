"""Text, mixture-of-experts and vision-language models, launched on two ranks: tokens equal transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from raylaunch import Engine, LaunchConfig
from tests.models import BUILDERS, VOCAB, save

# CI runs them. By default tests/reference compares all of these models on one rank, tests/graphs experts on two.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]

NEW_TOKENS = 32


def prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, VOCAB - 100, (length,), generator=generator).tolist()


def expected(folder: Path, ids: list[int]) -> tuple[int, ...]:
    kind = AutoModelForImageTextToText if "vl" in folder.name else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tensor = torch.tensor([ids])
    options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tensor)}
    return tuple(model.generate(tensor, max_new_tokens=NEW_TOKENS, **options)[0, len(ids) :].tolist())


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_two_ranks_answer_as_transformers_does(name: str, tmp_path: Path) -> None:
    """The prompts of 1025 tokens are the client of sglang#14193: the second one used to crash (F20)."""
    folder = save(name, tmp_path)
    config = LaunchConfig.from_dict(
        {
            "name": name.replace("_", "-"),
            "model": {"path": str(folder), "dtype": "float32"},
            "parallel": {"tensor_parallel_size": 2},
            "engine": {"kind": "reference", "device": "cpu", "kv_tokens": 4096},
            "capture": {"prefill_tokens": [128, 1032], "decode_batch_sizes": [2, 4]},
        }
    )
    long, short = prompt(1025), prompt(128)
    with Engine(config) as engine:
        first = engine.generate([long], max_new_tokens=NEW_TOKENS)[0]
        second = engine.generate([long], max_new_tokens=NEW_TOKENS)[0]
        together = engine.generate([short, long], max_new_tokens=NEW_TOKENS)
        graphs = engine.report.describe(engine.report.steps[-1].step.phase)
    assert first.token_ids == second.token_ids == together[1].token_ids == expected(folder, long)
    assert together[0].token_ids == expected(folder, short)
    assert "4 shapes, 20 graphs: replay equals eager (bitwise), ranks agree" in graphs
