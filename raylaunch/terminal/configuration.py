"""From the arguments of a command to the configuration of a launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from raylaunch.config import LaunchConfig, apply_overrides, shipped_configs
from raylaunch.config.files import DEFAULT, read_config
from raylaunch.config.model_argument import choose_engine, find_model, launch_name
from raylaunch.errors import ConfigError
from raylaunch.sglang.command_line import arguments_of
from raylaunch.sglang.source import TESTED, installed_version


def configuration_of(model: str | None, changes: Sequence[str], sglang: Sequence[str]) -> tuple[LaunchConfig, str]:
    """The configuration of a launch, and what was chosen for a model that has none; "" where nothing was.

    Args:
        model: a command's argument; None for the embedded default.
        changes: ``KEY=VALUE`` settings.
        sglang: arguments of SGLang's, as it spells them.
    Raises:
        ConfigError: something of it is wrong.
    """
    args = arguments_of(sglang)
    kind, path = ("shipped", str(shipped_configs() / DEFAULT)) if model is None else find_model(model)
    if kind in ("file", "shipped"):
        data = _with_arguments(apply_overrides(read_config(path), changes), args)
        return LaunchConfig.from_dict(data, source=DEFAULT if model is None else model), ""
    data = apply_overrides({"name": launch_name(path), "model": {"path": path}}, changes)
    data = _with_arguments(data, args)
    engine, why = data["engine"], ""
    if "kind" not in engine:
        engine["kind"], why = _engine(LaunchConfig.from_dict(data), args)
    config = LaunchConfig.from_dict(data)
    where = "of the Hub" if kind == "hub" else "a folder"
    return fitted(config), f"model {path}, {where}; engine {config.engine.kind}{f': {why}' if why else ''}"


def fitted(config: LaunchConfig) -> LaunchConfig:
    """With the default shapes of prefill up to the model's positions, where it has less than the longest of them."""
    from raylaunch.model.shape import read_model_config, shape_of

    if config.engine.kind == "sglang" or "prefill_tokens" in config.capture.model_fields_set:
        return config
    with suppress(ConfigError):  # it is told when the launch is checked
        data, _ = read_model_config(config)
        most = shape_of(data, config.model.path).max_positions
        shapes = sorted({min(shape, most) for shape in config.capture.prefill_tokens})
        if shapes != list(config.capture.prefill_tokens):
            return config.replace({"capture.prefill_tokens": shapes})
    return config


def _with_arguments(data: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """The sections with SGLang's arguments added, ``engine`` as a mapping."""
    engine = data.get("engine") or {}
    engine = {"kind": engine} if isinstance(engine, str) else _copied("engine", engine)
    if args:
        inner = _copied("engine.sglang", engine.get("sglang") or {})
        engine["sglang"] = {**inner, "args": {**_copied("engine.sglang.args", inner.get("args") or {}), **args}}
    return {**data, "engine": engine}


def _copied(key: str, section: Any) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise ConfigError(key, section, "must be a mapping of settings")
    return dict(section)


def _engine(config: LaunchConfig, args: dict[str, Any]) -> tuple[str, str]:
    from raylaunch.terminal.machine import find_gpus

    return choose_engine(
        sglang=installed_version(),
        tested=TESTED,
        gpus=len(find_gpus()[0]),
        device=config.engine.device,
        args=args or config.engine.sglang.args,
    )
