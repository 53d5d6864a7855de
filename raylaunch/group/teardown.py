"""How a group's processes end: seen to be gone, forced, or told to be unproven."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raylaunch.protocol.rules.common import count

FORCE_AFTER_S = 1.0
ANSWER_S = 2.0
PAUSE_S = 0.02


@dataclass(frozen=True)
class Teardown:
    """What was given back.

    Attributes:
        actors: rank actors ended.
        placement_groups: placement groups removed.
        left: processes that could not be seen to end (their node is unreachable, or they are stuck in the kernel).
        unseen: ranks whose process had not said which one it is, so that nobody could look whether it has ended.
        seconds: how long it took.
    """

    actors: int = 0
    placement_groups: int = 0
    left: tuple[int, ...] = ()
    unseen: tuple[int, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"torn down in {self.seconds:.1f} s; {count(self.actors, 'actor')}, "
        text += f"{count(self.placement_groups, 'placement group')} released"
        unproven = []
        if self.left:
            unproven.append(f"processes {', '.join(map(str, self.left))}")
        if self.unseen:
            unproven.append(f"the processes of ranks {', '.join(map(str, self.unseen))}, which had not started")
        return f"{text}; could not prove the end of {' and of '.join(unproven)}" if unproven else text


def prove_ended(
    processes: Mapping[str, set[int]],
    existing: Callable[[str, set[int], float], set[int] | None],
    force: Callable[[str, set[int]], None],
    end: float,
) -> tuple[int, ...]:
    """Waits until no process exists; has those killed that are there after a second.

    Args:
        processes: ids of the processes of each node.
        existing: told a node, its processes and how many seconds it may take; returns which of them exist, None if the
            node does not say so now. Raises ``LookupError`` if it never will.
        force: kills processes of a node.
        end: when to give up, on the monotonic clock.

    Returns:
        The processes that were not seen to end, ascending.
    """
    alive = {node: set(pids) for node, pids in processes.items() if pids}
    left = set[int]()
    force_at = time.monotonic() + FORCE_AFTER_S
    while True:
        for node, pids in list(alive.items()):
            try:
                found = existing(node, pids, max(PAUSE_S, min(ANSWER_S, end - time.monotonic())))
            except LookupError:
                left |= alive.pop(node)
                continue
            if found is None:
                continue  # a busy node's late answer is no proof of anything
            if found and time.monotonic() > force_at:
                force(node, found)
            if found:
                alive[node] = found
            else:
                del alive[node]
        if not alive or time.monotonic() > end:
            return tuple(sorted(left.union(*alive.values())))
        time.sleep(PAUSE_S)
