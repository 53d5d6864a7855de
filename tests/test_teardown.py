"""The proof that processes have ended: what their nodes say, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from raylaunch import teardown
from raylaunch.teardown import Teardown, prove_ended

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
    assert prove_ended(processes, nodes.existing, nodes.force, time.monotonic() + 0.1) == (forced, left)
    assert nodes.killed == set(forced)


def test_a_process_that_outlives_a_kill_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "FORCE_AFTER_S", 0.0)
    stuck = prove_ended({"a": {7}}, lambda *_: {7}, lambda *_: None, time.monotonic() + 0.05)
    assert stuck == ((7,), (7,))


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
