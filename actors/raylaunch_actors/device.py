"""The device of a rank: made current, and what it holds."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import psutil
import torch

from raylaunch.errors import RankFault
from raylaunch.protocol import Identity
from raylaunch_actors.interfaces import in_words
from raylaunch_actors.spec import RankSpec


def rank_device(spec: RankSpec) -> torch.device:
    """This rank's device, made current on this thread. Raises RankFault F09 if it is not there."""
    if spec.device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if spec.device_index >= count:
        raise RankFault("F09", f"rank {spec.rank} wants GPU {spec.device_index} of those visible, which are {count}")
    torch.cuda.set_device(spec.device_index)
    return torch.device("cuda", spec.device_index)


def device_prints(device: torch.device) -> dict[str, str]:
    """What of its GPU must be equal on all ranks: model, driver, and the NCCL that torch has loaded; none of a CPU."""
    if device.type == "cpu":
        return {}
    return {
        "GPU": torch.cuda.get_device_properties(device).name,
        "version of the GPU driver": driver_version(),
        "version of NCCL": ".".join(map(str, torch.cuda.nccl.version())),
    }


def driver_version() -> str:
    """The NVIDIA driver's version as NVML has it, such as ``580.65.06``; ``unknown`` if NVML cannot be asked."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "unknown"
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def identity(spec: RankSpec, device: torch.device, prints: Mapping[str, str]) -> Identity:
    """What a rank says of itself at MEET: the fingerprint ``prints``, to which its GPU's are added."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return Identity(
        hostname=platform.node(),
        pid=os.getpid(),
        device=str(device),
        local_rank=spec.local_rank,
        gpu=gpu,
        fingerprint={**prints, **device_prints(device)},
        niceness=os.nice(0) if device.type == "cuda" else 0,
        interface=in_words(spec),
    )


def memory_in_use(device: torch.device) -> int:
    """Bytes that this rank holds: of its GPU, or of its process."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)
