"""An engine that only says things of itself: for what an operator sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raylaunch.config import LaunchConfig
from raylaunch.engine.health import Condition, Health, RankHealth
from raylaunch.errors import LaunchError, RankEvidence
from raylaunch.report import Due, LaunchReport
from tests.protocol.builders import PLAN
from tests.test_report import report_of

SETTINGS = ("capture.prefill_tokens=[8,32]", "capture.decode_batch_sizes=[2,4]", "recovery.while_rebuilding=fail")


class FakeEngine:
    """Has what the metrics and the status page read of an engine, all of it set by the test."""

    def __init__(self) -> None:
        self.config = LaunchConfig.default(SETTINGS)
        self.model_name = "tiny-adder"
        self.kv_tokens = 8192
        self.sampling_defaults: dict[str, Any] = {}
        self.report: LaunchReport = report_of(PLAN)
        self.restarts = self.continued = 0
        self.tracer = None
        self.failures: tuple[tuple[float, LaunchError], ...] = ()
        self.last_error: LaunchError | None = None
        self.asked = 0
        self.now = Health(True, Condition.READY, "", (), restarts_left=1, requests=0)
        self.ranks = tuple(
            RankHealth(
                rank, True, "serving", {"steps": 70 + rank, "tokens": 12, "running": 2, "waiting": 1, "kv_used": 64}
            )
            for rank in range(2)
        )

    def health(self, ask_ranks: bool = True) -> Health:
        self.asked += ask_ranks
        return replace(self.now, ranks=self.ranks if ask_ranks else ())

    def fail(self, error: LaunchError, when: float = 1_700_000_100.0) -> None:
        """The group is lost and is not rebuilt."""
        self.now = replace(self.now, ready=False, condition=Condition.FAILED, reason=error.headline())
        self.ranks, self.last_error = (), error
        self.failures = (*self.failures, (when, error))

    def rebuild(self, steps: int) -> None:
        """The group is being launched again and has passed ``steps`` gates."""
        self.now = replace(self.now, ready=False, condition=Condition.REBUILDING, reason="rebuilding")
        self.ranks, self.restarts = (), self.restarts + 1
        self.report.steps = self.report.steps[:steps]
        self.report.ready, self.report.attempts = 0.0, 2
        every = list(PLAN.steps())
        self.report.due = Due(every[steps].phase, str(every[steps]), self.report.steps[-1].released, steps, len(every))


def lost(text: str = "rank 1 died: killed by SIGKILL") -> LaunchError:
    """A group that lost rank 1 while it served."""
    ranks = [
        RankEvidence(0, "10.0.0.0", 10, "gpu 0", "CollectiveAborted: rank 1 left"),
        RankEvidence(1, "10.0.0.1", 11, "gpu 0", "died", log_tail="<b>last words</b>", log_file="/tmp/rank1.err"),
    ]
    error = LaunchError(text, "F07", "SERVE", rank=1, ranks=ranks)
    error.teardown = "torn down in 0.1 s; 2 actors, 1 placement group released"
    return error
