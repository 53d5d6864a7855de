"""Models on the Hub where it answers, refuses, hangs or is not there: at most one short question, and one line."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from raylaunch import ConfigError
from raylaunch.config import LaunchConfig
from raylaunch.model import hub
from raylaunch.model.shape import ModelShape, read_model_config
from raylaunch.resolved import launch_of
from tests.reference import hub as fake

MODEL, COMMIT = fake.MODEL, fake.COMMIT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_SILENT", {})
    monkeypatch.setattr(hub, "ASK_S", 1.0)
    monkeypatch.setattr(hub, "_SAID", set())
    return tmp_path


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def fill(cache: Path, *names: str, index: dict[str, Any] | None = None) -> Path:
    """A cached snapshot with these files."""
    model = cache / f"models--{MODEL.replace('/', '--')}"
    folder = model / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    for name in names:
        (folder / name).write_text("{}")
    if index is not None:
        (folder / hub.INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


@contextmanager
def hub_that_answers(status: int) -> Iterator[tuple[str, list[str]]]:
    """A Hub that has one answer for everything: its address, and what it was asked."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_that(behaves: str) -> Iterator[str]:
    """The address of a Hub of this behaviour: a status, ``hangs``, ``refuses`` or ``unknown``."""
    if behaves == "hangs":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    elif behaves == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    elif behaves == "unknown":
        yield "http://no.such.host.invalid"
    else:
        with hub_that_answers(int(behaves)) as (address, _):
            yield address


BEHAVIOURS = ("hangs", "refuses", "unknown", "500", "503", "429", "401", "403")


@pytest.mark.parametrize("behaves", BEHAVIOURS)
def test_a_whole_cached_model_is_used_at_once_with_a_line_that_says_why(behaves, cache, monkeypatch, caplog):
    folder = fill(cache, "config.json", "model.safetensors")
    began = time.monotonic()
    with hub_that(behaves) as address, caplog.at_level(logging.WARNING, "raylaunch.model.hub"):
        at(monkeypatch, address)
        for revision in (None, None, COMMIT):  # as the driver for its check and its tokenizer; a rank for its weights
            assert hub.snapshot(MODEL, revision, hub.SETTINGS, weights=True) == folder
        assert hub.snapshot(MODEL, COMMIT, hub.SETTINGS) == folder  # what else there is nobody knows
    assert time.monotonic() - began < 10
    assert caplog.text.count(f"the cached snapshot {COMMIT[:7]} of {MODEL} is used") == 1
    if behaves == "hangs":
        assert "the Hub does not answer within 1 s" in caplog.text


@pytest.mark.parametrize("behaves", BEHAVIOURS)
def test_a_model_that_is_not_cached_is_refused_at_once_in_one_line(behaves, monkeypatch):
    began = time.monotonic()
    with hub_that(behaves) as address:
        at(monkeypatch, address)
        with pytest.raises(ConfigError, match=r"no such folder here, and the Hub does not give it: ") as refused:
            read_model_config(LaunchConfig.default([f"model.path={MODEL}"]))
    assert time.monotonic() - began < 10
    assert len(str(refused.value).splitlines()) == 1


def test_a_hub_that_refuses_is_asked_once(monkeypatch, cache):
    fill(cache, "config.json", "model.safetensors")
    with hub_that_answers(429) as (address, asked):
        at(monkeypatch, address)
        for _ in range(3):
            hub.snapshot(MODEL, None, hub.SETTINGS, weights=True)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("names", "index", "missing"),
    [
        (("model.safetensors",), None, ""),
        ((), None, "*.safetensors"),
        (("a.safetensors", "b.safetensors"), {"x": "a.safetensors", "y": "b.safetensors"}, ""),
        (("a.safetensors",), {"x": "a.safetensors", "y": "b.safetensors"}, "b.safetensors"),
        (("a.safetensors",), {"x": "a.safetensors", "y": 5}, "5"),
        (("a.safetensors",), {"x": "a.safetensors", "y": "y" * 5000}, "y" * 5000),
        (("a.safetensors", hub.INDEX), None, f"readable {hub.INDEX}"),
    ],
)
def test_what_is_missing_of_the_weights(cache, names, index, missing):
    assert hub.missing_weights(fill(cache, "config.json", *names, index=index)) == missing


def test_the_driver_finds_the_commit_that_every_process_reads(cache, monkeypatch):
    fill(cache, "config.json", "model.safetensors")
    config = LaunchConfig.default([f"model.path={MODEL}"])
    with hub_that("refuses") as address:
        at(monkeypatch, address)
        assert read_model_config(config) == ({}, COMMIT)
    monkeypatch.setattr(fake, "COMMIT", "1" * 40)
    hub._SILENT.clear()
    with fake.hub() as address:
        at(monkeypatch, address)
        assert read_model_config(config) == ({}, "1" * 40)
    shape = ModelShape("tiny", 2048, 16, 4, 4)
    assert launch_of(config, replace(shape, commit=COMMIT)).revision == COMMIT
    assert launch_of(config.replace({"model.revision": "v1"}), shape).revision == "v1"


