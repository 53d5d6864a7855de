"""Which spare processes there are to be, and which of them become which ranks: decided by plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raylaunch.group.member import Member

if TYPE_CHECKING:
    from raylaunch_actors.spec import RankSpec

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(eq=False)
class Spare(Member):
    """A rank's process that belongs to no group yet. Its ``spec`` is that of a rank beside which it was made, its
    ``boot`` the call that lasts as long as it waits.

    Attributes:
        node_id: where it is.
        visible: the ``CUDA_VISIBLE_DEVICES`` that it was made with; "" on a CPU.
        nbytes: that it has in memory, once it has imported everything; 0 before.
        calls: those that it has not answered, each with the attribute that its answer is for.
    """

    node_id: str = ""
    visible: str = ""
    nbytes: int = 0
    calls: dict[Any, str] = field(default_factory=dict)

    def fits(self, spec: RankSpec, visible: str) -> bool:
        """Whether it can become a rank of ``spec``: what libraries read when they are imported must be the same."""
        same = ("program", "device", "environment", "driver_files", "config")
        return self.visible == visible and all(getattr(self.spec, name) == getattr(spec, name) for name in same)


def missing(ranks: Mapping[int, str], spares: Iterable[str], per_rank: int) -> list[int]:
    """The ranks beside which spares are to be made, one for each time that a rank is named.

    Args:
        ranks: node of every rank of the group that serves.
        spares: node of every spare that there is.
        per_rank: spares that a node has for each of its ranks.
    """
    there, wanted = Counter(spares), list[int]()
    for node in dict.fromkeys(ranks.values()):
        wanted += ([rank for rank, its in ranks.items() if its == node] * per_rank)[there[node] :]
    return wanted


def chosen(
    specs: Sequence[RankSpec], nodes: Sequence[str], gpus: Mapping[str, str], spares: Iterable[Spare]
) -> dict[int, Spare]:
    """Which spare becomes which rank: one of its node that fits, those that have imported everything first.

    Args:
        specs: of all ranks, in order.
        nodes: where each of them goes.
        gpus: what ``CUDA_VISIBLE_DEVICES`` is to be, by node; none on CPUs.
    """
    left, found = sorted(spares, key=lambda spare: not spare.nbytes), dict[int, Spare]()
    for spec, node in zip(specs, nodes, strict=True):
        fitting = [one for one in left if one.node_id == node and one.fits(spec, gpus.get(node, ""))]
        if fitting:
            left.remove(fitting[0])
            found[spec.rank] = fitting[0]
    return found


def dealt(held: Mapping[int, tuple[str, ...]], nodes: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The GPUs of each node in the order of their ids, dealt to its ranks: spares were made to see them in that order.

    Args:
        held: ids that Ray gave for each rank.
        nodes: of all ranks.
    """
    given: dict[int, tuple[str, ...]] = {}
    for node in {nodes[rank] for rank in held}:
        ranks = sorted(rank for rank in held if nodes[rank] == node)
        given |= zip(ranks, sorted((held[rank] for rank in ranks), key=in_order), strict=True)
    return given


def in_order(gpus: Sequence[str]) -> list[tuple[int, str]]:
    """Sorts ids of GPUs: numbers as such."""
    return [(len(one), one) for one in gpus]


def pause_after(deaths: int) -> float:
    """Seconds until spares are made again after so many of them have died: their memory may be what was wanting."""
    return min(FIRST_PAUSE_S * 2.0 ** (deaths - 1), LONGEST_PAUSE_S)
