"""What must be equal on all ranks of a group: versions, settings, environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import RankFault
from raylaunch.model.hub import commit_of
from raylaunch.values.masking import looks_secret
from raylaunch_actors.spec import RankSpec

PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "safetensors",
    "numpy",
    "sglang",
    "sglang-kernel",
    "triton",
)
"""raylaunch itself is compared by its files: the version of a checkout is that of the day it was installed."""
ENVIRONMENT = (
    "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_LAUNCH_BLOCKING", "SGLANG_", "OMP_NUM_THREADS",
)  # fmt: skip
OF_A_NODE = ("_IFNAME", "_HOSTID")  # names of interfaces and hosts differ from node to node


def fingerprint(spec: RankSpec, model: Path) -> dict[str, str]:
    """Versions, processor, a digest of the configuration, and the environment variables that change results: those
    that the process was started with, as libraries set some, and a rank that stood by has imported more of them.

    Args:
        model: the model's folder on this node.
    """
    prints = {f"version of {name}": package_version(name) for name in PACKAGES}
    prints["version of python"] = platform.python_version()
    prints["processor"] = platform.machine()
    prints["configuration"] = hashlib.sha256(spec.config.model_dump_json().encode()).hexdigest()[:16]
    return prints | model_prints(model) | environment_prints(spec.initial_environment, spec.group)


def environment_prints(variables: Mapping[str, str], group: str) -> dict[str, str]:
    """Those of the variables that change results. A difference is printed: of a secret there is only a digest.

    Args:
        group: name of the launch, mixed into digests, so that they tell nothing beyond it.
    """
    prints = {}
    for name, value in variables.items():
        if name.startswith(ENVIRONMENT) and not name.endswith(OF_A_NODE):
            if looks_secret(name):
                value = f"secret {hashlib.blake2b(value.encode(), key=group.encode()[:64], digest_size=4).hexdigest()}"
            prints[f"environment variable {name}"] = value
    return prints


def package_version(name: str) -> str:
    """Installed version, or ``absent``."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def own_folder(path: str) -> Path | None:
    """The model's folder where ``path`` is one: absolute, as the driver has made it. None for a name on the Hub,
    whatever this folder holds. Raises :class:`RankFault` where this node has it not (F22)."""
    folder = Path(path)
    if not folder.is_absolute():
        return None
    if folder.is_dir():
        return folder
    where = f"there is no folder {path} on node {platform.node()}"
    raise RankFault(None, f"{where}: a model's folder must exist on every node that has a rank")


def model_prints(folder: Path) -> dict[str, str]:
    """What model is in the folder.

    Of a Hub model it is the commit: nodes differ in what of it they have fetched already. Of another it is each file's
    name and size, and a digest of ``config.json``.
    """
    if commit := commit_of(folder):
        return {"model": f"commit {commit}"}
    if not folder.is_dir():
        return {"model": f"{folder} is no folder"}
    files = {one.name: one for one in folder.iterdir() if one.name.endswith((".json", ".safetensors"))}
    prints = {f"model file {name}": f"{file.stat().st_size} bytes" for name, file in files.items()}
    if (config := files.get("config.json")) is not None:
        prints["model file config.json"] += f", {hashlib.sha256(config.read_bytes()).hexdigest()[:8]}"
    return {"model": "a folder", **prints}
