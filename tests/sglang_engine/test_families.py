"""The made-up ``config.json`` files of ``tests/gpu/test_families.py`` have what SGLang's models read of real ones."""

from __future__ import annotations

import ast
import re

import pytest

from raylaunch.sglang.source import installed_folder
from tests.sglang.conftest import needs_sglang
from tests.sglang_engine.families import FAMILIES, write_family

ELSEWHERE = {"quantization_config", "target_hidden_size", "rope_theta", "rope_scaling"}
"""Of quantised models, of drafts, and what transformers 5 has in ``rope_parameters``, where SGLang looks first."""


def read_of_configs(source):
    """Names that a module reads of a model's configuration without asking whether they are there."""
    asked = set(re.findall(r"""(?:has|get)attr\(\s*(?:self\.)?(?:hf_)?config,\s*["'](\w+)["']""", source))
    reads = (one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.Attribute))
    names = {one.attr for one in reads if ast.unparse(one.value) in ("config", "self.config")}
    return {name for name in names - asked - ELSEWHERE if not name.endswith("_cpu")}


@needs_sglang
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_a_model_reads_is_missing(family, tmp_path):
    from sglang.srt.utils.hf_transformers_utils import get_config

    config = get_config(str(write_family(family, tmp_path)), trust_remote_code=False)
    pattern = re.compile(rf"^class {FAMILIES[family][0]}\b", re.MULTILINE)
    sources = [file.read_text() for file in sorted((installed_folder() / "srt" / "models").rglob("*.py"))]
    (source,) = [one for one in sources if pattern.search(one)] or [""]
    wanted = read_of_configs(source)
    assert len(wanted) > 8, "its module is another by now"
    assert {name for name in wanted if not hasattr(config, name)} == set()


def test_what_counts_as_read():
    source = "hasattr(config, 'a')\nx = config.a + config.b + self.config.c + other.config.d\nconfig.e = 1"
    assert read_of_configs(source) == {"b", "c", "e"}
