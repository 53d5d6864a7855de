"""A model is fetched by a process of its own: told how far it is, gone on with after a break, refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from raylaunch_actors.fetch import Fetching, Wanted

from raylaunch.model import hub
from tests.reference import hub as fake

WANTED = Wanted(fake.MODEL, None, None, (*hub.SETTINGS, hub.WEIGHTS))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with fake.hub() as one:
        yield one


@pytest.fixture
def environment(address: str, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}


def snapshot(cache: Path) -> Path:
    return cache / "models--someone--tiny" / "snapshots" / fake.COMMIT


def test_what_is_wanted_arrives_and_is_counted(environment: dict[str, str], tmp_path: Path) -> None:
    fetching = Fetching()
    assert fetching.run(WANTED, environment) == ""
    wanted = {name for name in fake.FILES if not name.endswith((".bin", ".py"))}
    assert {file.name for file in snapshot(tmp_path).iterdir()} == wanted
    assert fetching.nbytes >= len(fake.FILES["model.safetensors"])
    assert fetching.total == sum(len(fake.FILES[name]) for name in wanted)
    offline = {**environment, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "1"}
    assert Fetching().run(WANTED, offline) == ""


def test_what_the_driver_has_decided_is_fetched_where_the_branch_has_moved(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = snapshot(tmp_path)
    monkeypatch.setattr(fake, "COMMIT", "1" * 40)
    assert Fetching().run(replace(WANTED, commit=decided.name), environment) == ""
    assert [*decided.parent.iterdir()] == [decided]
    assert (decided / "model.safetensors").is_file()
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert Fetching().run(WANTED, offline) == "", "a launch from this node knows what the branch was"


def test_a_node_that_knows_a_newer_commit_of_the_branch_goes_on_knowing_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    ref = snapshot(tmp_path).parents[1] / "refs" / "main"
    (newer := ref.parents[1] / "snapshots" / ("2" * 40)).mkdir(parents=True)
    ref.parent.mkdir()
    ref.write_text(newer.name)
    assert Fetching().run(replace(WANTED, commit=snapshot(tmp_path).name), environment) == ""
    assert ref.read_text() == newer.name


def test_a_connection_that_breaks_off_is_gone_on_with(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake.FILES, "model.safetensors", b"w" * (24 << 20))  # the library writes 10 MiB at a time
    fake.SENT.clear()
    fake.BREAKS.append("model.safetensors")
    assert Fetching().run(WANTED, environment) == ""
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == fake.FILES["model.safetensors"]
    first, second = [start for name, start in fake.SENT if name == "model.safetensors"]
    assert first == 0 < second


def test_after_a_break_only_the_files_that_are_missing_are_fetched(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "PART_S", 1.0)
    slow = threading.Thread(target=Fetching().run, args=(WANTED, environment))
    slow.start()
    end = time.monotonic() + 60
    while not [*tmp_path.rglob("*.incomplete")] or not (snapshot(tmp_path) / "config.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    for child in psutil.Process().children():
        if "raylaunch_actors.fetch" in " ".join(child.cmdline()):
            child.kill()
    slow.join(10)
    monkeypatch.setattr(fake, "PART_S", 0.0)
    there = {file.name for file in snapshot(tmp_path).iterdir()}
    fake.SENT.clear()
    assert Fetching().run(WANTED, environment) == ""
    assert {name for name, _ in fake.SENT} == {
        name for name in fake.FILES if not name.endswith((".bin", ".py"))
    } - there


@pytest.mark.parametrize(
    ("path", "changed", "said"),
    [
        ("someone/else", {}, "the Hub has no such model for you: check the name, or set HF_TOKEN"),
        (
            "someone/gated",
            {},
            "it is gated: accept its terms at http://127.0.0.1:[0-9]+/someone/gated, and set HF",
        ),
        ("someone/tiny", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and the cache has nothing of it"),
        ("someone/tiny", {"HF_ENDPOINT": "http://127.0.0.1:1"}, "and the cache has nothing of it"),
        ("someone/tiny", {"HF_HUB_CACHE": "/proc/nowhere"}, "cannot be fetched: "),
    ],
)
def test_what_cannot_be_had_is_one_line(
    path: str, changed: dict[str, str], said: str, environment: dict[str, str]
) -> None:
    problem = Fetching().run(Wanted(path, None, None, WANTED.patterns), environment | changed)
    assert len(problem.splitlines()) == 1
    assert re.search(said, problem), problem


def test_it_ends_with_the_process_that_has_started_it(environment: dict[str, str], tmp_path: Path) -> None:
    code = f"""
import raylaunch, json, sys
from raylaunch_actors.fetch import Fetching, Wanted
Fetching().run(Wanted(*{(WANTED.path, None, None, WANTED.patterns)!r}), {environment!r})
"""
    fake.PART_S, before = 1.0, fake.PART_S
    try:
        parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
        end = time.monotonic() + 40
        while not [*tmp_path.rglob("*.incomplete")]:
            assert time.monotonic() < end
            time.sleep(0.05)
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        parent.wait(10)
        child.wait(10)
    finally:
        fake.PART_S = before
