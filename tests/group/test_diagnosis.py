"""Who is to blame: tables of what was observed and what must be concluded."""

from __future__ import annotations

import pytest

from raylaunch.group.diagnosis import (
    Fate,
    Observation,
    cause_of_death,
    ended_by_watchdog,
    fault_code,
    inside_collective,
    may_help_to_retry,
    root_cause,
)
from raylaunch.protocol import Phase

DIED, FAILED, STOPPED, SILENT, HUNG, SECONDARY, WAITING, ARRIVED = Fate


def seen(*fates):
    """One observation a rank: a fate, or a fate and when it happened."""
    pairs = [one if isinstance(one, tuple) else (one, 0.0) for one in fates]
    return [Observation(rank, fate, when=when) for rank, (fate, when) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("fates", "blamed"),
    [
        ([], None),
        ([ARRIVED, ARRIVED], None),
        ([ARRIVED, HUNG], 1),
        ([WAITING, HUNG], 1),
        ([WAITING, ARRIVED], 0),
        ([WAITING, WAITING], 0),
        ([HUNG, SILENT], 1),
        ([SILENT, FAILED], 1),
        ([SILENT, STOPPED], 1),
        ([(STOPPED, 1.0), (FAILED, 9.0)], 1),
        ([FAILED, DIED], 1),
        ([SECONDARY, WAITING, ARRIVED], 0),
        ([SECONDARY, HUNG], 1),
        ([(FAILED, 2.0), (FAILED, 1.0)], 1),
        ([(FAILED, 1.0), (FAILED, 1.0)], 0),
        ([(SECONDARY, 1.0), (DIED, 0.0), (SECONDARY, 0.5)], 1),
    ],
)
def test_root_cause(fates, blamed):
    cause = root_cause(seen(*fates))
    assert (cause and cause.rank) == blamed


@pytest.mark.parametrize("fate", [HUNG, WAITING])
@pytest.mark.parametrize(("gates", "blamed"), [((5, 4), 1), ((4, 5), 0), ((4, 4), 0), ((5, 6, 4), 2)])
def test_of_ranks_that_do_the_same_the_one_behind_is_to_blame(fate, gates, blamed):
    """A rank that may pass gates alone stands in native code for want of a peer that passed fewer."""
    assert root_cause([Observation(rank, fate, gates=passed) for rank, passed in enumerate(gates)]).rank == blamed


@pytest.mark.parametrize("culprit", [DIED, FAILED, STOPPED, SILENT, HUNG])
def test_a_healthy_rank_is_not_blamed_because_it_spoke_first(culprit):
    """When a node dies its peers' collectives break seconds before Ray says so."""
    cause = root_cause(seen((SECONDARY, 10.0), (culprit, 13.0), (WAITING, 9.0), (ARRIVED, 8.0)))
    assert cause.rank == 1


@pytest.mark.parametrize(
    ("fate", "phase", "code"),
    [
        (DIED, Phase.CONNECT, "F06"),
        (DIED, Phase.CAPTURE, "F06"),
        (DIED, Phase.SERVE, "F07"),
        (FAILED, Phase.CAPTURE, "F05"),
        (FAILED, Phase.LOAD, None),
        (FAILED, Phase.SERVE, "F07"),
        (HUNG, Phase.WARMUP, "F08"),
        (SILENT, Phase.SERVE, "F08"),
        (STOPPED, Phase.SERVE, "F08"),
        (WAITING, Phase.CAPTURE, "F08"),
    ],
)
def test_fault_code(fate, phase, code):
    assert fault_code(Observation(0, fate), phase) == code
    assert fault_code(Observation(0, fate, code="F17"), phase) == "F17"


@pytest.mark.parametrize(
    ("fate", "code", "retry"),
    [
        (DIED, None, True),
        (HUNG, None, True),
        (STOPPED, None, True),
        (SECONDARY, None, True),
        (FAILED, None, False),
        (DIED, "F02", False),
        (DIED, "F15", True),
    ],
)
def test_may_help_to_retry(fate, code, retry):
    assert may_help_to_retry(Observation(0, fate, code=code)) is retry
    assert not may_help_to_retry(None)


RAY_SIGKILL = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RankActor\n\tip: 10.0.0.4\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called."
)


@pytest.mark.parametrize(
    ("message", "log", "kills", "cause"),
    [
        (RAY_SIGKILL, "", 0, "ended without a message (an exit, SIGKILL, or a crash outside Python)"),
        (RAY_SIGKILL, "", 1, "killed by the kernel: out of memory"),
        (
            RAY_SIGKILL,
            "x\nFatal Python error: Segmentation fault\n\nCurrent thread",
            0,
            "crashed: Segmentation fault",
        ),
        (RAY_SIGKILL, "Fatal Python error: Aborted", 1, "crashed: Aborted"),
        ("Worker exits with an exit code 3.", "", 0, "exited with code 3"),
        ("Worker exits with an exit code 3.", "", 2, "exited with code 3"),
        ("Worker exits with an exit code -9.", "", 2, "killed by the kernel: out of memory"),
        ("Worker exits with an exit code 137.", "", 0, "exited with code 137: SIGKILL"),
        ("The actor died because its node has died. Node Id: 4f2", "", 1, "its node died"),
        ("Worker exits with an exit code -6.", "", 0, "exited with code -6"),
        ("The actor died because its node has died. Node Id: 4f2", "", 0, "its node died"),
        ("Task was killed due to the node running low on memory.", "", 0, "killed by Ray: the node ran low on memory"),
        ("Worker exit type: NODE_OUT_OF_MEMORY", "", 0, "killed by Ray: the node ran low on memory"),
        ("killed due to memory pressure (OOM)", "", 0, "killed by Ray: the node ran low on memory"),
        ("", "", 0, "ended without a message (an exit, SIGKILL, or a crash outside Python)"),
    ],
)
def test_cause_of_death(message, log, kills, cause):
    assert cause_of_death(message, log, kills) == cause


def test_a_rank_that_the_watchdog_has_ended_is_no_cause():
    log = "[rank0]:[E] [PG ID 0] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)\nFatal ..."
    assert ended_by_watchdog(log)
    assert not ended_by_watchdog("Fatal Python error: Aborted")


@pytest.mark.parametrize(
    ("stack", "inside"),
    [
        ('File "/x/raylaunch_actors/communicator/shared_memory.py", line 9, in _wait', True),
        ('File "/y/torch/distributed/distributed_c10d.py", line 2, in barrier', True),
        ('File "/x/raylaunch_actors/graphs/capture.py", line 30, in capture', False),
        ('File "/y/torch/cuda/__init__.py", line 1108, in synchronize', True),
        ('File "/y/torch/cuda/streams.py", line 228, in synchronize', True),
        ('File "/y/torch/cuda/__init__.py", line 400, in _lazy_init', False),
        ("", False),
    ],
)
def test_inside_collective(stack, inside):
    assert inside_collective(stack) is inside
