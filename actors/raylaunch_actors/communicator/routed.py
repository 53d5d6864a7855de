"""Several communicators as one: the size of a message says which of them reduces it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from raylaunch.protocol import Route
from raylaunch_actors.closing import close_all
from raylaunch_actors.communicator.base import AllReduce, CallLabel, RecordedCall, RegistersInputs
from raylaunch_actors.communicator.parts import CaptureContext


def kinds_in(routes: Sequence[Route]) -> tuple[str, ...]:
    """The kinds that routes lead to, each once, in order."""
    return tuple(dict.fromkeys(route.kind for route in routes))


def routed(routes: Sequence[Route], members: Mapping[str, AllReduce]) -> AllReduce:
    """The communicator of these routes: a member itself where all of them lead to it."""
    kinds = kinds_in(routes)
    return members[kinds[0]] if len(kinds) == 1 else RoutedAllReduce(routes, {kind: members[kind] for kind in kinds})


class RoutedAllReduce(CaptureContext):
    """Takes each message to the communicator that is chosen for its size.

    Args:
        routes: ascending; the last has no limit.
        members: by kind; at most one of them registers inputs, and the life cycle of recorded inputs is its own.

    Raises:
        ValueError: two members register inputs, or the last route has a limit.
    """

    def __init__(self, routes: Sequence[Route], members: Mapping[str, AllReduce]) -> None:
        registering = [member for member in members.values() if member.registration]
        if len(registering) > 1 or routes[-1].up_to is not None:
            raise ValueError("at most one member may register inputs, and the last route must have no limit")
        self.routes, self.members = tuple(routes), dict(members)
        self._keeper = registering[0] if registering else next(iter(members.values()))
        self.kind = "+".join(members)
        self.rank, self.world_size = self._keeper.rank, self._keeper.world_size
        self.max_bytes = self._keeper.max_bytes

    def member_for(self, nbytes: int) -> Any:
        """Who reduces a message of ``nbytes``."""
        kind = next(route.kind for route in self.routes if route.up_to is None or nbytes <= route.up_to)
        return self.members[kind]

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.member_for(x.numel() * x.element_size()).all_reduce(x)
        return out

    # ---- graphs

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Every member's."""
        with contextlib.ExitStack() as contexts:
            contexts.enter_context(super().capture())
            for member in self.members.values():
                contexts.enter_context(member.capture())
            yield

    def record(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> RecordedCall:
        call: RecordedCall = self.member_for(x.numel() * x.element_size()).record(x, out, label)
        return call

    @contextlib.contextmanager
    def recording(self, round: str, shape: int, piece: str) -> Iterator[Sequence[RecordedCall]]:
        """Those calls whose inputs have to be registered."""
        keeper: Any = self._keeper
        with keeper.recording(round, shape, piece) as calls:
            yield calls

    def input_memory(self, nbytes: int) -> torch.Tensor:
        return self._keeper.input_memory(nbytes)

    @property
    def registration(self) -> RegistersInputs | None:
        """That of the member that registers inputs."""
        return self._keeper.registration

    def inputs_for(self, nbytes: int) -> int:
        """No inputs where the message goes to a member that registers nothing."""
        count: int = self.member_for(nbytes).inputs_for(nbytes)
        return count

    # ---- ending

    def abort(self) -> None:
        for member in self.members.values():
            member.abort()

    def close(self) -> None:
        close_all(*self.members.values())
