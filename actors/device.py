"""The device of a rank: made current, and what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch

from raylaunch.errors import RankFault

if TYPE_CHECKING:
    from actors.rank import RankSpec


def rank_device(spec: RankSpec) -> torch.device:
    """This rank's device, made current on this thread. Raises RankFault F09 if it is not there."""
    if spec.device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if spec.device_index >= count:
        raise RankFault("F09", f"rank {spec.rank} wants GPU {spec.device_index} of those visible, which are {count}")
    torch.cuda.set_device(spec.device_index)
    return torch.device("cuda", spec.device_index)


def memory_in_use(device: torch.device) -> int:
    """Bytes that this rank holds: of its GPU, or of its process."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)
