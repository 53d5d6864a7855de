"""What the ranks of a group said, or were seen to do, in one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raylaunch.protocol import Arrival, Failure

if TYPE_CHECKING:
    from raylaunch_actors.process_watch import Sighting


@dataclass
class StepOutcome:
    """What a step brought: every rank is in exactly one of the first four.

    Attributes:
        arrivals: ranks that stand at a gate.
        failures: ranks that reported an error.
        deaths: ranks whose actor is gone, with Ray's message.
        pending: ranks that said nothing by the deadline, or by the end of the grace after the first failure.
        seen: ranks whose processes were seen to die, or to be stopped, whatever the ranks themselves say.
        waited_s: seconds without a sign of life or of work after which the pending ranks were given up, where that is
            known.
    """

    arrivals: dict[int, Arrival] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    deaths: dict[int, str] = field(default_factory=dict)
    pending: tuple[int, ...] = ()
    seen: dict[int, Sighting] = field(default_factory=dict)
    waited_s: float = 0.0

    @property
    def complete(self) -> bool:
        return not (self.failures or self.deaths or self.pending or self.seen)
