"""What is concluded of a rank that has died, from its log and its node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raylaunch import evidence
from raylaunch.diagnosis import Fate, Observation, root_cause
from raylaunch.group import StepOutcome

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
