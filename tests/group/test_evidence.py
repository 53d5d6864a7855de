"""What is concluded of a rank that has died, from its log and its node."""

from __future__ import annotations

from collections.abc import Sequence
from signal import SIGABRT, SIGKILL, SIGTERM
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from raylaunch_actors.process_watch import Sighting

from raylaunch.errors import LaunchError
from raylaunch.group import evidence
from raylaunch.group.diagnosis import Fate, Observation, Seen, observe, root_cause, sentence
from raylaunch.group.outcome import StepOutcome
from raylaunch.protocol import Failure, Phase

WATCHDOG = "[rank0]:[E] [PG ID 0] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"
STACKS = [f'  File "/x/threading.py", line {line} in wait' for line in range(100)]


class Node:
    """Answers for the agent of a rank's node."""

    def __init__(self, log: list[str], kills: int = 0) -> None:
        self.members = [SimpleNamespace(process=None)]
        self._log, self._kills = log, kills

    def ask_agent(self, rank: int, method: str, *arguments: Any, default: Any = None) -> Any:
        return {"log_tail": "\n".join(self._log[-arguments[-1] :]) if arguments else "", **self._counts}[method]

    @property
    def _counts(self) -> dict[str, int]:
        return {"out_of_memory_kills": self._kills}


@pytest.mark.parametrize("process", [None, Sighting(True, None, 1.0), Sighting(True, SIGABRT, 1.0)])
@pytest.mark.parametrize(
    ("log", "kills", "fate", "detail"),
    [
        ([WATCHDOG, "Fatal Python error: Aborted", *STACKS], 0, Fate.SECONDARY, "NCCL's watchdog ended it"),
        (["Fatal Python error: Segmentation fault", *STACKS], 1, Fate.DIED, "crashed: Segmentation fault"),
    ],
)
def test_a_death(log: list[str], kills: int, fate: Fate, detail: str, process: Sighting | None) -> None:
    tails: dict[int, str] = {}
    seen = Seen(0, death="killed", process=process)
    found = observe(evidence._with_what_its_agent_says(Node(log, kills), seen, {}, tails))  # type: ignore[arg-type]
    assert found.fate is fate
    assert found.detail.startswith(detail)
    assert len(tails[0].splitlines()) <= 20


@pytest.mark.parametrize("process", [None, Sighting(True, SIGKILL, 1.0)])
def test_a_kill_for_want_of_memory(process: Sighting | None) -> None:
    seen = evidence._with_what_its_agent_says(Node([], 1), Seen(0, death="killed", process=process), {}, {})  # type: ignore[arg-type]
    assert observe(seen).detail.startswith("killed by the kernel: out of memory")


def test_the_rank_that_hangs_is_to_blame_and_not_the_one_that_the_watchdog_has_ended() -> None:
    observations = [Observation(0, Fate.SECONDARY), Observation(1, Fate.HUNG, "still busy: serving")]
    cause = root_cause(observations)
    assert sentence(observations, cause, 61.2) == "rank 1 made no progress for 61 s: still busy: serving"
    assert sentence(observations, cause, 0.0) == "rank 1 made no progress: still busy: serving"


def test_a_rank_that_has_not_said_which_process_it_is_is_not_taken_for_dead() -> None:
    seen = evidence._with_what_its_agent_says(Node([]), Seen(0), {}, {})  # type: ignore[arg-type]
    assert observe(seen).fate is Fate.SILENT


class Answering:
    """A group of two, of whose ranks those that have not come are busy."""

    def __init__(self) -> None:
        self.members = [SimpleNamespace(rank=rank, process=None, spec=SimpleNamespace(core_file="")) for rank in (0, 1)]

    seen: ClassVar[dict[int, Sighting]] = {}
    said: ClassVar[dict[int, str]] = {}

    def ended(self, timeout_s: float) -> StepOutcome:
        return StepOutcome(deaths=dict(self.said))

    def sightings(self) -> dict[int, Sighting]:
        return self.seen

    def ask_agent(self, rank: int, method: str, *arguments: Any, default: Any = None) -> Any:
        return default

    def states(self, ranks: Sequence[int], timeout_s: float) -> dict[int, Any]:
        return {rank: SimpleNamespace(activity="fetching", step=None, gates=1, waiting=False) for rank in ranks}

    def ask(self, method: str, ranks: Sequence[int], timeout_s: float) -> dict[int, str]:
        return dict.fromkeys(ranks, "")

    def find_lost_nodes(self, ranks: Sequence[int]) -> set[int]:
        return set()


