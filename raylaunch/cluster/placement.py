"""Where ranks go: bundles, placement groups, the map from rank to node, and what is missing when it cannot be."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from raylaunch import ray_private
from raylaunch.background import Background
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError, shut_down
from raylaunch.resolved import BundleRequest, ResolvedLaunch, gpus_per_rank

ROUNDING = 1e-4  # Ray counts in this unit
STOP_LOOK_S = 1  # whole seconds: Ray cuts the rest off
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """A node of the cluster: what it has and what of it is free."""

    node_id: str
    address: str
    total: Resources
    free: Resources


@dataclass(frozen=True)
class Seat:
    """A rank's place: its bundle, its node and its index among the group's ranks there."""

    rank: int
    bundle: int
    node_id: str
    address: str
    local_rank: int


@dataclass
class Placement:
    """A placement group that is ready, and who sits where. ``owned`` says whether we must remove it."""

    group: PlacementGroup
    seats: tuple[Seat, ...]
    owned: bool

    @property
    def nodes(self) -> int:
        return len({seat.node_id for seat in self.seats})


def choose_device(config: LaunchConfig, nodes: Sequence[Node]) -> str:
    """The device asked for, or that of the resources asked for; else ``cuda`` if there is a GPU for every rank."""
    if config.engine.device != "auto":
        return config.engine.device
    if wanted := config.placement.resources_per_rank:
        return "cuda" if "GPU" in wanted else "cpu"
    gpus = sum(node.total.get("GPU", 0) for node in nodes)
    return "cuda" if gpus >= config.parallel.tensor_parallel_size else "cpu"


def fits(node: Resources, bundle: Resources) -> bool:
    return all(node.get(name, 0) >= amount - ROUNDING for name, amount in bundle.items())  # sums of 0.05 are more


def impossible(request: BundleRequest, nodes: Sequence[Node]) -> str:
    """Why this cluster can never hold the request, even when idle; "" if it can, or if only Ray can tell."""
    for bundle in request.bundles:
        if not any(fits(node.total, bundle) for node in nodes):
            return f"no node has {show(bundle)}"
    if request.strategy == "STRICT_PACK":
        whole: Counter[str] = Counter()
        for bundle in request.bundles:
            whole.update(bundle)
        if not any(fits(node.total, whole) for node in nodes):
            return f"no single node has {show(whole)}"
    if request.strategy == "STRICT_SPREAD":
        able = sum(any(fits(node.total, bundle) for bundle in request.bundles) for node in nodes)
        if able < len(request.bundles):
            return f"{len(request.bundles)} nodes are asked for and {able} can hold a bundle"
    return ""


def usable(request: BundleRequest, nodes: Sequence[Node], avoid: Collection[str]) -> list[Node]:
    """``nodes`` without those to avoid, unless the others could never hold the request: better one that may be lost."""
    others = [node for node in nodes if node.node_id not in avoid]
    return list(nodes) if impossible(request, others) else others


def show(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"


def unsatisfied(request: BundleRequest, nodes: Sequence[Node], others: Sequence[str], why: str) -> str:
    """What was asked beside what each node has: the text of F13."""
    sizes = Counter(show(bundle) for bundle in request.bundles)
    asked = " + ".join(f"{count} x [{bundle}]" for bundle, count in sizes.items())
    names = {name for bundle in request.bundles for name in bundle}
    lines = [f"{why}; asked {request.strategy} {asked}", "  the cluster has"]
    for node in nodes:
        amounts = ", ".join(
            f"{name} {node.free.get(name, 0):g} free of {node.total.get(name, 0):g}" for name in sorted(names)
        )
        lines.append(f"    node {node.address} ({node.node_id[:8]}): {amounts}")
    if others:
        lines.append("  held by placement groups: " + "; ".join(others))
    return "\n".join(lines)


def seats(bundle_nodes: Sequence[tuple[int, str, str]], world: int) -> tuple[Seat, ...]:
    """Seats ranks so that those of one node are contiguous.

    Args:
        bundle_nodes: (bundle index, node id, node address) of every bundle; their order is Ray's and not stable.
        world: number of ranks: an equal share for each bundle, or one each for the first of more bundles.
    """
    bundles = Counter(node_id for _, node_id, _ in bundle_nodes)
    # Where there are more bundles than ranks, the fullest node first: the group then spans no more than it must.
    ordered = sorted(bundle_nodes, key=lambda item: (-bundles[item[1]], item[1], item[0]))
    per_bundle = max(1, world // len(ordered))
    taken: Counter[str] = Counter()
    result = []
    for rank in range(world):
        bundle, node_id, address = ordered[rank // per_bundle]
        result.append(Seat(rank, bundle, node_id, address, taken[node_id]))
        taken[node_id] += 1
    return tuple(result)


def gpus_seen(ranks: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, int] | None]:
    """What each rank sees: ``CUDA_VISIBLE_DEVICES``, the GPUs of its group on its node, and its own one's index there.

    Args:
        ranks: (node id, Ray's ids of its GPUs) of each rank; no ids on a CPU, which gives None.
    """
    by_node: dict[str, list[str]] = {}
    for node, gpus in ranks:
        known = by_node.setdefault(node, [])
        known += [gpu for gpu in gpus if gpu not in known]
    return [(",".join(by_node[node]), by_node[node].index(gpus[0])) if gpus else None for node, gpus in ranks]


# ---- with Ray ---------------------------------------------------------------------------------------------------


def cluster_nodes() -> list[Node]:
    """The nodes that are alive."""
    free = ray_private.free_resources()
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


def other_groups() -> list[str]:
    """Placement groups that hold or want resources, in words."""
    table: dict[str, dict[str, Any]] = placement_group_table()
    return [
        f"{entry['name'] or entry['placement_group_id'][:8]} ({entry['state'].lower()}: "
        + " + ".join(show(bundle) for bundle in entry["bundles"].values())
        + ")"
        for entry in table.values()
        if entry["state"] != "REMOVED"
    ]


def place(
    resolved: ResolvedLaunch,
    name: str,
    avoid: Collection[str] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Placement:
    """A placement group that is ready, ours or the given one. Raises :class:`LaunchError` F13 at the deadline.

    Nothing stays behind on failure: a pending group that is not removed would take its resources later.

    Args:
        avoid: ids of nodes not to use if others do: lost ones, which Ray may take for alive for a minute.
        stopped: asked once a second whether the placement is wanted no more, which is a :class:`LaunchError`.
    """
    request, deadline = resolved.request, resolved.config.deadlines.place
    group, owned = resolved.placement_group or _named(resolved.config), False
    if group is None:
        nodes = cluster_nodes()
        why = impossible(request, nodes)
        if why:
            text = unsatisfied(request, nodes, (), f"placement can never be satisfied: {why}")
            raise LaunchError(text, "F13", "PLACE")
        others = other_groups()
        left_out = {node.node_id for node in nodes} - {node.node_id for node in usable(request, nodes, avoid)}
        group, owned = _new_group(request, name, left_out), True
    try:
        if not _ready(group, deadline, stopped):
            if not owned:
                raise _not_ready(group, deadline)
            text = unsatisfied(request, cluster_nodes(), others, f"placement not ready in {deadline:g} s")
            raise LaunchError(text, "F13", "PLACE", retryable=True)
        return _seated(resolved.config, resolved.device, group, owned)
    except BaseException:
        if owned:
            release(group)
        raise


def require_named_group(config: LaunchConfig, device: str) -> None:
    """Whether the ranks can sit in the placement group that the configuration names, if it names one.

    Raises:
        ConfigError: there is none of that name.
        LaunchError: F13: it is not ready yet, or cannot hold the ranks.
    """
    group = _named(config)
    if group is None:
        return
    if not group.wait(STOP_LOOK_S):
        raise _not_ready(group, STOP_LOOK_S)
    _seated(config, device, group, owned=False)


def _seated(config: LaunchConfig, device: str, group: PlacementGroup, owned: bool) -> Placement:
    world = config.parallel.tensor_parallel_size
    placed = seats(_bundle_nodes(group), _checked(world, group))
    if not owned and (lacking := lacks_gpus(group.bundle_specs, placed, gpus_per_rank(config, device))):
        text = f"{_called(group)} has too few GPUs for ranks on GPUs: {lacking}; engine.device=cpu needs none"
        raise LaunchError(text, "F13", "PLACE")
    return Placement(group, placed, owned)


def lacks_gpus(bundles: Sequence[Resources], placed: Sequence[Seat], each: float) -> str:
    """Which bundle has fewer GPUs than its ranks need, who take ``each``; "" if none. Ray would refuse the actors."""
    for index, ranks in sorted(Counter(seat.bundle for seat in placed).items()):
        if bundles[index].get("GPU", 0.0) < ranks * each - ROUNDING:
            return f"bundle {index} has {show(bundles[index])}, asked {ranks} x [{each:g} GPU]"
    return ""


def _not_ready(group: PlacementGroup, waited_s: float) -> LaunchError:
    """A group of somebody else's that still waits for its own resources, which need not be what ranks would ask for."""
    own = BundleRequest(tuple(group.bundle_specs), placement_group_table(group)["strategy"])
    text = unsatisfied(own, cluster_nodes(), other_groups(), f"{_called(group)} was not ready in {waited_s:g} s")
    return LaunchError(text, "F13", "PLACE", retryable=True)


def _called(group: PlacementGroup) -> str:
    name = placement_group_table(group)["name"]
    return f"the placement group {name!r}" if name else "the given placement group"


def _ready(group: PlacementGroup, deadline_s: float, stopped: Callable[[], bool]) -> bool:
    end = time.monotonic() + deadline_s
    while not group.wait(STOP_LOOK_S):
        if stopped():
            raise shut_down("PLACE")
        if time.monotonic() >= end:
            return False
    return True


def _new_group(request: BundleRequest, name: str, left_out: Collection[str]) -> PlacementGroup:
    selector = {"ray.io/node-id": f"!in({','.join(sorted(left_out))})"}
    selectors = [selector for _ in request.bundles] if left_out else None
    return placement_group(list(request.bundles), request.strategy, name, bundle_label_selector=selectors)


def _named(config: LaunchConfig) -> PlacementGroup | None:
    name = config.placement.placement_group
    if name is None:
        return None
    try:
        return get_placement_group(name)
    except ValueError:
        known = ", ".join(other_groups()) or "none"
        raise ConfigError(
            "placement.placement_group", name, f"no such placement group; the cluster has: {known}"
        ) from None


def _checked(world: int, group: PlacementGroup) -> int:
    count = group.bundle_count
    if count < world and world % count:
        raise LaunchError(
            f"{world} ranks do not spread equally over the {count} bundles of the given placement group",
            "F13",
            "PLACE",
        )
    return world


def _bundle_nodes(group: PlacementGroup) -> list[tuple[int, str, str]]:
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    table = placement_group_table(group)
    return [(int(index), node, addresses.get(node, "?")) for index, node in table["bundles_to_node_id"].items()]


def release(group: PlacementGroup, deadline_s: float = 5.0) -> bool:
    """Removes a placement group and waits until Ray says that it is gone; False at the deadline."""
    end = time.monotonic() + deadline_s
    removing = Background(lambda: _removed(group, end))  # Ray's own calls (2.60) wait for its head for ever
    return removing.done(deadline_s) and bool(removing.result())


def _removed(group: PlacementGroup, end: float) -> bool:
    remove_placement_group(group)
    while time.monotonic() < end:
        if placement_group_table(group).get("state") in ("REMOVED", None):
            return True
        time.sleep(0.02)
    return False
