"""What stands between a caller and the ranks: takes requests to rank 0 and makes text of what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig
    from raylaunch.frontends.base import Frontend

__all__ = ["frontend_of"]


def frontend_of(config: LaunchConfig) -> Frontend:
    """The frontend of the configured engine; nothing is started yet."""
    if config.engine.kind == "sglang":
        from raylaunch.sglang.frontend import SglangFrontend

        return SglangFrontend(config)
    from raylaunch.frontends.reference import ReferenceFrontend

    return ReferenceFrontend(config)