def explained(*failures: Failure, group: Answering | None = None) -> LaunchError:
    outcome = StepOutcome(failures={one.rank: one for one in failures})
    outcome.pending = tuple(rank for rank in (0, 1) if rank not in outcome.failures)
    return evidence.explain_failure(group or Answering(), outcome, None, Phase.LOAD, 1.0)  # type: ignore[arg-type]


def test_a_rank_that_says_why_is_to_blame_and_not_one_that_is_busy() -> None:
    error = explained(
        Failure(1, None, "RankFault", "cannot be fetched: Connection reset by peer", traceback="line of rank 1")
    )
    assert (error.rank, error.code, error.ranks[1].traceback) == (1, None, "line of rank 1")


def test_what_a_secondary_failure_says_is_dropped_only_where_another_rank_says_why() -> None:
    secondary = Failure(0, None, "RuntimeError", "reset by peer", secondary=True, traceback="line of rank 0")
    assert explained(secondary).ranks[0].traceback == "line of rank 0"
    error = explained(secondary, Failure(1, None, "KeyError", "lm_head", traceback="line of rank 1"))
    assert (error.rank, error.ranks[0].traceback, error.ranks[1].traceback) == (1, "", "line of rank 1")


@pytest.mark.parametrize("message", ["", " ", "\n"])
def test_an_error_without_words_is_a_cause_all_the_same(message: str) -> None:
    assert explained(Failure(1, None, "AssertionError", message)).rank == 1


class Powerless(Answering):
    """Rank 0 does not answer, and neither does its node."""

    asked: ClassVar[list[float]] = []

    def states(self, ranks: Sequence[int], timeout_s: float) -> dict[int, Any]:
        self.asked.extend(timeout_s for rank in ranks if rank == 0)
        return super().states([rank for rank in ranks if rank], timeout_s)

    def find_lost_nodes(self, ranks: Sequence[int]) -> set[int]:
        return {0} & set(ranks)


def test_a_rank_is_given_no_more_time_whose_node_is_lost() -> None:
    error = explained(Failure(1, None, "RuntimeError", "closed by peer", secondary=True), group=Powerless())
    assert (error.rank, error.code) == (0, "F15")
    assert Powerless.asked == [evidence.PROBE_S]


class Dying(Answering):
    """Rank 0 is being killed, and answers no more."""

    seen: ClassVar[dict[int, Sighting]] = {0: Sighting(True, SIGKILL, 5.0)}

    def states(self, ranks: Sequence[int], timeout_s: float) -> dict[int, Any]:
        assert 0 not in ranks, "a dying rank is not waited for"
        return super().states(ranks, timeout_s)


def test_f27_a_dying_rank_is_to_blame_and_not_the_one_whose_error_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "LAST_WORDS_S", 0.05)
    error = explained(Failure(1, None, "RuntimeError", "reset by peer", secondary=True), group=Dying())
    assert (error.rank, error.summary) == (0, "rank 0 died: killed by SIGKILL")


@pytest.mark.parametrize(
    ("status", "said", "summary"),
    [
        (SIGKILL, "the node running low on memory", "rank 0 died: killed by Ray: the node ran low on memory"),
        (SIGTERM, "INTENDED_SYSTEM_EXIT Worker exit detail: Its placement group was removed. Id: 6",
         "rank 0 died: ended with its placement group, which somebody has removed"),
        (1 << 8, "it was killed by `ray.kill`.", "rank 0 died: ended by ray.kill, which somebody has called"),
        (SIGTERM, "End of file", "rank 0 died: was asked to end by SIGTERM"),
        (3 << 8, None, "rank 0 died: exited with code 3"),
    ],
)  # fmt: skip
def test_ray_is_asked_whether_it_has_ended_a_rank_itself(status: int, said: str | None, summary: str) -> None:
    group = Dying()
    group.seen = {0: Sighting(True, int(status), 5.0)}  # type: ignore[misc]
    group.said = {} if said is None else {0: said}  # type: ignore[misc]
    assert explained(Failure(1, None, "RuntimeError", "reset by peer", secondary=True), group=group).summary == summary
