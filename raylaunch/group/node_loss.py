"""Explains the loss of a node whose raylet has ended, while what runs there may still answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray

from raylaunch.background import Background
from raylaunch.errors import LaunchError
from raylaunch.group.diagnosis import NODE_LOST
from raylaunch.group.evidence import evidence_of
from raylaunch.group.ranks import RankGroup

NODES_S = 2.0  # for what Ray says of a node: its head may be gone as well


def nodes_lost(group: RankGroup, lost: Collection[str], nodes: Sequence[Mapping[str, Any]] = ()) -> LaunchError:
    """The error for a group that has lost these nodes, by their ids. Asks nobody.

    Args:
        nodes: what ``ray.nodes()`` says, if it was asked.
    """
    there = [member for member in group.members if member.process and member.process.node_id in lost]
    places = {member.process.node_id: member.process.address for member in there if member.process}
    said = [said_of(nodes, node) for node in places]
    return node_lost(tuple(places.values()), [member.rank for member in there], next(filter(None, said), ""))


def explain_lost_nodes(group: RankGroup, lost: Collection[str]) -> LaunchError:
    """The same with what Ray says of them, and every rank."""
    asking = Background(ray.nodes)
    error = nodes_lost(group, lost, asking.result() if asking.done(NODES_S) else ())
    for member in group.members:
        gone = member.process is not None and member.process.node_id in lost
        error.ranks.append(evidence_of(group, member.rank, state="its node is lost" if gone else "lost its peers"))
    return error


def node_lost(addresses: Sequence[str], ranks: Sequence[int], said: str = "") -> LaunchError:
    """The error for nodes whose raylet has ended.

    Args:
        ranks: that ran there.
        said: by Ray, of why.
    """
    node = f"node {', '.join(addresses)} is lost" if len(addresses) < 2 else f"nodes {', '.join(addresses)} are lost"
    number = "ranks" if len(ranks) > 1 else "rank"
    why = f" ({said})" if said else ""
    summary = (
        f"{node}: its raylet, Ray's process there, has ended{why}; {number} {', '.join(map(str, ranks))} ran there"
    )
    return LaunchError(summary, NODE_LOST, "SERVE", rank=min(ranks, default=None), retryable=True)


def said_of(nodes: Sequence[Mapping[str, Any]], node_id: str) -> str:
    """What Ray says of a node's end, in a phrase; "" while it does not know.

    Args:
        nodes: what ``ray.nodes()`` says.
    """
    for node in nodes:
        if node["NodeID"] == node_id and not node["Alive"]:
            first = next(iter(str(node.get("DeathReasonMessage") or "").strip().splitlines()), "")
            return f"Ray says: {first.rstrip('.')}" if first else ""
    return ""
