"""Who is blamed, and in which words, for everything that can be seen of the ranks of a group: all combinations."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from raylaunch_actors.process_watch import Sighting

from raylaunch.group.diagnosis import (
    Fate,
    Seen,
    cause_of_death,
    ended_by,
    ended_from_outside,
    fault_code,
    observe,
    root_cause,
    sentence,
    stopped_by,
)
from raylaunch.group.outcome import StepOutcome
from raylaunch.group.serving import known_of
from raylaunch.protocol import Arrival, Failure, Gate, Phase, Step

RAY_EOF = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called."
)
RAY_GROUP_REMOVED = (
    "The actor is dead because its worker process has died. Worker exit type: INTENDED_SYSTEM_EXIT Worker exit detail: "
    "Destroying worker since its placement group was removed. Placement group id: 6d8f."
)
STATE: Any = SimpleNamespace(activity="serving", step=None, gates=0, waiting=False)
AT_GATE: Any = SimpleNamespace(activity="left MEET", step=Step(Gate.LOADED), gates=0, waiting=True)


def ends(status: int | None) -> dict[str, Any]:
    """Dying, as its node's agent sees it before Ray does."""
    return {"process": Sighting(True, status, 10.0)}


def gone(status: int | None) -> dict[str, Any]:
    """Gone, as both see it."""
    return ends(status) | {"death": RAY_EOF}


def failed(secondary: bool) -> dict[str, Any]:
    text = "Connection closed by peer" if secondary else "a bug"
    return {"failure": Failure(0, None, "RuntimeError", text, secondary=secondary, when=9.0)}


@dataclass(frozen=True)
class Case:
    """One thing that can be seen of a rank; how it weighs, 0 the most; and what is said if that rank is to blame."""

    name: str
    seen: dict[str, Any]
    weight: int
    words: str | None


KILL, TERM, HUP, SEGV, BUS, ABRT = 9, 15, 1, 11, 7, 6
STOPPED = {"process": Sighting(False, int(signal.SIGSTOP), 2.0)}
CASES = [
    Case("its node is lost", {"node_lost": True}, 0, "died: its node does not answer"),
    Case("dying of SIGKILL", ends(KILL), 0, "died: killed by SIGKILL"),
    Case("gone by SIGKILL", gone(KILL), 0, "died: killed by SIGKILL"),
    Case("dying of SIGTERM", ends(TERM), 0, "died: was asked to end by SIGTERM"),
    Case("gone by SIGTERM", gone(TERM), 0, "died: was asked to end by SIGTERM"),
    Case("gone by SIGHUP", gone(HUP), 0, "died: was asked to end by SIGHUP"),
    Case("crashed", gone(SEGV | 0x80), 0, "died: crashed: Segmentation fault (SIGSEGV)"),
    Case("aborted", gone(ABRT), 0, "died: crashed: Aborted (SIGABRT)"),
    Case("bus error", ends(BUS), 0, "died: crashed: Bus error (SIGBUS)"),
    Case("left", gone(3 << 8), 0, "died: exited with code 3"),
    Case("gone, nobody knows how", gone(None), 0, "died: ended without a message"),
    Case("only Ray says that it is gone", {"death": RAY_EOF}, 0, "died: ended without a message"),
    Case("dying, and a secondary failure before", ends(KILL) | failed(True), 0, "died: killed by SIGKILL"),
    Case("dying, and it answers", ends(TERM) | {"state": STATE}, 0, "died: was asked to end by SIGTERM"),
    Case("its process is gone", {"letter": ""}, 0, "died: its process is gone"),
    Case("its own error", failed(False), 1, "failed: RuntimeError: a bug"),
    Case("its own error, and then its end", failed(False) | gone(KILL), 1, "failed: RuntimeError: a bug"),
    Case("stopped", STOPPED, 2, "its process is stopped (SIGSTOP)"),
    Case("stopped, a secondary failure before", STOPPED | failed(True), 2, "its process is stopped (SIGSTOP)"),
    Case("in a debugger", {"process": Sighting(False, 0, 2.0)}, 2, "its process is held by a debugger"),
    Case("stuck in native code", {"letter": "R"}, 3, "does not answer: native code holds the interpreter"),
    Case("silent", {"letter": None}, 3, "does not answer, and neither does the agent of its node"),
    Case("not started", {"started": False}, 3, "its process has not started"),
    Case("busy", {"state": STATE}, 4, "made no progress for 8 s: still busy: serving"),
    Case("secondary", failed(True), 5, "lost its peers and no rank says why: RuntimeError: Connection closed by peer"),
    Case("ended by the watchdog", gone(ABRT) | {"log": "Watchdog caught collective operation timeout"}, 5,
         "lost its peers and no rank says why: NCCL's watchdog ended it"),
    Case("waiting", {"state": STATE, "stack": 'File "/x/torch/distributed/c10d.py"'}, 6, "waits for its peers"),
    Case("at a gate, unheard", {"state": AT_GATE}, 6, "stands at LOAD loaded, which was heard too late"),
    Case("arrived", {"arrival": Arrival(0, Step(Gate.LOADED), None, None, 0.0, 1.0)}, 7, None),
]  # fmt: skip


