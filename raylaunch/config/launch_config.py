"""All sections together: everything that decides a launch, made from a file, plain data or another configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from raylaunch.config.explain import explain
from raylaunch.config.files import DEFAULT, read_config, shipped_configs
from raylaunch.config.overrides import BY_KIND, apply_overrides, changed, value_at
from raylaunch.config.renamed import with_current_names
from raylaunch.config.sections import (
    CaptureConfig,
    CommunicatorConfig,
    DeadlineConfig,
    EngineConfig,
    FaultConfig,
    LogConfig,
    ModelConfig,
    ParallelConfig,
    PlacementConfig,
    RecoveryConfig,
    ServeConfig,
)
from raylaunch.config.types import LocalPath, Section, Text
from raylaunch.config.written import check_encoding
from raylaunch.errors import ConfigError


class LaunchConfig(Section):
    """Everything that decides a launch. ``LaunchConfig.default()`` is the model that ships with raylaunch.

    Paths are the driver's, and absolute once they are read: in a file they are relative to its folder, elsewhere to
    the working directory (:mod:`raylaunch.config.paths`).

    Attributes:
        name: of the group; its actors are ``NAME-xxxxxx/rank0`` and so on, with six hexadecimal digits of the launch.
        environment: variables that every rank gets before it imports anything, such as ``NCCL_DEBUG: INFO``.
        faults: faults to provoke on purpose; empty in production.
        debug: ``cuda`` has GPUs write a core dump where a kernel fails, and waits for every kernel: slow. A dump takes
            time, so deadlines may have to be longer.
        debug_folder: folder of the core dumps on each node; None takes the driver's one for temporary files.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "raylaunch"
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    engine: EngineConfig = EngineConfig()
    capture: CaptureConfig = CaptureConfig()
    communicator: CommunicatorConfig = CommunicatorConfig()
    placement: PlacementConfig = PlacementConfig()
    deadlines: DeadlineConfig = DeadlineConfig()
    serve: ServeConfig = ServeConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    log: LogConfig = LogConfig()
    environment: dict[str, Text] = Field(default_factory=dict)
    faults: tuple[FaultConfig, ...] = ()
    debug: Literal["off", "cuda"] = "off"
    debug_folder: LocalPath | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_current_names(cls, data: Any) -> Any:
        return with_current_names(data)

    @field_validator("environment")
    @classmethod
    def _can_be_set(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(
                    f"{name!r} cannot be set: a name has a letter or more and no =, nothing has a zero byte"
                )
        return variables

    @field_validator("debug", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: Any) -> Any:
        return "off" if value is False else value  # as YAML reads it

    @field_validator("debug")
    @classmethod
    def _a_dump_of_each_rank(cls, value: str, info: ValidationInfo) -> str:
        if value == "cuda" and "recovery" in info.data and info.data["recovery"].standby:
            raise ValueError("must be off with recovery.standby: CUDA asks once where a process writes its core dump")
        return value

    @field_validator(*BY_KIND, mode="before")
    @classmethod
    def _section_by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "") -> LaunchConfig:
        """A configuration from plain data. Raises :class:`ConfigError` naming the first wrong key."""
        check_encoding(data, source)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise explain(error, cls, source) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> LaunchConfig:
        """Reads a YAML file and applies ``key=value`` overrides. Raises :class:`ConfigError`."""
        return cls.from_dict(apply_overrides(read_config(path), overrides), source=str(path))

    @classmethod
    def default(cls, overrides: Iterable[str] = ()) -> LaunchConfig:
        """The embedded default: the model that adds two numbers, on two CPU ranks."""
        return cls.from_yaml(shipped_configs() / DEFAULT, overrides)

    def override(self, *overrides: str) -> LaunchConfig:
        """A copy with ``key=value`` settings changed, as ``--set`` does. Raises :class:`ConfigError`."""
        return type(self).from_dict(apply_overrides(self.model_dump(by_alias=True, exclude_unset=True), overrides))

    def replace(self, changes: Mapping[str, Any]) -> LaunchConfig:
        """A copy with settings changed by dotted name, such as ``{"capture.enabled": False}``: values, not text.

        Raises:
            ConfigError: a key is unknown, or a value wrong; text is no number and no boolean here.
        """
        data = self.model_dump(by_alias=True, exclude_unset=True)
        made = type(self).from_dict(changed(data, changes.items()))
        for key, value in changes.items():
            taken = value_at(made.model_dump(by_alias=True), key)
            if type(taken) in (bool, int, float) and isinstance(value, str | bool) and type(taken) is not type(value):
                raise ConfigError(key, value, f"must be a value of type {type(taken).__name__}")
        return made
