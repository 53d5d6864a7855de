"""What Ray itself says of an actor's end, where it knows why: no guess at the process is needed then."""

from __future__ import annotations

import re
from collections.abc import Iterable

SAID = (
    (re.compile(r"killed by `?ray\.kill"), "ended by ray.kill, which somebody has called"),
    (re.compile(r"placement group was removed"), "ended with its placement group, which somebody has removed"),
    (re.compile(r"Owner's node has crashed"), "ended by Ray, which holds the driver's node for lost"),
    (re.compile(r"owner has died"), "ended by Ray, which holds the driver for dead"),
)
NODE_ENDED = re.compile(r"actor's node was terminated (?:un)?expectedly: *([^\n]+)")
DRIVERS_NODE = SAID[2]


def said_by_ray(message: str) -> str:
    """Why an actor is dead, in a phrase; "" if Ray's message only says that its process has ended."""
    if ended := NODE_ENDED.search(message):
        return f"its node died: {ended.group(1).strip().rstrip('.')}"
    return next((phrase for pattern, phrase in SAID if pattern.search(message)), "")


def drivers_node_lost(messages: Iterable[str]) -> str:
    """Why nothing can be launched any more, if that is what these messages say: Ray's head has had no sign of life of
    the driver's own node, and ends all that the driver has made. "" else."""
    if any(DRIVERS_NODE[0].search(message) for message in messages):
        return "the driver's node is lost: Ray's head has no sign of life of its raylet, and has ended the ranks"
    return ""
