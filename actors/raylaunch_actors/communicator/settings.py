"""What a rank knows when it makes its communicator."""

from __future__ import annotations

from dataclasses import dataclass

from raylaunch.config import AllReduceKind


@dataclass(frozen=True)
class Settings:
    """Place in the group, and limits.

    Attributes:
        rank, world_size: place in the group.
        wanted: what the configuration asks for.
        sizes: bytes of the messages that are planned, ascending.
        max_bytes: largest message of the custom all-reduce.
        table_rows: inputs that can be registered, on GPUs.
        arena_bytes: memory to share, on CPUs.
        deadline_s: seconds that a wait for a peer may take.
        open_s: seconds that GPUs may take to connect by one kind, before it counts as impossible.
        bind_host: this rank's own address.
    """

    rank: int
    world_size: int
    wanted: AllReduceKind
    sizes: tuple[int, ...]
    max_bytes: int
    table_rows: int
    arena_bytes: int
    deadline_s: float
    open_s: float
    bind_host: str

    @property
    def custom(self) -> bool:
        """Whether memory has to be offered to the peers."""
        return self.world_size > 1 and self.wanted in ("custom", "auto", "sgl_kernel")
