"""What must be equal on all ranks of a group: versions, settings, environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

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
    """Versions, processor, a digest of the configuration, and the environment variables that change results.

    Args:
        model: the model's folder on this node.
    """
    prints = {f"version of {name}": package_version(name) for name in PACKAGES}
    prints["version of python"] = platform.python_version()
    prints["processor"] = platform.machine()
    prints["configuration"] = hashlib.sha256(spec.config.model_dump_json().encode()).hexdigest()[:16]
    prints["model files"] = model_digest(model)
    return prints | environment_prints(os.environ, spec.group)


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


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the Hub's local cache holds; None for any other folder."""
    cached = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if cached else None


def model_digest(folder: Path) -> str:
    """What model is in the folder; ``not a folder`` if there is none.

    Of a Hub model it is the commit: nodes differ in what of it they have fetched already. Of another it is a digest of
    the files' names and sizes and of ``config.json``.
    """
    if not folder.is_dir():
        return "not a folder"
    if commit := commit_of(folder):
        return f"commit {commit}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name.endswith((".json", ".safetensors")):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    return digest.hexdigest()[:16]
