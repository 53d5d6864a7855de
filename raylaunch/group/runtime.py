"""What an engine has of its cluster for as long as it lasts: whichever group runs, each launch begins with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from raylaunch.cluster.session import RaySession
from raylaunch.group.ranks import RankGroup
from raylaunch.group.standby import Standby
from raylaunch.group.weights import WeightKeepers
from raylaunch.report import LaunchReport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineRuntime:
    """Outlives every group: what one has left, or was lost by, the launch of the next one knows.

    Attributes:
        session: that this process is in, abandoned if its head is found to be gone.
        lost_nodes: ids of nodes not to use if others do. Changed in place: spares and keepers read the same set.
        standby: whose spare ranks a group may adopt.
        keepers: who keep the weights on its nodes.
    """

    session: RaySession
    lost_nodes: set[str]
    standby: Standby
    keepers: WeightKeepers

    @classmethod
    def in_session(cls, session: RaySession, *, spares: int = 0, keep_weights: bool = False) -> EngineRuntime:
        """One whose nodes are all there, with so many spares for each rank of a node."""
        lost = set[str]()
        return cls(session, lost, Standby(spares, session, lost), WeightKeepers(keep_weights, session, lost))

    def tend(self, group: RankGroup, report: LaunchReport) -> None:
        """Replaces spares and keepers that have ended, beside a ``group`` that serves. Waits for nothing."""
        report.standby = self.standby.tend(group)
        report.kept = self.keepers.tend()

    def end_processes(self, deadline_s: float) -> None:
        """Ends spares and keepers, after the ranks were ended. Never raises; may be called more than once."""
        for beside in (self.standby, self.keepers):
            try:
                beside.close(deadline_s)
            except (Exception, SystemExit):  # the second of Ray, where it is shut down meanwhile
                log.exception("processes beside the ranks could not be ended")