def judged(*cases: Case) -> tuple[int | None, str, str | None]:
    """The rank that is blamed, the sentence, and the fault while serving."""
    observations = [replace(observe(Seen(rank, **case.seen)), rank=rank) for rank, case in enumerate(cases)]
    cause = root_cause(observations)
    text = sentence(observations, cause, 8.0)
    return (None, text, None) if cause is None else (cause.rank, text, fault_code(cause, Phase.SERVE))


def earlier(pair: tuple[Case, Case]) -> int:
    first, second = ((case.weight, observe(Seen(0, **case.seen)).when) for case in pair)
    return 0 if first <= second else 1


@pytest.mark.parametrize(
    ("cases", "blamed"),
    [(pair, earlier(pair)) for pair in itertools.product(CASES, CASES)],
    ids=lambda one: " + ".join(case.name for case in one) if isinstance(one, tuple) else "",
)
def test_every_pair(cases: tuple[Case, Case], blamed: int) -> None:
    """Of two ranks the one whose sight weighs more is blamed, whichever number it has; of equals the earlier."""
    rank, text, code = judged(*cases)
    if all(case.words is None for case in cases):
        assert (rank, text) == (None, "the launch failed and every rank says that it is fine")
        return
    assert rank == blamed
    assert text.startswith(f"rank {blamed} ")
    assert (cases[blamed].words or "") in text
    died, hangs = cases[blamed].weight in (0, 1), cases[blamed].weight in (2, 3, 4, 5, 6)
    lost_node = "node_lost" in cases[blamed].seen
    assert code == ("F15" if lost_node else "F07" if died else "F08" if hangs else None)
    other = 1 - blamed
    if cases[blamed].weight < 5 and cases[other].weight in (0, 2):  # both have ended, or are stopped
        assert f"; rank {other}: " in text
        assert (cases[other].words or "").removeprefix("died: ") in text
    else:
        assert f"; rank {other}: " not in text


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("culprit", [case for case in CASES if case.weight < 5], ids=lambda case: case.name)
def test_one_of_four(culprit: Case, place: int) -> None:
    """Its peers fail because of it, wait, or stand at a gate; nobody else is named."""
    by_name = {case.name: case for case in CASES}
    others = [by_name["secondary"], by_name["waiting"], by_name["arrived"]]
    cases = [*others[:place], culprit, *others[place:]]
    rank, text, _ = judged(*cases)
    assert rank == place
    assert [f"rank {one}" in text for one in range(4)] == [one == place for one in range(4)]


def both_killed(first: float, second: float) -> list[Seen]:
    return [Seen(0, process=Sighting(True, KILL, first)), Seen(1, process=Sighting(True, TERM, second))]


@pytest.mark.parametrize(("first", "second", "blamed"), [(5.0, 5.0, 0), (5.0, 6.0, 0), (6.0, 5.0, 1)])
def test_of_two_that_die_the_first_is_blamed_and_both_are_named(first: float, second: float, blamed: int) -> None:
    observations = [observe(one) for one in both_killed(first, second)]
    cause = root_cause(observations)
    assert cause is not None
    assert cause.rank == blamed
    killed, asked = "killed by SIGKILL", "was asked to end by SIGTERM"
    texts = [f"rank 0 died: {killed}; rank 1: {asked}", f"rank 1 died: {asked}; rank 0: {killed}"]
    assert sentence(observations, cause, 0.0) == texts[blamed]


@pytest.mark.parametrize("number", sorted(set(signal.Signals) - {signal.SIGSTOP}))
@pytest.mark.parametrize("dumped", [0, 0x80])
def test_every_signal_is_named(number: signal.Signals, dumped: int) -> None:
    text = ended_by(number | dumped)
    assert number.name in text
    assert text.startswith(("killed by SIG", "was asked to end by SIG", "crashed: "))
    assert ended_from_outside(Sighting(True, number | dumped, 0.0)) is not text.startswith("crashed")


