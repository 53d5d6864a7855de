"""What a launch is configured with: typed sections, read from YAML, Python or the command line.

Everything that can be checked without starting an actor is checked here and in :mod:`raylaunch.model_check`; a
mistake is one :class:`~raylaunch.errors.ConfigError` that names the key, its value and what would be right.
"""

from raylaunch.config.files import shipped_configs
from raylaunch.config.launch_config import LaunchConfig
from raylaunch.config.overrides import apply_overrides
from raylaunch.config.sections import AllReduceKind, FaultConfig, LogConfig, ModelConfig, ServeConfig

__all__ = [
    "AllReduceKind",
    "FaultConfig",
    "LaunchConfig",
    "LogConfig",
    "ModelConfig",
    "ServeConfig",
    "apply_overrides",
    "shipped_configs",
]
