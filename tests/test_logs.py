"""Lines as JSON: what is logged, and what is printed."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from raylaunch.config import LaunchConfig, LogConfig
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.logs import OURS, JsonLines, about, about_error, log_command, set_up
from raylaunch.terminal.outcome import reported
from tests.cli.runner import run


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """A stream. Loggers are as they were afterwards."""
    loggers = [logging.getLogger(), *map(logging.getLogger, OURS)]
    before = [(one.level, list(one.handlers)) for one in loggers]
    yield io.StringIO()
    for one, (level, handlers) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.handlers = handlers


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def speak(name: str) -> None:
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(f"{level} of {name}")


@pytest.mark.parametrize(
    ("settings", "ours", "theirs"),
    [
        ({"format": "json"}, ["info", "warning", "error"], ["warning", "error"]),
        ({"format": "json", "level": "debug"}, ["debug", "info", "warning", "error"], ["warning", "error"]),
        ({"format": "json", "level": "error"}, ["error"], ["error"]),
        ({"level": "info"}, ["info", "warning", "error"], ["warning", "error"]),
    ],
)
def test_levels(out: io.StringIO, settings: dict[str, str], ours: list[str], theirs: list[str]) -> None:
    set_up(LogConfig(**{**settings, "level": "info"}), out)  # type: ignore[arg-type]
    set_up(LogConfig(**settings), out, rank=1)  # type: ignore[arg-type]  # the last call counts
    for name in ("raylaunch.x", "raylaunch_actors.x", "urllib3"):
        speak(name)
    wanted = [f"{level} of {name}" for name, levels in (
        ("raylaunch.x", ours), ("raylaunch_actors.x", ours), ("urllib3", theirs)) for level in levels]  # fmt: skip
    if settings.get("format") == "json":
        assert [one["message"] for one in lines(out)] == wanted
        assert {one["rank"] for one in lines(out)} == {1}
    else:
        assert [one.partition(": ")[2] for one in out.getvalue().splitlines()] == wanted


def test_nothing_is_changed_where_nothing_is_said(out: io.StringIO) -> None:
    before = list(logging.getLogger().handlers)
    set_up(LogConfig(), out)
    assert logging.getLogger().handlers == before


def test_what_a_record_says(out: io.StringIO) -> None:
    set_up(LogConfig(format="json"), out, launch="tiny-012345", rank=0)
    log = logging.getLogger("raylaunch.engine.supervisor")
    error = LaunchError("rank 1 died", "F07", "SERVE", rank=1)
    log.error("lost: %s", "ü\n2", extra=about_error(error, launch="tiny-6789ab"))
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("it failed", extra=about(fault=None))
    first, second = lines(out)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "error", "logger": "raylaunch.engine.supervisor", "message": "lost: ü\n2", "launch": "tiny-6789ab",
        "rank": 1, "fault": "F07", "phase": "SERVE",
    }  # fmt: skip
    assert (second["rank"], second["launch"], "fault" in second) == (0, "tiny-012345", False)
    assert second["traceback"].startswith("Traceback")
    assert second["traceback"].endswith("ValueError: no")


def test_what_is_printed_is_json_too(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", out)
    log_command(LogConfig(format="json"))
    log_command(LogConfig(format="json"))
    assert isinstance(sys.stderr, JsonLines)
    print("one", 1, file=sys.stderr)
    typer.echo("two\nthree\n\n", err=True)
    sys.stderr.write("a line ")
    logging.getLogger("raylaunch").warning("between")
    sys.stderr.write("in parts\n")
    assert [(one["level"], one["message"]) for one in lines(out)] == [
        ("info", "one 1"), ("info", "two"), ("info", "three"), ("warning", "between"), ("info", "a line in parts"),
    ]  # fmt: skip


def test_how_a_command_ends(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", out)
    log_command(LogConfig(format="json"))
    error = LaunchError("rank 1 died\nmore", "F06", "LOAD", rank=1, teardown="torn down")
    for one, code in ((error, 1), (ConfigError("log.level", "loud", "must be one"), 2)):
        with pytest.raises(typer.Exit) as ended, reported():
            raise one
        assert ended.value.exit_code == code
    launch, config = lines(out)
    assert (launch["message"], launch["fault"], launch["rank"], launch["exit_code"]) == (error.headline(), "F06", 1, 1)
    assert launch["details"] == str(error)
    assert (config["level"], config["message"]) == ("error", "ConfigError log.level = 'loud': must be one")


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [(("--log-format", "xml"), "log.format", "xml"), (("--log-level", "loud"), "log.level", "loud")],
)
def test_wrong_ones(arguments: tuple[str, str], key: str, value: str) -> None:
    ran = run("config", *arguments)
    assert ran.code == 2
    assert f"{key} = {value!r}" in ran.stderr


def test_ranks_and_sglang_are_told() -> None:
    from raylaunch.sglang.arguments import server_arguments

    config = LaunchConfig.default(["log.level=debug"])
    assert server_arguments(config)["log_level"] == "debug"
    assert server_arguments(LaunchConfig.default())["log_level"] == "info"