@pytest.mark.parametrize("offline", [False, True])
def test_a_model_that_is_cached_in_part_is_refused_with_the_file_that_it_lacks(offline, cache, monkeypatch):
    fill(cache, "config.json", "a.safetensors", index={"x": "a.safetensors", "y": "b.safetensors"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with hub_that("refuses") as address:
        at(monkeypatch, address)
        with pytest.raises(ConfigError, match=rf"cached snapshot {COMMIT[:7]} has no b\.safetensors"):
            read_model_config(LaunchConfig.default([f"model.path={MODEL}"]))


def test_a_commit_that_is_cached_whole_is_nobodys_question(cache, monkeypatch):
    folder = fill(cache, "config.json", "model.safetensors")
    with hub_that_answers(500) as (address, asked):
        at(monkeypatch, address)
        assert hub.snapshot(MODEL, COMMIT, hub.SETTINGS, weights=True) == folder
        assert hub.cached(MODEL, COMMIT) == hub.cached(MODEL, "main") == folder
    assert asked == []


def test_a_commit_whose_weights_are_not_there_is_refused_in_time(cache, monkeypatch):
    fill(cache, "config.json")
    began = time.monotonic()
    with hub_that("hangs") as address:
        at(monkeypatch, address)
        for _ in range(3):
            with pytest.raises(hub.HubError, match=r"within 1 s, and the cached snapshot 0{7} has no \*\.safetensors"):
                hub.snapshot(MODEL, COMMIT, hub.SETTINGS, weights=True)
    assert time.monotonic() - began < 5


def test_what_a_hub_says_of_one_revision_says_nothing_of_another(cache, monkeypatch):
    with hub_that_answers(404) as (address, asked):
        at(monkeypatch, address)
        assert [hub.ask(MODEL, revision).commit for revision in ("mian", "main")] == [None, None]
    assert len(asked) == 2


def test_offline_asks_nobody(cache, monkeypatch):
    folder = fill(cache, "config.json", "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_that_answers(500) as (address, asked):
        at(monkeypatch, address)
        assert hub.snapshot(MODEL, None, hub.SETTINGS, weights=True) == folder
    assert asked == []


def test_a_hub_that_answers_is_followed_where_the_branch_has_moved(cache, monkeypatch):
    old = fill(cache, "config.json", "model.safetensors")
    monkeypatch.setattr(fake, "COMMIT", "1" * 40)
    with fake.hub() as address:
        at(monkeypatch, address)
        new = hub.snapshot(MODEL, None, (*hub.SETTINGS, hub.WEIGHTS), weights=True)
    assert (old.name, new.name) == (COMMIT, "1" * 40)
    assert (new / "model.safetensors").is_file()


def test_an_older_snapshot_is_used_where_the_new_one_cannot_be_fetched(cache, monkeypatch, caplog):
    old = fill(cache, "config.json", "model.safetensors")
    monkeypatch.setattr(fake, "COMMIT", "1" * 40)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "ro")))
    with fake.hub() as address, caplog.at_level(logging.WARNING, "raylaunch.model.hub"):
        at(monkeypatch, address)
        assert hub.snapshot(MODEL, None, (*hub.SETTINGS, hub.WEIGHTS), weights=True) == old
    assert f"the Hub does not give all of it: the cache {cache} cannot be written: set HF_HUB_CACHE" in caplog.text
    assert "the cached snapshot 0000000" in caplog.text


def test_a_branch_that_was_fetched_by_its_commit_is_known_without_a_network(cache, monkeypatch):
    with fake.hub() as address:
        at(monkeypatch, address)
        folder = hub.snapshot(MODEL, None, (*hub.SETTINGS, hub.WEIGHTS), weights=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.snapshot(MODEL, None, hub.SETTINGS, weights=True) == hub.snapshot(MODEL, "main", hub.SETTINGS) == folder


def test_a_branch_is_noted_whole_or_not_at_all(cache, monkeypatch):
    reference = fill(cache, "config.json").parents[1] / "refs" / "main"

    def full(path: Path, text: str) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        hub.remember(MODEL, None, "1" * 40)
    assert reference.read_text() == COMMIT
    assert [file.name for file in reference.parent.iterdir()] == ["main"]
    hub.remember(MODEL, None, "1" * 40)
    assert reference.read_text() == "1" * 40


def test_a_branch_of_which_nothing_is_noted_is_not_cached(cache):
    reference = fill(cache, "config.json").parents[1] / "refs" / "main"
    assert hub.cached(MODEL, "main") is not None
    reference.write_text("")
    assert hub.cached(MODEL, "main") is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "full"), "there is no room left in .*: make some, or set HF_HUB_CACHE"),
        (PermissionError(13, "no"), "the cache .* cannot be written: set HF_HUB_CACHE"),
        (OSError(30, "ro"), "the cache .* cannot be written"),
        (OSError("first\nsecond"), "first$"),
    ],
)
def test_what_to_do_is_said_in_one_line(error, said):
    assert re.match(said, hub.problem_of(error, MODEL))
