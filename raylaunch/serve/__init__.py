"""The HTTP server of an engine. What needs Ray or FastAPI is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylaunch.serve.reference.app import build_app
    from raylaunch.serve.run import bind, serve

__all__ = ["bind", "build_app", "serve"]

_HOMES = {"bind": "run", "build_app": "reference.app", "serve": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raylaunch.serve' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"raylaunch.serve.{_HOMES[name]}"), name)
