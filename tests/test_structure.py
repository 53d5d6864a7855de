"""docs/structure.md names things that exist."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "structure.md").read_text()
NAMES = sorted(set(re.findall(r"`((?:raylaunch|raylaunch_actors)(?:\.\w+)+)`", TEXT)))
FOLDERS = sorted(set(re.findall(r"^\| `([\w/]+/)` \|", TEXT, re.MULTILINE)))


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return
    pytest.fail(f"{name} does not exist")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_exists(folder: str) -> None:
    assert (ROOT / folder).is_dir()


def test_every_package_folder_is_described() -> None:
    inside = {f"{p.parent.relative_to(ROOT)}/" for top in ("raylaunch", "actors") for p in (ROOT / top).rglob("*.py")}
    assert {folder for folder in inside if "__pycache__" not in folder} <= set(FOLDERS)


def test_every_module_is_forbidden_to_the_protocol() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = {
        name for one in said if one.get("source_modules") == ["raylaunch.protocol"] for name in one["forbidden_modules"]
    }
    there = {*(ROOT / "raylaunch").glob("*.py"), *(one.parent for one in (ROOT / "raylaunch").glob("*/__init__.py"))}
    names = {f"raylaunch.{one.stem}" for one in there} - {"raylaunch.__init__", "raylaunch.protocol"}
    assert names | {"raylaunch_actors", "ray", "torch"} == forbidden
