"""What one rank is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylaunch.config import LaunchConfig
from raylaunch.protocol import LaunchPlan
from raylaunch.sglang.sockets import SglangSockets


@dataclass(frozen=True)
class RankSpec:
    """What one rank is told at its start.

    Attributes:
        rank: tensor-parallel rank.
        world_size: ranks in the group.
        local_rank: index among the group's ranks on this node.
        nodes: nodes that the group runs on.
        group: unique name of the group.
        bind_host: address that sockets listen on: loopback if driver and ranks share one node.
        program: key of ``PROGRAMS``.
        device: ``cpu`` or ``cuda``.
        config: the launch's configuration.
        plan: its gates.
        environment: variables to set before anything heavy is imported.
        core_file: where its GPU writes a core dump, in debug mode; else "".
        sockets: where the engine ``sglang`` meets its tokenizer and detokenizer; None for other engines.
        driver_files: digest and folder of the raylaunch that the driver has imported.
        device_index: index of its GPU among those of the group on this node, which all its ranks there see; told at
            boot, when it is known which GPUs Ray gave.
    """

    rank: int
    world_size: int
    local_rank: int
    nodes: int
    group: str
    bind_host: str
    program: str
    device: str
    config: LaunchConfig
    plan: LaunchPlan
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # may hold secrets
    core_file: str = ""
    sockets: SglangSockets | None = None
    driver_files: tuple[str, str] = ("", "")
    device_index: int = 0
