"""The Python API: :class:`Engine`, what it shares with :class:`raylaunch.Replicas`, and what it says of itself."""

from raylaunch.engine.base import EngineBase
from raylaunch.engine.engine import Engine, frontend_of
from raylaunch.engine.health import Condition, Health

__all__ = ["Condition", "Engine", "EngineBase", "Health", "frontend_of"]
