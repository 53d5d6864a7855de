"""Which launches fetch a model, and what is said meanwhile."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from raylaunch.config import LaunchConfig
from raylaunch.group.fetch import _said, wanted_of
from raylaunch.model.shape import ModelShape
from raylaunch.resolved import launch_of
from raylaunch.terminal import progress
from raylaunch.terminal.progress import LaunchProgress


@pytest.mark.parametrize(
    ("overrides", "patterns"),
    [
        (["model.path=a/b"], ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")),
        (["model.path=a/b", "model.revision=v1", "engine=sglang"], ("*.json",)),
        (["model.path=a/b", "model.trust_remote_code=true"], ("*.py", "*.safetensors")),
        (["model.path=a/b", "model.load_format=dummy"], None),
        (["model.path=a/b", "engine=sglang", "model.load_format=remote_instance"], None),
        (["model.path=a/b", "engine=sglang", "model.load_format=sharded_state"], ("*.safetensors",)),
        (["model.path=a/b", "engine=sglang", "model.load_format=pt"], ("*.pt",)),
        ([], None),  # a folder
    ],
)
def test_what_is_fetched(overrides: list[str], patterns: tuple[str, ...] | None) -> None:
    config = LaunchConfig.default(overrides)
    shape = ModelShape("tiny", 2048, 16, 4, 4, commit="0f" * 20)
    wanted = wanted_of(launch_of(config, shape))
    if patterns is None:
        assert wanted is None
        return
    assert wanted is not None
    assert (wanted.path, wanted.revision, wanted.commit) == ("a/b", config.model.revision, shape.commit)
    assert wanted.whole == (config.model.load_format == "auto")  # shards are in no index
    assert set(patterns) <= set(wanted.patterns)
    assert ("*.py" in wanted.patterns) == config.model.trust_remote_code


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([(3 << 30, 16 << 30)], "fetching a/b: 3.0 GiB of 16.0 GiB"),
        ([(3 << 30, 16 << 30), (1 << 30, 16 << 30)], "fetching a/b: 1.0 GiB of 16.0 GiB, slowest of 2 nodes"),
        ([(3 << 30, 0)], "fetching a/b: 3.0 GiB"),
        ([(0, 0)], "fetching a/b: 0 B"),
    ],
)
def test_how_far_it_is(nodes: list[tuple[int, int]], said: str) -> None:
    assert _said("a/b", nodes) == said


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with LaunchProgress(Console(file=out, width=120)) as shown:
        for at, text in ((100.0, ""), (101.0, "1 of 9"), (102.0, "2 of 9"), (111.5, "3 of 9"), (112.0, "3 of 9")):
            clock[0] = at
            shown.note(text)
    assert [line.split("s  ")[1] for line in out.getvalue().splitlines()] == ["PLACE", "1 of 9", "3 of 9"]
