"""Which of SGLang's modules has the model that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from raylaunch_actors.sglang_engine import model_package
from raylaunch_actors.sglang_engine.environment import model
from raylaunch_actors.sglang_engine.model_package.asked_for import module_of

from raylaunch.sglang.arguments import installed_folder

SOURCES = {
    "qwen3": "class Qwen3ForCausalLM: ...\nEntryClass = Qwen3ForCausalLM\n",
    "qwen3_moe": "from x import Qwen3ForCausalLM\nEntryClass = Qwen3MoeForCausalLM\n",
    "llama": "EntryClass = [\n    LlamaForCausalLM,\n    Phi3ForCausalLM,\n]\n",
    "bailing": 'EntryClass: type = BailingForCausalLM\n_ENTRY = "OtherForCausalLM"\n',
}
REGISTERED = """
import sys
from sglang.srt.models.registry import ModelRegistry
print(sys.argv[1] in ModelRegistry.models, len([one for one in sys.modules if one.startswith("sglang.srt.models.")]))
print(ModelRegistry.resolve_model_cls(["LlamaForCausalLM"])[1])
"""


@pytest.mark.parametrize(
    ("architecture", "module"),
    [
        ("Qwen3ForCausalLM", "qwen3"),
        ("Qwen3MoeForCausalLM", "qwen3_moe"),
        ("Phi3ForCausalLM", "llama"),
        ("BailingForCausalLM", "bailing"),
        ("OtherForCausalLM", None),
        ("Qwen3For", None),
    ],
)
def test_the_module_of_an_architecture(architecture: str, module: str | None, tmp_path: Path) -> None:
    for name, text in SOURCES.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert module_of(architecture, tmp_path) == module


@pytest.mark.skipif(installed_folder() is None, reason="needs sglang")
def test_sglang_imports_that_one_and_finds_any_other() -> None:
    environment = {**os.environ, **model("Qwen3ForCausalLM")}
    command = [sys.executable, "-W", "ignore", "-c", REGISTERED, "Qwen3ForCausalLM"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    (first, count), (other,) = (line.split() for line in done.stdout.splitlines()[-2:])
    lazily = "_default_models_loaded" in (installed_folder() / "srt/models/registry.py").read_text()  # type: ignore[operator]
    assert (first, other) == ("True", "LlamaForCausalLM")
    assert int(count) < 20 or not lazily
    assert model_package.__name__ == environment["SGLANG_EXTERNAL_MODEL_PACKAGE"]
