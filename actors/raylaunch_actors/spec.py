"""What one rank is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylaunch.resolved import ResolvedLaunch


@dataclass(frozen=True, kw_only=True)
class RankSpec(ResolvedLaunch):
    """What one rank is told at its start: the launch, and its own part in it.

    Attributes:
        rank: tensor-parallel rank.
        local_rank: index among the group's ranks on this node.
        group: unique name of the group.
        bind_host: address that sockets listen on: loopback if driver and ranks share one node.
        environment: variables to set before anything heavy is imported.
        core_file: where its GPU writes a core dump, in debug mode; else "".
        driver_files: digest and folder of the raylaunch that the driver has imported.
        node, nodes: index of its node among those of the group, and how many they are.
        device_index: index of its GPU among those of the group on this node, which all its ranks there see; told at
            boot, when it is known which GPUs Ray gave.
        initial_environment: the process's variables before it has imported anything heavy; it notes them itself.
    """

    rank: int
    local_rank: int
    group: str
    bind_host: str
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # may hold secrets
    core_file: str = ""
    driver_files: tuple[str, str] = ("", "")
    node: int = 0
    nodes: int = 1
    device_index: int = 0
    initial_environment: dict[str, str] = field(default_factory=dict, repr=False)  # has secrets
