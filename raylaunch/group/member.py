"""One rank of a group, as the driver knows it, and the end of its actor."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

if TYPE_CHECKING:
    from raylaunch_actors.rank import RankProcess
    from raylaunch_actors.spec import RankSpec


@dataclass(eq=False)
class Member:
    """One rank: its specification, actor, process and the call that lives as long as the rank does.

    Attributes:
        ended: Ray has seen the process go before it had said which one it is.
        adopted: the process has stood by before.
        holder: the actor that keeps the GPUs of a rank that was started without them; None if it has them itself.
        gpus: their ids.
        held: the call that lasts as long as the holder does: both end with their placement group.
    """

    spec: RankSpec
    actor: Any
    process: RankProcess | None = None
    boot: Any = None
    ended: bool = False
    adopted: bool = False
    holder: Any = None
    gpus: tuple[str, ...] = ()
    held: Any = None

    @property
    def rank(self) -> int:
        return self.spec.rank


def kill(actor: Any) -> None:
    """Ends an actor's process, as far as Ray does; None is none."""
    with contextlib.suppress(RayError):
        if actor is not None:
            ray.kill(actor, no_restart=True)
