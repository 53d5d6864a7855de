"""Which all-reduce a group uses, decided alike on every rank from the same facts (F16, F18).

First what is possible here (`cpu_options`, `gpu_options`), then what to take of it (`choose`); where that is measured,
`fastest` decides. All are plain functions of what every rank has said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from raylaunch.config import AllReduceKind
from raylaunch.errors import RankFault
from raylaunch.protocol import MeasuredSize, Route
from raylaunch_actors.communicator import topology
from raylaunch_actors.communicator.sgl_kernel import WORLD_SIZES, GpuOffer
from raylaunch_actors.communicator.shared_memory import MACHINES, ShareOffer

AnyOffer = TypeVar("AnyOffer", ShareOffer, GpuOffer)
KIB = 1024
SYMMETRIC = ("symmetric-one-shot", "symmetric-two-shot")
# Largest message for which one shot of symmetric memory is taken: from twice as much on, two shots were faster wherever
# they were measured (docs/measurements), with two ranks and with four. With more, one shot has each read more still.
ONE_SHOT_BYTES_OF_TWO = 256 * KIB
ONE_SHOT_BYTES_OF_MORE = 128 * KIB


@dataclass(frozen=True)
class Option:
    """A kind of all-reduce, and whether it is possible here.

    Attributes:
        kind: see :class:`raylaunch.protocol.CommunicatorFacts`.
        note: what makes it possible.
        problem: why it is not, or "".
        code: fault of that problem.
    """

    kind: str
    note: str = ""
    problem: str = ""
    code: str = "F18"


@dataclass(frozen=True)
class Choice:
    """What to use for which message, and why, in a phrase for the report. Every kind in ``kinds`` is to be opened.

    ``routes`` is empty while it has still to be measured.
    """

    kinds: tuple[str, ...]
    routes: tuple[Route, ...]
    reason: str


# ---- what is possible --------------------------------------------------------------------------------------------


def cpu_options(offers: Sequence[ShareOffer], nodes: Sequence[str]) -> tuple[Option, ...]:
    """Shared memory, then gloo, or the one rank's. ``nodes[r]`` is rank r's; the order of the offers does not matter.

    Raises:
        ValueError: the offers are not one per rank.
    """
    if len(nodes) == 1:
        return (Option("single", "one rank"),)
    problem, code = _spread(nodes), "F18"
    if not problem:
        offers = _one_each(offers, len(nodes))
        problem, code = _order_of_writes(offers) or _cannot_share_memory(offers), "F16"
    return Option("shared-memory", f"{len(nodes)} ranks on one host", problem, code), Option("gloo")


def _order_of_writes(offers: Sequence[ShareOffer]) -> str:
    other = next((offer for offer in offers if offer.machine not in MACHINES), None)
    return f"rank {other.rank} runs on {other.machine}; the order of memory writes needs x86-64" if other else ""


def _cannot_share_memory(offers: Sequence[AnyOffer]) -> str:
    first = offers[0]
    for offer in offers:
        if not offer.shares:
            return f"rank {offer.rank} cannot share memory: {offer.reason}"
        if offer.host != first.host:
            return f"ranks 0 and {offer.rank} cannot share memory: {first.host} / {offer.host}"
        if offer.max_bytes != first.max_bytes:
            return f"ranks 0 and {offer.rank} stage {first.max_bytes} and {offer.max_bytes} B"
    return ""


def gpu_options(offers: Sequence[GpuOffer], nodes: Sequence[str]) -> tuple[Option, ...]:
    """``sgl_kernel``, PyTorch's symmetric memory in two variants, then NCCL, or the one rank's; as `cpu_options`."""
    if len(nodes) == 1:
        return (Option("single", "one rank"),)
    offers = _one_each(offers, len(nodes))
    spread = _spread(nodes)
    problem, code = (spread, "F18") if spread else _kernel_impossible(offers)
    places = [offer.place for offer in offers]
    shared = topology.sharing([place.uuid for place in places])
    symmetric = (
        spread or shared or topology.unreachable(places) or next((o.symmetric for o in offers if o.symmetric), "")
    )
    doubled = topology.sharing([(offer.nccl_host, offer.place.uuid) for offer in offers])
    note = f"{len(nodes)} GPUs of one host" if not shared else f"{len(nodes)} ranks on GPUs of one host; {shared}"
    links = "" if topology.unlinked(places) or shared else ", NVLink between all"
    return (
        Option("sgl_kernel", note + links, problem, code),
        *(Option(kind, note + links, symmetric) for kind in SYMMETRIC),
        Option("nccl", problem=f"{doubled}, which NCCL does not take" if doubled else ""),
    )


def _kernel_impossible(offers: Sequence[GpuOffer]) -> tuple[str, str]:
    world = len(offers)
    if world not in WORLD_SIZES:
        return f"the kernel works with {', '.join(map(str, WORLD_SIZES))} ranks, not with {world}", "F18"
    if problem := _cannot_share_memory(offers):
        return problem, "F16"
    places = [offer.place for offer in offers]
    if missing := topology.unreachable(places):
        return missing, "F18"
    if world > 2 and (missing := topology.unlinked(places)):
        return f"with more than two GPUs the kernel needs NVLink between all: {missing}", "F18"
    return "", "F18"


def _spread(nodes: Sequence[str]) -> str:
    return f"the group spans {len(set(nodes))} nodes" if len(set(nodes)) > 1 else ""


def _one_each(offers: Sequence[AnyOffer], world_size: int) -> list[AnyOffer]:
    ordered = sorted(offers, key=lambda offer: offer.rank)
    if [offer.rank for offer in ordered] != list(range(world_size)):
        raise ValueError(f"offers of ranks {[offer.rank for offer in ordered]}, wanted one of each of {world_size}")
    return ordered


# ---- what to take of it ------------------------------------------------------------------------------------------


def choose(
    wanted: AllReduceKind, options: Sequence[Option], world_size: int, largest: int = 0, max_bytes: int = 0
) -> Choice:
    """What to use. A kind that is asked for by name is taken or refused; ``custom`` and ``auto`` fall back.

    Args:
        wanted: what the configuration asks for.
        options: of :func:`cpu_options` or :func:`gpu_options`.
        world_size: ranks in the group.
        largest: bytes of the largest message that the launch has planned, 0 where that is not known.
        max_bytes: largest message that the kernel takes at once.

    Raises:
        RankFault: nothing is possible, or what is asked for by name is not, or does not exist on this device.
    """
    custom, library = options[0], options[-1]
    possible = [option for option in options if not option.problem]
    if custom.kind == "single":
        return _only(custom, custom.note)
    if wanted == "library":
        if library.problem:
            raise RankFault(library.code, f"communicator.kind=library: {library.kind}: {library.problem}")
        return _only(library, "asked for by communicator.kind")
    if wanted == "symmetric_memory":
        return _symmetric(options, world_size, largest)
    if not possible:
        problems = "; ".join(f"{option.kind}: {option.problem}" for option in (custom, library))
        raise RankFault(custom.code, f"no all-reduce is possible between these ranks: {problems}")
    if wanted == "auto":
        return Choice(tuple(option.kind for option in possible), (), "the fastest of what is possible here")
    if wanted == "sgl_kernel" and custom.problem:
        raise impossible(wanted, custom.problem, custom.code)
    if custom.problem:
        if library.problem:
            raise RankFault(custom.code, f"{custom.problem}; and {library.kind} is impossible: {library.problem}")
        return _only(library, custom.problem)
    return _custom(custom, library, largest, max_bytes)


def _only(option: Option, reason: str) -> Choice:
    return Choice((option.kind,), (Route(None, option.kind),), reason)


def _custom(custom: Option, library: Option, largest: int, max_bytes: int) -> Choice:
    """Graphs on a GPU would hold one input for each part of a large message, so these go to the library."""
    if custom.kind != "sgl_kernel" or largest <= max_bytes:
        return _only(custom, custom.note)
    if library.problem:
        return _only(
            custom, f"{custom.note}; larger messages in parts, as {library.kind} is impossible: {library.problem}"
        )
    routes = (Route(max_bytes, custom.kind), Route(None, library.kind))
    return Choice((custom.kind, library.kind), routes, custom.note)


def impossible(wanted: AllReduceKind, problem: str, code: str = "F18") -> RankFault:
    """The fault of an all-reduce that is asked for by name and cannot be had here, with the setting that can.

    Args:
        problem: why it cannot be had.
    """
    text = f"communicator.kind={wanted} is impossible here: {problem}; communicator.kind=custom would take another"
    return RankFault(code, text)


def _symmetric(options: Sequence[Option], world_size: int, largest: int) -> Choice:
    found = [option for option in options if option.kind in SYMMETRIC]
    if found[0].problem:
        raise impossible("symmetric_memory", found[0].problem, found[0].code)
    one_shot, two_shot = found
    limit = ONE_SHOT_BYTES_OF_TWO if world_size == 2 else ONE_SHOT_BYTES_OF_MORE
    if 0 < largest <= limit:
        return _only(one_shot, one_shot.note)
    routes = (Route(limit, one_shot.kind), Route(None, two_shot.kind))
    return Choice((one_shot.kind, two_shot.kind), routes, one_shot.note)


# ---- what was measured -------------------------------------------------------------------------------------------

Times = Mapping[str, Mapping[int, float]]
"""Microseconds by kind and message size."""


def fastest(of_ranks: Sequence[Times], kinds: Sequence[str]) -> tuple[tuple[Route, ...], tuple[MeasuredSize, ...]]:
    """For every size the kind whose slowest rank is the fastest, the earlier of ``kinds`` if equal; same on all ranks.

    A message between two measured sizes goes as the larger one does, one beyond the largest as the largest does.

    Raises:
        ValueError: nothing was measured.
    """
    sizes = sorted(of_ranks[0][kinds[0]]) if of_ranks and kinds else []
    if not sizes:
        raise ValueError("nothing was measured")
    measured = []
    for size in sizes:
        slowest = {kind: max(times[kind][size] for times in of_ranks) for kind in kinds}
        measured.append(MeasuredSize(size, slowest, min(kinds, key=slowest.__getitem__)))
    routes = [Route(here.nbytes, here.chosen) for here, after in pairwise(measured) if here.chosen != after.chosen]
    return (*routes, Route(None, measured[-1].chosen)), tuple(measured)


def spread_out(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """At most ``most`` of the sizes, ascending, the smallest and the largest among them."""
    ordered = sorted(set(sizes))
    if len(ordered) <= most:
        return tuple(ordered)
    return tuple(ordered[round(index * (len(ordered) - 1) / (most - 1))] for index in range(most))
