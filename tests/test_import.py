"""Importing raylaunch is quick, and each part imports no more than it may."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import raylaunch_actors

import raylaunch

HEAVY = ("torch", "sglang", "ray", "transformers")
PROGRAM = """
import sys, time
began = time.process_time()
import {name}
print(time.process_time() - began, *(name for name in {heavy} if name in sys.modules))
"""


def cost(name):
    """Processor seconds of an import in a fresh process, and the heavy modules that it loaded."""
    program = PROGRAM.format(name=name, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    return float(seconds), loaded


def test_importing_raylaunch_is_quick_and_loads_nothing_heavy():
    seconds, loaded = cost("raylaunch")
    assert loaded == []
    assert seconds < 0.5


@pytest.mark.parametrize(
    "name", ["raylaunch.protocol", "raylaunch.config, raylaunch.report", "raylaunch.group.diagnosis"]
)
def test_the_pure_parts_load_nothing_heavy(name):
    assert cost(name)[1] == []


def test_the_engine_loads_neither_torch_nor_sglang():
    assert cost("raylaunch.engine")[1] == ["ray"]


def imports_at_module_level(file):
    """Modules that a file imports when it is itself imported; what only type checkers read is left out."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(package):
    return sorted(Path(package.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("file", files_of(raylaunch), ids=lambda file: file.name)
def test_the_drivers_side_imports_no_actors(file):
    if file.name == "remote.py":
        return  # it is what workers import
    found = [name for name in imports_at_module_level(file) if name.split(".")[0] == "raylaunch_actors"]
    assert found == []


@pytest.mark.parametrize("file", files_of(raylaunch_actors), ids=lambda file: file.name)
def test_the_ranks_side_imports_only_what_both_sides_share(file):
    shared = (
        "raylaunch.protocol",
        "raylaunch.config",
        "raylaunch.errors",
        "raylaunch.logs",
        "raylaunch.values.json_text",
        "raylaunch.values.masking",
        "raylaunch.package",
        "raylaunch.resolved",
        "raylaunch.model.hub",
        "raylaunch.model.load_formats",
        "raylaunch.wire",
        "raylaunch.sglang.arguments",
        "raylaunch.sglang.source",
    )
    found = [name for name in imports_at_module_level(file) if name.split(".")[0] == "raylaunch"]
    assert [name for name in found if not name.startswith(shared)] == []
