"""What the installed transformers has for a model, as its source says without being imported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from raylaunch_actors.reference import installed
from raylaunch_actors.reference.installed import why_missing


class Found:
    """A version of transformers with a few models."""

    def __init__(self, folder: Path) -> None:
        self.submodule_search_locations = [str(folder)]


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "auto/auto_mappings.py": '("divided", "A"), ("whole-one", "B"), ("own", "C"), ("elsewhere_text", "D")'
        ', ("looks", "E")',
        "divided/configuration_divided.py": 'base_model_tp_plan = {"layers.*.o": "rowwise"}',
        "looks/configuration_looks.py": 'base_model_tp_plan = {"embed_tokens": "embedding_rowwise"}',
        "divided/modeling_divided.py": "ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation)",
        "whole_one/configuration_whole_one.py": "class WholeOneConfig: ...",
        "own/modeling_own.py": "OWN_ATTENTION_CLASSES[config._attn_implementation](config)",
    }
    for name, text in files.items():
        file = tmp_path / "models" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(installed, "find_spec", lambda name: Found(tmp_path))


@pytest.mark.parametrize(
    ("config", "ranks", "why"),
    [
        ({"model_type": "divided"}, 2, None),
        ({"model_type": "whole-one"}, 1, None),
        ({"model_type": "whole-one"}, 2, "whole-one: .* has no plan that divides it among ranks; use 1 rank"),
        ({"model_type": "own"}, 1, "own: .* lets it have no attention but its own"),
        ({"model_type": "divided", "text_config": {"model_type": "own"}}, 1, "divided: .* no attention but its own"),
        ({"model_type": "divided", "text_config": {"model_type": "whole-one"}}, 2, "divided: .* has no plan"),
        ({"model_type": "whole-one", "text_config": {"model_type": "divided"}}, 2, None),
        ({"model_type": "whole-one", "text_config": {}}, 2, None),
        ({"model_type": "elsewhere_text"}, 2, None),
        ({"model_type": "looks", "text_config": {"model_type": "looks_text"}}, 1, None),
        ({"model_type": "looks", "text_config": {"model_type": "looks_text"}}, 2, "looks: .* has no plan"),
        ({"model_type": "of_tomorrow"}, 1, "of_tomorrow: the installed transformers [0-9.]+ knows no such model"),
        ({}, 2, None),
        ({"model_type": 7}, 2, None),
    ],
)
@pytest.mark.usefixtures("version")
def test_what_is_missing(config: dict, ranks: int, why: str | None) -> None:
    said = why_missing(config, ranks)
    assert said is None if why is None else re.match(why, said or ""), said


def test_no_transformers_or_another_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for found in (None, Found(tmp_path)):
        monkeypatch.setattr(installed, "find_spec", lambda name, found=found: found)
        assert why_missing({"model_type": "llama"}, 2) is None
