"""What ranks compile at run time is built once: copied to the nodes that lack it, and by one launch after the other.

It is all for speed: nothing of it fails a launch, and none of it takes long.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayError

from raylaunch.cluster.placement import cluster_nodes
from raylaunch.config import LaunchConfig
from raylaunch.errors import shut_down
from raylaunch.group.member import kill
from raylaunch.protocol import Phase
from raylaunch.protocol.rules.common import count, human_bytes
from raylaunch.report import LaunchReport

if TYPE_CHECKING:
    from raylaunch_actors.kernel_cache import Holding

ANSWER_S, SHARE_S, BUILD_S = 8.0, 60.0, 300.0  # for what a node has; for all copies; for the launch that builds
MOST_OTHERS = 16  # nodes beside those of the launch that are asked
MOST_BYTES, PART_BYTES = 4 << 30, 32 << 20  # of all copies; of those that are under way at once
LOOK_S = 0.5
OF_KERNELS = ("model", "parallel", "engine", "capture", "communicator")

K = TypeVar("K")


@dataclass(frozen=True)
class Copy:
    """Files that a node gets from another."""

    source: str
    target: str
    files: Mapping[str, int]


def copies(nodes: Mapping[str, Holding], targets: Collection[str]) -> list[Copy]:
    """What each of ``targets`` lacks that the one has which has most, of those whose files are of use to it.

    Args:
        nodes: what each has, by its id.
    """
    wanted = []
    for target in sorted(set(targets) & set(nodes)):
        alike = [one for one in sorted(nodes) if nodes[one].key == nodes[target].key]
        source = max(alike, key=lambda one: sum(nodes[one].files.values()))
        there = nodes[target].files
        if lacks := {name: size for name, size in nodes[source].files.items() if name not in there}:
            wanted.append(Copy(source, target, lacks))
    return wanted


def parts(files: Mapping[str, int], most: int, at_once: int) -> list[list[str]]:
    """Names in the order in which they may appear, in parts of some bytes: what names other files comes behind them.
    Files beyond ``most`` bytes in all, and larger ones than a part, are left where they are."""
    made, room, left = list[list[str]](), 0, most
    for name in sorted(files, key=lambda name: (name.endswith(".json"), name)):
        size = files[name]
        if size > at_once or size > left:
            continue
        if not made or size > room:
            made.append([])
            room = at_once
        made[-1].append(name)
        room, left = room - size, left - size
    return made


def launch_mark(config: LaunchConfig) -> str:
    """The same for launches that need the same kernels."""
    said = config.model_dump(mode="json", by_alias=True, include=set(OF_KERNELS))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Asking:
    """Calls of agents whose failure is no more than worth a word.

    Attributes:
        stopped: whether the launch is wanted no more.
        said: for the report.
    """

    stopped: Callable[[], bool]
    said: list[str] = field(default_factory=list)

    def answers(self, calls: Mapping[Any, K], seconds: float) -> dict[K, Any]:
        """What agents answer within that time; of one that fails or is late, nothing. Raises LaunchError if the launch
        is stopped."""
        end, waiting = time.monotonic() + seconds, list(calls)
        answers = {}
        while waiting and (left := end - time.monotonic()) > 0:
            if self.stopped():
                raise shut_down(Phase.PLACE.name)
            done, waiting = ray.wait(waiting, num_returns=1, timeout=min(left, LOOK_S))
            for call in done:
                try:
                    answers[calls[call]] = ray.get(call)
                except RayError as error:
                    self.said.append(f"a node builds its kernels alone: {str(error).strip().splitlines()[-1]}")
        if waiting:
            self.said.append(f"{count(len(waiting), 'node')} said nothing of kernels for {max(0, seconds):.0f} s")
        return answers


def prepare(
    agents: Mapping[str, Any],
    config: LaunchConfig,
    report: LaunchReport,
    stopped: Callable[[], bool],
    in_session: Callable[[], bool] = ray.is_initialized,
) -> None:
    """Unless all is built there, copies to each node what it lacks and another one of the cluster has, and waits while
    another launch builds there. The report says what came of it.

    Args:
        agents: of the nodes, by their ids.
        stopped: whether the launch is wanted no more.
        in_session: whether this process still is in the session of the agents.
    Raises:
        LaunchError: it was stopped.
    """
    root, mark = config.engine.sglang.cache_dir, launch_mark(config)
    asking = Asking(stopped)
    built = asking.answers({agent.built.remote(root, mark): node for node, agent in agents.items()}, ANSWER_S)
    cold = sorted(node for node in agents if not built.get(node))
    if cold:
        _share(agents, cold, root, asking, in_session)
    waited, end = 0.0, time.monotonic() + BUILD_S  # for all nodes: one that hangs may hold each of them
    for node in cold:  # one after the other: launches that wait for each other would for ever
        left = max(0.0, end - time.monotonic())
        call = agents[node].begin_building.remote(root, mark, report.group, left)
        waited += sum(asking.answers({call: node}, left + ANSWER_S).values())
    if waited > 1:
        asking.said.append(f"waited {waited:.0f} s for another launch that builds kernels")
    report.kernels = "; ".join(asking.said)


def finish(agents: Mapping[str, Any]) -> None:
    """The ranks have all that they need: launches that wait for them may go on."""
    for agent in agents.values():
        agent.end_building.remote()


def _share(
    agents: Mapping[str, Any],
    cold: Sequence[str],
    root: str | None,
    asking: Asking,
    in_session: Callable[[], bool],
) -> None:
    """Copies to the cold nodes what they lack."""
    others = [one.node_id for one in cluster_nodes() if one.node_id not in agents][:MOST_OTHERS]
    if len(agents) + len(others) == 1:
        return
    from raylaunch.group.remote import agent_on

    guests = {node: agent_on(node) for node in others}
    try:
        _copy({**agents, **guests}, cold, root, asking)
    finally:
        for guest in guests.values() if in_session() else ():  # elsewhere the call would start a session of its own
            kill(guest)


def _copy(agents: Mapping[str, Any], cold: Sequence[str], root: str | None, asking: Asking) -> None:
    found = asking.answers({agent.cached.remote(root): node for node, agent in agents.items()}, ANSWER_S)
    end = time.monotonic() + SHARE_S
    for copy in copies(found, cold):
        source, target, new, nbytes = agents[copy.source], agents[copy.target], 0, 0
        for names in parts(copy.files, MOST_BYTES, PART_BYTES):
            packed = source.pack_cached.remote(root, names)  # from node to node: the driver has no part in it
            done = asking.answers({target.unpack_cached.remote(root, packed): 0}, end - time.monotonic())
            if not done:
                break
            new, nbytes = new + done[0], nbytes + sum(copy.files[name] for name in names)
        if new:
            asking.said.append(
                f"{count(new, 'file')} of kernels, {human_bytes(nbytes)}, copied to node {copy.target[:8]}"
            )
        if nbytes < sum(copy.files.values()):
            asking.said.append(f"not all kernels could be copied to node {copy.target[:8]}: it builds the others")
