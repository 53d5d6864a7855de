"""SGLang looks here for ``EntryClass``, and takes its absence for an empty module."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

ARCHITECTURE = "RAYLAUNCH_ARCHITECTURE"
PACKAGE = "sglang.srt.models"


def module_of(architecture: str, folder: Path) -> str | None:
    """The module in a folder whose ``EntryClass`` is, or lists, a class of this name, by its source; those first whose
    name the architecture begins with."""
    wanted = re.compile(rf"^EntryClass\b[^\n]*=(?:[^\n]*|\s*\[[^\]]*)\b{re.escape(architecture)}\b", re.MULTILINE)
    likely = {name: architecture.lower().startswith(name.replace("_", "")) for name in _modules(folder)}
    for name in sorted(likely, key=lambda name: (not likely[name], -len(name), name)):
        if wanted.search((folder / f"{name}.py").read_text(encoding="utf-8", errors="replace")):
            return name
    return None


def _modules(folder: Path) -> Iterator[str]:
    return (file.stem for file in folder.glob("*.py"))


def _entry() -> object:
    asked = os.environ.get(ARCHITECTURE)
    spec = importlib.util.find_spec(PACKAGE) if asked else None
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        if asked and (name := module_of(asked, Path(folder))):
            return importlib.import_module(f"{PACKAGE}.{name}").EntryClass
    return None


if (entry := _entry()) is not None:
    EntryClass = entry
