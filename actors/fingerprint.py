"""What must be equal on all ranks of a group: versions, settings, environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.rank import RankSpec

PACKAGES = (
    "raylaunch",
    "torch",
    "transformers",
    "ray",
    "safetensors",
    "numpy",
    "sglang",
    "sglang-kernel",
    "triton",
)
ENVIRONMENT = (
    "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_LAUNCH_BLOCKING", "SGLANG_", "OMP_NUM_THREADS",
)  # fmt: skip
OF_A_NODE = ("_IFNAME", "_HOSTID")  # names of interfaces and hosts differ from node to node
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def fingerprint(spec: RankSpec) -> dict[str, str]:
    """Versions, processor, a digest of the configuration, and the environment variables that change results."""
    prints = {f"version of {name}": package_version(name) for name in PACKAGES}
    prints["version of python"] = platform.python_version()
    prints["processor"] = platform.machine()
    prints["configuration"] = hashlib.sha256(spec.config.model_dump_json().encode()).hexdigest()[:16]
    prints["model files"] = model_digest(spec.config.model.path)
    return prints | environment_prints(os.environ, spec.group)


def environment_prints(variables: Mapping[str, str], group: str) -> dict[str, str]:
    """Those of the variables that change results. A difference is printed: of a secret there is only a digest.

    Args:
        group: name of the launch, mixed into digests, so that they tell nothing beyond it.
    """
    prints = {}
    for name, value in variables.items():
        if name.startswith(ENVIRONMENT) and not name.endswith(OF_A_NODE):
            if any(word in name for word in SECRETS):
                value = f"secret {hashlib.blake2b(value.encode(), key=group.encode()[:64], digest_size=4).hexdigest()}"
            prints[f"environment variable {name}"] = value
    return prints


def package_version(name: str) -> str:
    """Installed version, or ``absent``."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def model_digest(path: str) -> str:
    """Digest of the model folder's file names and sizes and of its config.json; ``not a folder`` for a Hub name."""
    if not os.path.isdir(path):
        return "not a folder"
    digest = hashlib.sha256()
    for name in sorted(os.listdir(path)):
        if name.endswith((".json", ".safetensors")):
            digest.update(f"{name} {os.path.getsize(os.path.join(path, name))}\n".encode())
    config = os.path.join(path, "config.json")
    if os.path.isfile(config):
        with open(config, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]
