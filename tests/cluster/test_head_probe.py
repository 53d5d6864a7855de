"""What is found out about an address before Ray is told to join it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import ray

from raylaunch import LaunchError
from raylaunch.cluster.head_probe import _why, head_of
from raylaunch.cluster.session import enter


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever session other tests have left to this process."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def listener() -> Iterator[str]:
    """An address, as seen from other machines too, where something listens that never says a word."""
    with socket.create_server(("0.0.0.0", 0)) as one:
        yield f"127.0.0.1:{one.getsockname()[1]}"


def test_what_is_no_head_is_given_up_at_a_deadline(listener: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"does not answer as the head .* within 0.5 s; give HOST:PORT .* 6379"):
        head_of(listener, deadline_s=0.5)
    assert time.monotonic() - began < 5.0


def test_one_that_had_no_time_to_look_has_not_said_that_there_is_no_cluster(listener: str) -> None:
    with pytest.raises(ConnectionError, match=rf"what listens at {listener} does not answer .* within 0.01 s"):
        head_of(listener, deadline_s=0.01)


def test_the_question_ends_when_the_launch_is_stopped(listener: str) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(LaunchError, match="shut down"):
        enter(listener, 1, "raylaunch", stop.is_set)
    assert time.monotonic() - began < 5.0


def test_an_address_that_is_none_is_told_with_what_would_be_right() -> None:
    with pytest.raises(LaunchError, match=r"no Ray cluster at 'nonsense': .*Invalid address.*; give HOST:PORT"):
        enter("nonsense", 1, "raylaunch")


@pytest.mark.parametrize(
    ("found", "complaint", "text"),
    [
        ("10.0.0.1:6379", "AuthenticationError: RPC error", "at 10.0.0.1:6379, where auto leads to, asks for another"),
        ("", "Could not find any running Ray instance.", "Could not find any running Ray instance.; give HOST:PORT"),
        ("a:1", "Traceback\nRpcError: status: 404", "RpcError: status: 404 (a:1); give HOST:PORT"),
        ("a:1", "", "what listens at a:1, where auto leads to, does not answer as the head of a Ray cluster"),
    ],
)
def test_why_not(found: str, complaint: str, text: str) -> None:
    assert text in _why("auto", found, complaint, 20.0)
