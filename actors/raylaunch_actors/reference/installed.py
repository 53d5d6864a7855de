"""What the installed transformers has for a model, read in its source: importing it takes the driver seconds.

Its versions differ in the models that they know, divide among ranks, and let have another attention than their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Versions that keep a table of attention classes in a model's file take no registered one (nemotron until 5.12).
_OWN_ATTENTION = re.compile(r"_CLASSES\[\s*(self\.)?config\._attn_implementation\s*\]")

# What a plan must have for ranks to share any work: layers whose outputs they sum.
_SUMS = re.compile(r'"(rowwise\w*|moe_tp_experts)"')


def why_missing(config: Mapping[str, Any], ranks: int = 1) -> str | None:
    """Why this transformers cannot have the engine run the model, in one line; None if nothing speaks against it.

    Args:
        config: a model's ``config.json``, or the same of a transformers configuration; of a model without own code.
    """
    found = find_spec("transformers")
    name = config.get("model_type")
    if found is None or not found.submodule_search_locations or not isinstance(name, str):
        return None
    models = Path(found.submodule_search_locations[0]) / "models"
    installed = f"the installed transformers {version('transformers')}"
    if (known := _source(models / "auto", "*")) and f'"{name}"' not in known:
        return f"{name}: {installed} knows no such model; another version may"
    inner = config.get("text_config")
    kind = str((inner if isinstance(inner, Mapping) else config).get("model_type")).replace("-", "_")
    folder = models / kind
    if not folder.is_dir():  # what some models' text is a part of; where that is none either, a rank finds it out
        folder = models / kind.removesuffix("_text")
    if _OWN_ATTENTION.search(_source(folder, "modeling")):
        return f"{name}: {installed} lets it have no attention but its own; another version may"
    if ranks > 1 and (settings := _source(folder, "configuration")) and not _SUMS.search(settings):
        return f"{name}: {installed} has no plan that divides it among ranks; use 1 rank, or another version"
    return None


def _source(folder: Path, kind: str) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob(f"{kind}_*.py")))
