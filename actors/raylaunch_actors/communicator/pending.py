"""The recorded all-reduces that wait for their registration."""

from __future__ import annotations

from typing import Generic, TypeVar

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.base import CallLabel, RecordedCall, RecordedInput

AnyCall = TypeVar("AnyCall", bound=RecordedCall)


class PendingCalls(Generic[AnyCall]):
    """Keeps calls, and so the memory that they read, alive until they are registered; detects reuse."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.calls: list[AnyCall] = []
        self.registered = 0
        self._inputs: list[RecordedInput] = []
        self._owners: list[tuple[int, int, str, CallLabel]] = []  # first byte, end, segment, who

    @property
    def inputs(self) -> tuple[RecordedInput, ...]:
        """What peers have to know, in the order of recording."""
        return tuple(self._inputs)

    def add(self, call: AnyCall, recorded: RecordedInput) -> None:
        """Takes a call.

        Raises RankFault F04 if its input overlaps one of another piece. The graphs of *one* piece share their
        memory on purpose: they never run at the same time, and within a graph an input is read by all before
        it is reused.
        """
        segment, start = recorded.handle
        end = start + recorded.nbytes
        for other_start, other_end, other_segment, other in self._owners:
            if segment == other_segment and start < other_end and other_start < end and other.piece != call.label.piece:
                raise RankFault(
                    "F04",
                    f"rank {self.rank}: {call.label} was recorded at bytes {start} to {end} of {segment}, "
                    f"where the input of {other} waits for its registration: captured memory was reused",
                )
        self.calls.append(call)
        self._inputs.append(recorded)
        owner = (start, end, segment, call.label)
        known = any(o[:3] == owner[:3] and o[3].piece == call.label.piece for o in self._owners)
        if not known:
            self._owners.append(owner)

    def mark_registered(self) -> int:
        """All calls are registered: forgets them. Returns how many there were."""
        count = len(self.calls)
        self.registered += count
        self.drop()
        return count

    def drop(self) -> None:
        """Forgets all calls."""
        self.calls, self._inputs, self._owners = [], [], []
