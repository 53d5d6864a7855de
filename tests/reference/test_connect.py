"""How a rank's connection ends: all of it is closed, and what ended the launch is what is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from raylaunch_actors.closing import close_all
from raylaunch_actors.reference.connect import Connection

PARTS = ("link", "follower", "sockets", "store")


class Held:
    """Something that notes when it is closed."""

    def __init__(self, name: str, closed: list[str], fails: bool) -> None:
        self.name, self.closed, self.fails = name, closed, fails

    def close(self) -> None:
        self.closed.append(self.name)
        if self.fails:
            raise RuntimeError(f"{self.name} does not close")


@pytest.fixture
def closed() -> list[str]:
    return []


def connection(closed: list[str], *failing: str) -> Connection:
    made: Any = Connection(SimpleNamespace(), Path())  # type: ignore[arg-type]
    for name in PARTS:
        setattr(made, name, Held(name, closed, name in failing))
    return made


def test_everything_is_closed_though_the_first_parts_fail_to(closed: list[str]) -> None:
    with pytest.raises(RuntimeError, match="link does not close"), connection(closed, "link", "sockets"):
        pass
    assert tuple(closed) == PARTS


def test_what_ended_the_launch_is_not_hidden(closed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="out of step") as caught, connection(closed, "link"):
        raise ValueError("out of step")
    assert caught.value.__context__ is None
    assert tuple(closed) == PARTS
    assert "Held did not close: link does not close" in caplog.text


def test_what_was_never_opened_is_not_closed(closed: list[str]) -> None:
    close_all(None, Held("one", closed, False), None)
    assert closed == ["one"]
