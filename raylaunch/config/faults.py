"""Which faults can be provoked, and where. One that could never happen would prove nothing: it is refused."""

from __future__ import annotations

import re
from typing import Literal

FaultAction = Literal[
    "raise", "exit", "kill", "segv", "stop", "sleep", "hold_gil", "illegal_access", "out_of_memory",
    "third_iteration",
    "no_capture_context", "extra_all_reduce", "skip_registration", "strip_symbols", "zero_all_reduce", "warm_again",
    "stale_decode", "other_version", "free_recorded", "no_shared_memory", "no_peer_access", "other_nccl_host",
    "reversed_gpus", "hidden_gpus", "slow_to_die",
]  # fmt: skip

AT_A_GATE = ("raise", "exit", "kill", "segv", "stop", "sleep", "hold_gil", "illegal_access", "out_of_memory")
AT_A_SHAPE = ("extra_all_reduce", "free_recorded", "warm_again", "zero_all_reduce", "stale_decode")
OF_GRAPHS = (
    "third_iteration", "no_capture_context", "extra_all_reduce", "skip_registration", "strip_symbols",
    "zero_all_reduce", "warm_again", "stale_decode", "free_recorded",
)  # fmt: skip
OF_GPUS = (
    "illegal_access", "free_recorded", "no_peer_access", "other_nccl_host", "reversed_gpus", "hidden_gpus",
)  # fmt: skip
OF_THE_REFERENCE_ENGINE = ("strip_symbols", "free_recorded", "no_shared_memory", "no_peer_access")
"""The engine ``sglang`` has no such fault; it has all others."""

EVERYWHERE = "capture"  # the default
ROUND, NUMBER = "(prefill|decode)", "[1-9][0-9]*"
GATE = re.compile(f"connect|load|warmup|register( {ROUND})?|verify|capture( {ROUND}( {NUMBER}( {NUMBER})?)?)?")
SHAPE = re.compile(f"capture( {ROUND}( {NUMBER})?)?")


def place_of(action: str, at: str) -> str:
    """``at`` in lower case, its words parted by one space. Raises ValueError if ``action`` never happens there."""
    at = " ".join(at.lower().split())
    if action in AT_A_GATE:
        if not GATE.fullmatch(at):
            raise ValueError(
                "must be connect, load, warmup, capture, register or verify; capture may be followed by prefill or "
                "decode, a shape and an iteration (capture prefill 128 2), register by prefill or decode"
            )
    elif action in AT_A_SHAPE:
        if not SHAPE.fullmatch(at):
            raise ValueError(
                f"{action} happens to shapes that are captured, whatever the iteration: must be capture, which may be "
                "followed by prefill or decode and a shape (capture prefill 128)"
            )
    elif at != EVERYWHERE:
        raise ValueError(f"{action} has a place of its own: leave at out")
    return at
