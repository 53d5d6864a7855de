"""Which GPUs can read each other's memory and which are linked by NVLink: gathered by each rank, judged alike by all.

Sources: CUDA for peer access, NVML (``nvidia-ml-py``) for NVLink. Where NVML is absent, that is a reason and no crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

OF_RANK, OF_MACHINE = "rank {}'s GPU", "GPU {}"
MEGABYTE = 1_000_000
CAN_READ = 0  # NVML_P2P_CAPS_INDEX_READ, which nvidia-ml-py defines as a tuple by mistake


@dataclass(frozen=True)
class GpuPlace:
    """One rank's GPU and its neighbours; plain data, carried to all ranks.

    Attributes:
        uuid: of the GPU, as CUDA and NVML name it.
        peers: uuids of GPUs whose memory it can read, its own among them.
        nvlinked: uuids of GPUs that it reaches over NVLink, its own among them.
        link_bandwidth: bytes per second that its NVLinks carry in one direction, None if unknown.
        nvml_problem: why NVML could not be asked, or "".
    """

    uuid: str
    peers: tuple[str, ...] = ()
    nvlinked: tuple[str, ...] = ()
    link_bandwidth: float | None = None
    nvml_problem: str = ""


def unreachable(places: Sequence[GpuPlace], name: str = OF_RANK) -> str:
    """The first pair of GPUs that cannot read each other's memory, in words; "" if all can."""
    return _first_missing(places, "peers", "cannot read the memory of", name)


def unlinked(places: Sequence[GpuPlace], name: str = OF_RANK) -> str:
    """The first pair of GPUs that are not linked by NVLink, in words; "" if all are."""
    missing = _first_missing(places, "nvlinked", "has no NVLink to", name)
    problem = next((place.nvml_problem for place in places if place.nvml_problem), "")
    return f"{missing} ({problem})" if missing and problem else missing


def sharing(names: Sequence[object]) -> str:
    """The first two ranks of equal names, in words; "" if all differ."""
    for rank, name in enumerate(names):
        first = names.index(name)
        if first != rank:
            return f"ranks {first} and {rank} share one GPU"
    return ""


def _first_missing(places: Sequence[GpuPlace], relation: str, verb: str, name: str) -> str:
    for index, place in enumerate(places):
        for peer, other in enumerate(places):
            if other.uuid not in getattr(place, relation):
                return f"{name.format(index)} {verb} {name.format(peer)}"
    return ""


def in_words(places: Sequence[GpuPlace]) -> str:
    """What the GPUs of a machine are to each other: peer access, NVLink and its bandwidth."""
    bandwidth = min((place.link_bandwidth or 0.0 for place in places), default=0.0)
    speed = f", {bandwidth / 1e9:.0f} GB/s in each direction" if bandwidth else ""
    if len(places) < 2:
        return f"no other GPU{speed and f'; NVLink{speed}'}"
    reach = unreachable(places, OF_MACHINE) or "all read each other's memory"
    return f"{reach}; {unlinked(places, OF_MACHINE) or f'NVLink between all{speed}'}"


# ---- gathering ---------------------------------------------------------------------------------------------------


def gpu_place() -> GpuPlace:
    """A rank's current device among all that it sees. Does not raise where NVML cannot be asked."""
    import torch

    mine, count = torch.cuda.current_device(), torch.cuda.device_count()
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
    peers = [uuids[i] for i in range(count) if i == mine or torch.cuda.can_device_access_peer(mine, i)]
    try:
        linked, bandwidth = _ask_nvml(uuids[mine], uuids)
    except Exception as error:  # ImportError, or an NVMLError: their classes are made when the library is loaded
        problem = f"NVML does not answer: {error}"
        return GpuPlace(uuids[mine], tuple(peers), (uuids[mine],), None, problem)
    return GpuPlace(uuids[mine], tuple(peers), (uuids[mine], *linked), bandwidth)


def _ask_nvml(mine: str, uuids: Sequence[str]) -> tuple[list[str], float | None]:
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{mine}")
        others = {uuid: pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids if uuid != mine}
        return [uuid for uuid, other in others.items() if linked(handle, other)], link_bandwidth(handle)
    finally:
        pynvml.nvmlShutdown()


def machine_places() -> list[GpuPlace]:
    """Every GPU of this machine, as NVML sees it; no CUDA context is made. Raises ImportError or an ``NVMLError``."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]

        def related(index: int, relation: Callable[[Any, Any], bool]) -> tuple[str, ...]:
            mine = handles[index]
            return tuple(u for i, u in enumerate(uuids) if i == index or relation(mine, handles[i]))

        return [
            GpuPlace(uuid, related(index, readable), related(index, linked), link_bandwidth(handles[index]))
            for index, uuid in enumerate(uuids)
        ]
    finally:
        pynvml.nvmlShutdown()


def linked(handle: Any, other: Any) -> bool:
    """Whether two GPUs, given as NVML handles, reach each other over NVLink, directly or through a switch."""
    import pynvml

    status = pynvml.nvmlDeviceGetP2PStatus(handle, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    return bool(status == pynvml.NVML_P2P_STATUS_OK)


def readable(handle: Any, other: Any) -> bool:
    """Whether one GPU can read the other's memory, as NVML sees it."""
    import pynvml

    status = pynvml.nvmlDeviceGetP2PStatus(handle, other, CAN_READ)
    return bool(status == pynvml.NVML_P2P_STATUS_OK)


def link_bandwidth(handle: Any) -> float | None:
    """Bytes per second over all active NVLinks of a GPU, in one direction; None if it has none or does not say.

    In a virtual machine a GPU may know of its links' generation alone: NVIDIA's figure for that counts then.
    """
    import pynvml

    active = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        with suppress(pynvml.NVMLError):  # a GPU says "not supported" for links that it does not have
            if pynvml.nvmlDeviceGetNvLinkState(handle, link) == pynvml.NVML_FEATURE_ENABLED:
                active.append(link)
    speeds = [_link_speed(handle, link) for link in active]
    return float(sum(speeds) * MEGABYTE) if speeds and all(speeds) else None


def _link_speed(handle: Any, link: int) -> int:
    """Megabytes per second in one direction; 0 if unknown."""
    import pynvml

    for field in ((pynvml.NVML_FI_DEV_NVLINK_GET_SPEED, link), pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON):
        with suppress(pynvml.NVMLError):
            (said,) = pynvml.nvmlDeviceGetFieldValues(handle, [field])
            if said.nvmlReturn == pynvml.NVML_SUCCESS and said.value.uiVal:
                return int(said.value.uiVal)
    with suppress(pynvml.NVMLError):
        return speed_of_generation(int(pynvml.nvmlDeviceGetNvLinkVersion(handle, link)))
    return 0


def speed_of_generation(version: int) -> int:
    """Megabytes per second that one NVLink carries in one direction, by NVML's number of its version; 0 if unknown.

    Source: NVIDIA's data sheets, such as 900 GB/s both ways over the 18 links of an H100 (version 4.0).
    """
    import pynvml

    if version == pynvml.NVML_NVLINK_VERSION_5_0:
        return 50_000
    return 25_000 if pynvml.NVML_NVLINK_VERSION_2_0 <= version <= pynvml.NVML_NVLINK_VERSION_4_0 else 0
