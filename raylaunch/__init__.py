"""raylaunch: starts tensor-parallel language models on Ray, every rank in the same phase, every failure with a name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylaunch.errors import ConfigError, EngineBusy, LaunchError, RaylaunchError, RequestError, RequestFailed

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig
    from raylaunch.engine import Engine
    from raylaunch.engine.replicas import Replicas
    from raylaunch.frontends.requests import Chunk, Completion
    from raylaunch.frontends.sampling import SamplingParams
    from raylaunch.report import LaunchReport

    __version__: str

__all__ = [
    "Chunk",
    "Completion",
    "ConfigError",
    "Engine",
    "EngineBusy",
    "LaunchConfig",
    "LaunchError",
    "LaunchReport",
    "RaylaunchError",
    "Replicas",
    "RequestError",
    "RequestFailed",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "Chunk": "frontends.requests",
    "Completion": "frontends.requests",
    "Engine": "engine",
    "LaunchConfig": "config",
    "LaunchReport": "report",
    "Replicas": "engine.replicas",
    "SamplingParams": "frontends.sampling",
}


def __getattr__(name: str) -> Any:
    """Loads what needs Ray or pydantic when it is first asked for: ``import raylaunch`` itself stays quick."""
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'raylaunch' has no attribute {name!r}")
    import importlib

    if name in ("Engine", "Replicas"):
        from raylaunch.startup.shadows import require_unshadowed

        require_unshadowed()  # what it imports could be the user's
    return getattr(importlib.import_module(f"raylaunch.{_HOMES[name]}"), name)


def _version() -> str:
    """That of the installed package, which is made of git's tags when it is built or installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("raylaunch")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"  # a checkout that is on the path, such as a job's working directory


def _rank_side_beside() -> None:
    """Where this package lies in a checkout, the rank's side is taken from the same one, installed or not: a job's
    working directory is on the path of a worker, its folder ``actors`` is not."""
    checkout = Path(__file__).resolve().parent.parent
    actors = str(checkout / "actors")
    if actors not in sys.path and (checkout / "actors" / "raylaunch_actors").is_dir():
        sys.path.insert(0, actors)


_rank_side_beside()
