"""What is concluded of a rank that has died, from its log and its node."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from raylaunch import evidence
from raylaunch.diagnosis import Fate, Observation, root_cause
from raylaunch.errors import LaunchError
from raylaunch.group import StepOutcome
from raylaunch.protocol import Failure, Phase

WATCHDOG = "[rank0]:[E] [PG ID 0] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"
STACKS = [f'  File "/x/threading.py", line {line} in wait' for line in range(100)]


class Node:
    """Answers for the agent of a dead rank's node."""

    def __init__(self, log: list[str], kills: int = 0) -> None:
        self.members = [SimpleNamespace(process=None)]
        self._log, self._kills = log, kills

    def ask_agent(self, rank: int, method: str, *arguments: Any, default: Any = None) -> Any:
        return {"log_tail": "\n".join(self._log[-arguments[-1] :]) if arguments else "", **self._counts}[method]

    @property
    def _counts(self) -> dict[str, int]:
        return {"out_of_memory_kills": self._kills}


@pytest.mark.parametrize(
    ("log", "kills", "fate", "detail"),
    [
        ([WATCHDOG, "Fatal Python error: Aborted", *STACKS], 0, Fate.VICTIM, "NCCL's watchdog ended it"),
        (["Fatal Python error: Segmentation fault", *STACKS], 1, Fate.DIED, "crashed: Segmentation fault"),
        ([], 1, Fate.DIED, "killed by the kernel: out of memory"),
    ],
)
def test_a_death(log: list[str], kills: int, fate: Fate, detail: str) -> None:
    tails: dict[int, str] = {}
    outcome = StepOutcome(deaths={0: "killed"})
    found = evidence._observe_reported(Node(log, kills), 0, outcome, tails)  # type: ignore[arg-type]
    assert found.fate is fate
    assert found.detail.startswith(detail)
    assert len(tails[0].splitlines()) <= 20


def test_the_rank_that_hangs_is_to_blame_and_not_the_one_that_the_watchdog_has_ended() -> None:
    cause = root_cause([Observation(0, Fate.VICTIM), Observation(1, Fate.HUNG, "still busy: serving")])
    assert cause is not None
    assert evidence._summary(cause, 61.2) == "rank 1 made no progress for 61 s: still busy: serving"
    assert evidence._summary(cause, 0.0) == "rank 1 made no progress: still busy: serving"


def test_a_rank_that_has_not_said_which_process_it_is_is_not_taken_for_dead() -> None:
    assert evidence._observe_silent(Node([]), 0, {}, {}).fate is Fate.SILENT  # type: ignore[arg-type]


class Answering:
    """A group of two, of whose ranks those that have not come are busy."""

    def __init__(self) -> None:
        self.members = [SimpleNamespace(rank=rank, process=None, spec=SimpleNamespace(core_file="")) for rank in (0, 1)]

    def ended(self, timeout_s: float) -> StepOutcome:
        return StepOutcome()

    def states(self, ranks: Sequence[int], timeout_s: float) -> dict[int, Any]:
        return {rank: SimpleNamespace(activity="fetching", step=None, gates=1) for rank in ranks}

    def ask(self, method: str, ranks: Sequence[int], timeout_s: float) -> dict[int, str]:
        return dict.fromkeys(ranks, "")

    def find_lost_nodes(self, ranks: Sequence[int]) -> set[int]:
        return set()


def explained(*failures: Failure) -> LaunchError:
    outcome = StepOutcome(failures={one.rank: one for one in failures})
    outcome.pending = tuple(rank for rank in (0, 1) if rank not in outcome.failures)
    return evidence.explain_failure(Answering(), outcome, None, Phase.LOAD, 1.0)  # type: ignore[arg-type]


def test_a_rank_that_says_why_is_to_blame_and_not_one_that_is_busy() -> None:
    error = explained(
        Failure(1, None, "RankFault", "cannot be fetched: Connection reset by peer", traceback="line of rank 1")
    )
    assert (error.rank, error.code, error.ranks[1].traceback) == (1, None, "line of rank 1")


def test_what_a_victim_says_is_dropped_only_where_another_rank_says_why() -> None:
    victim = Failure(0, None, "RuntimeError", "reset by peer", victim=True, traceback="line of rank 0")
    assert explained(victim).ranks[0].traceback == "line of rank 0"
    error = explained(victim, Failure(1, None, "KeyError", "lm_head", traceback="line of rank 1"))
    assert (error.rank, error.ranks[0].traceback, error.ranks[1].traceback) == (1, "", "line of rank 1")


@pytest.mark.parametrize("message", ["", " ", "\n"])
def test_an_error_without_words_is_a_cause_all_the_same(message: str) -> None:
    assert explained(Failure(1, None, "AssertionError", message)).rank == 1
