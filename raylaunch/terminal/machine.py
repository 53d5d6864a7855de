"""What this machine has: facts for ``doctor``, and beside every measurement."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import shutil
from dataclasses import asdict
from typing import Any, TypeVar

PACKAGES = (
    "raylaunch", "ray", "torch", "triton", "transformers", "safetensors", "pydantic", "pyzmq", "msgspec", "numpy",
    "sglang", "sglang-kernel", "flashinfer-python", "nvidia-nccl-cu12", "nvidia-nccl-cu13",
)  # fmt: skip
GIB = 1 << 30
VISIBLE = "CUDA_VISIBLE_DEVICES"
T = TypeVar("T")


def describe_machine() -> dict[str, Any]:
    """Plain data for JSON: sizes in bytes, the load of the minute before. Starts no process but ``nvidia-smi``."""
    import psutil

    memory = psutil.virtual_memory()
    gpus, why = find_gpus()
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count() or 1,
        "cpus_usable": usable_cpus(),
        "load": os.getloadavg()[0],
        "memory": {"total": memory.total, "available": memory.available},
        "shm": shared_memory(),
        "gpus": gpus,
        "gpus_from": why,
        "gpu_links": gpu_links() if gpus else [],
        "packages": package_versions(),
    }


def usable_cpus() -> float:
    """CPUs that this process may use: its affinity, or a container's quota if that is less."""
    cpus = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return cpus if quota == "max" else min(cpus, int(quota) / int(period))
    except (OSError, ValueError):
        return cpus


def shared_memory() -> dict[str, Any]:
    """Size of ``/dev/shm``, which Ray's object store uses, and whether ranks can share memory without it."""
    facts: dict[str, Any] = {"total": 0, "free": 0, "memfd": memfd_problem()}
    try:
        facts["total"], _, facts["free"] = shutil.disk_usage("/dev/shm")
    except OSError:
        return facts
    return facts


def memfd_problem() -> str:
    """Why memory without a name cannot be made and opened again through ``/proc``; "" if it can."""
    try:
        fd = os.memfd_create("raylaunch-doctor")
    except (OSError, AttributeError) as error:
        return f"memfd_create: {error}"
    try:
        os.posix_fallocate(fd, 0, 1 << 16)
        os.close(os.open(f"/proc/{os.getpid()}/fd/{fd}", os.O_RDWR))
    except OSError as error:
        return str(error)
    finally:
        os.close(fd)
    return ""


def package_versions() -> dict[str, str | None]:
    """Versions as installed, None where a package is not."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def find_gpus() -> tuple[list[dict[str, str]], str]:
    """The NVIDIA GPUs that processes of this one may use, and who said so or why nobody could."""
    try:
        found = _from_nvml()
        chosen = os.environ.get(VISIBLE)
        return visible(found, chosen), "NVML" if chosen is None else f"NVML, {VISIBLE}={chosen}"
    except ImportError:
        return [], "nvidia-ml-py is not installed"
    except Exception as error:  # NVMLError: its classes are made when the library is loaded
        return [], f"NVML: {error}"


def visible(found: list[T], chosen: str | None) -> list[T]:
    """Those of a machine's GPUs that ``CUDA_VISIBLE_DEVICES`` leaves: indices, up to the first that names none; of
    UUIDs as many as there are.

    Args:
        chosen: its value, None where it is not set.
    """
    if chosen is None:
        return found
    names = [name.strip() for name in chosen.split(",")]
    if all(name.startswith(("GPU-", "MIG-")) for name in names):
        return found[: len(names)]
    known = itertools.takewhile(lambda name: name.isdecimal() and int(name) < len(found), names)
    return [found[int(name)] for name in known]


def gpu_links() -> list[dict[str, Any]]:
    """For every GPU, those whose memory it can read and those it reaches over NVLink; empty if NVML does not say."""
    from raylaunch_actors.communicator.topology import machine_places

    try:
        return [asdict(place) for place in visible(list(machine_places()), os.environ.get(VISIBLE))]
    except Exception:  # the GPUs themselves were found: what NVML says beyond that is not worth an error
        return []


def _from_nvml() -> list[dict[str, str]]:
    import pynvml

    pynvml.nvmlInit()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "name": _text(pynvml.nvmlDeviceGetName(handle)),
                "memory": f"{pynvml.nvmlDeviceGetMemoryInfo(handle).total / GIB:.1f} GiB",
                "driver": driver,
            }
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
