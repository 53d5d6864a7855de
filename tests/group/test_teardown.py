"""The proof that processes have ended: what their nodes say, and what follows from it."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from raylaunch.cluster import placement
from raylaunch.cluster import session as ray_session
from raylaunch.cluster.placement import Placement
from raylaunch.cluster.session import RaySession
from raylaunch.group import ranks, teardown
from raylaunch.group.member import Member
from raylaunch.group.ranks import RankGroup
from raylaunch.group.teardown import Teardown, prove_ended
from tests.head import free_ports

GONE = "gone"
LATE = None


class Nodes:
    """Nodes that answer as written, the last answer for ever; a killed process ends."""

    def __init__(self, **answers: Sequence[set[int] | str | None]) -> None:
        self.answers = {node: list(given) for node, given in answers.items()}
        self.killed: set[int] = set()

    def existing(self, node: str, pids: set[int], timeout_s: float) -> set[int] | None:
        assert timeout_s > 0
        left = self.answers[node]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, str):
            raise LookupError(node)
        return None if answer is None else answer - self.killed

    def force(self, node: str, pids: set[int]) -> None:
        self.killed |= pids


@pytest.mark.parametrize(
    ("processes", "answers", "forced", "left"),
    [
        ({}, {}, (), ()),
        ({"a": {1, 2}}, {"a": [set()]}, (), ()),
        ({"a": {1, 2}}, {"a": [{1, 2}, {2}, set()]}, (), ()),
        ({"a": {1, 2}}, {"a": [{1, 2}, {2}]}, (2,), ()),
        ({"a": {1, 2}}, {"a": [LATE, {1, 2}]}, (1, 2), ()),
        ({"a": {1}, "b": {2}}, {"a": [LATE, LATE, set()], "b": [{2}]}, (2,), ()),
        ({"a": {1, 2}}, {"a": [GONE]}, (), (1, 2)),
        ({"a": {1}, "b": {2}}, {"a": [GONE], "b": [{2}]}, (2,), (1,)),
        ({"a": {1, 2}}, {"a": [{1, 2}, {2}, LATE]}, (), (2,)),
    ],
)
def test_proof(
    monkeypatch: pytest.MonkeyPatch,
    processes: dict[str, set[int]],
    answers: dict[str, list[set[int] | str | None]],
    forced: tuple[int, ...],
    left: tuple[int, ...],
) -> None:
    monkeypatch.setattr(teardown, "PAUSE_S", 0.001)
    monkeypatch.setattr(teardown, "FORCE_AFTER_S", 0.01)
    nodes = Nodes(**answers)
    assert prove_ended(processes, nodes.existing, nodes.force, time.monotonic() + 0.1) == left
    assert nodes.killed == set(forced)


def test_a_process_that_outlives_a_kill_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "FORCE_AFTER_S", 0.0)
    stuck = prove_ended({"a": {7}}, lambda *_: {7}, lambda *_: None, time.monotonic() + 0.05)
    assert stuck == (7,)


@pytest.mark.parametrize(
    ("done", "text"),
    [
        (Teardown(2, 1, seconds=0.04), "torn down in 0.0 s; 2 actors, 1 placement group released"),
        (Teardown(1, left=(7, 9)), "1 actor, 0 placement groups released; could not prove the end of processes 7, 9"),
        (Teardown(2, unseen=(1,)), "could not prove the end of the processes of ranks 1, which had not started"),
        (Teardown(2, left=(7,), unseen=(1,)), "the end of processes 7 and of the processes of ranks 1, which"),
    ],
)
def test_what_is_told(done: Teardown, text: str) -> None:
    assert text in str(done)


def refusing_head() -> tuple[str, int]:
    """Where nobody listens."""
    return "127.0.0.1", free_ports(1)[0]


Hanging = Callable[[object, str], None]


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    """Has calls of Ray's wait as they do without a head. The threads that called end with the test: what they would
    call next starts a cluster."""
    over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        over.wait(60)
        raise RuntimeError("the test is over")

    yield lambda where, name: monkeypatch.setattr(where, name, hang)
    over.set()


@pytest.mark.parametrize("started", [True, False], ids=["a private cluster", "a joined cluster"])
def test_a_group_whose_head_is_gone_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, hanging: Hanging, started: bool
) -> None:
    hanging(placement, "remove_placement_group")
    monkeypatch.setattr(ranks, "kill", lambda actor: None)
    monkeypatch.setattr(ranks, "HEADLESS_S", 0.3)
    monkeypatch.setattr(ray_session, "_ABANDONED", threading.Event())
    session = RaySession(started=started, joined=not started, _head=refusing_head())
    child = subprocess.Popen(["sleep", "60"])
    process: Any = SimpleNamespace(pid=child.pid, node_id="n")
    seated: Any = Placement(group=None, seats=(), owned=True)  # type: ignore[arg-type]
    group = RankGroup(seated, [Member(None, None, process)], session=session)  # type: ignore[arg-type]
    hanging(group, "_existing")
    began = time.monotonic()
    try:
        assert group.close(10.0).left == (child.pid,)
        assert time.monotonic() - began < 5.0
        assert ray_session.abandoned()
        assert (child.poll() is None) is not started or child.wait(5.0) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def test_a_placement_group_that_ray_does_not_remove_is_not_waited_for(hanging: Hanging) -> None:
    hanging(placement, "remove_placement_group")
    assert not placement.release(None, 0.05)  # type: ignore[arg-type]


def test_a_session_without_its_head_is_lost_at_once_only_if_it_is_ours() -> None:
    head = refusing_head()
    assert "nobody listens at 127.0.0.1:" in RaySession(started=True, _head=head).lost()
    joined = RaySession(joined=True, _head=head)
    assert joined.lost(0.2) == ""
    time.sleep(0.3)
    assert "nobody listens" in joined.lost(0.2)
    with socket.create_server(head):
        assert joined.lost(0.2) == ""
    assert joined.lost(0.2) == ""