@pytest.mark.parametrize(
    ("message", "log", "kills", "status", "text"),
    [
        ("", "", 0, KILL, "killed by SIGKILL"),
        ("", "", 1, KILL, "killed by the kernel: out of memory (SIGKILL)"),
        ("", "", 1, TERM, "was asked to end by SIGTERM"),
        (RAY_EOF, "Fatal Python error: Segmentation fault", 0, SEGV, "crashed: Segmentation fault (SIGSEGV)"),
        (RAY_EOF, "Fatal Python error: Bus error\n...Fatal Python error: Segmentation fault", 0, SEGV,
         "crashed: Bus error (SIGBUS)"),
        (RAY_EOF, "Fatal Python error: deallocating None", 0, ABRT, "crashed: deallocating None (SIGABRT)"),
        (RAY_EOF, "Fatal Python error: Segmentation fault", 0, KILL, "killed by SIGKILL"),
        (RAY_EOF, "", 0, 0, "exited with code 0"),
        (RAY_EOF, "", 0, 255 << 8, "exited with code 255"),
        (RAY_EOF, "", 0, 40, "killed by signal 40"),
        (RAY_GROUP_REMOVED, "", 0, TERM, "ended with its placement group, which somebody has removed"),
        ("exit code 1. The process receives a SIGTERM.", "", 0, None, "was asked to end by SIGTERM"),
        ("The actor is dead because it was killed by `ray.kill`.", "", 0, 1 << 8,
         "ended by ray.kill, which somebody has called"),
        ("Task was killed due to the node running low on memory.", "", 0, KILL,
         "killed by Ray: the node ran low on memory"),
        ("The actor died because its node has died.", "", 0, KILL, "its node died"),
        ("left its serve loop", "", 0, None, "left its serve loop"),
    ],
)  # fmt: skip
def test_how_a_process_ended(message: str, log: str, kills: int, status: int, text: str) -> None:
    assert cause_of_death(message, log, kills, status) == text


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (int(signal.SIGSTOP), "its process is stopped (SIGSTOP)"),
        (int(signal.SIGTSTP), "its process is stopped (SIGTSTP)"),
        (0, "its process is held by a debugger"),
    ],
)
def test_what_holds_a_process(status: int, text: str) -> None:
    assert stopped_by(status) == text


NOBODY = "a rank of the group is lost"


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (StepOutcome(failures={1: Failure(1, None, "RuntimeError", "reset by peer", secondary=True)}), NOBODY),
        (StepOutcome(deaths={1: RAY_EOF}), NOBODY),
        (StepOutcome(pending=(1,)), NOBODY),
        (StepOutcome(seen={1: Sighting(True, None, 0.0)}), NOBODY),
        (StepOutcome(seen={1: Sighting(True, ABRT, 0.0)}), NOBODY),  # NCCL's watchdog ends peers so
        (StepOutcome(seen={1: Sighting(True, 1 << 8, 0.0)}), NOBODY),  # workers leave so when their raylet is gone
        (StepOutcome(seen={0: Sighting(True, KILL, 0.0)}), "rank 0 died: killed by SIGKILL"),
        (StepOutcome(seen={0: Sighting(True, KILL, 0.0)}, failures={1: Failure(1, None, "KeyError", "x")}),
         "rank 0 died: killed by SIGKILL"),
        (StepOutcome(seen={0: Sighting(True, KILL, 1.0), 1: Sighting(True, TERM, 0.0)}),
         "rank 0 died: killed by SIGKILL; rank 1 died: was asked to end by SIGTERM"),
        (StepOutcome(seen={1: Sighting(False, 19, 0.0)}), "rank 1 does not run: its process is stopped (SIGSTOP)"),
        (StepOutcome(failures={1: Failure(1, None, "KeyError", "lm_head")}), "rank 1 is lost: KeyError: lm_head"),
        (StepOutcome(failures={1: Failure(1, None, "AssertionError", "")}), "rank 1 is lost: AssertionError: "),
    ],
)  # fmt: skip
def test_what_is_said_at_once(outcome: StepOutcome, text: str) -> None:
    """A secondary failure is not named, though it comes first."""
    assert known_of(outcome) == text


def test_every_fate_is_in_the_table() -> None:
    fates: Sequence[Fate] = [observe(Seen(0, **case.seen)).fate for case in CASES]
    assert set(fates) == set(Fate)
