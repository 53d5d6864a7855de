"""What the ranks of a group said, or were seen to do, in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

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


def sort_in(outcome: StepOutcome, calls: dict[Any, int], done: Sequence[Any]) -> None:
    """Adds what calls of ranks have brought.

    Args:
        calls: the rank of each call.
        done: those that have ended.
    """
    for ref in done:
        rank = calls[ref]
        try:
            report = ray.get(ref)
        except RayError as error:
            outcome.deaths[rank] = str(error)
        else:
            if isinstance(report, Failure):
                outcome.failures[rank] = report
            else:
                outcome.arrivals[rank] = report
