"""The shape of a model, read from its ``config.json``; what a launch needs of it is :mod:`raylaunch.model_check`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylaunch.config import LaunchConfig
from raylaunch.config.address import cluster_to_join
from raylaunch.config.context import POSITIONS, longest_context, trained_context
from raylaunch.errors import ConfigError
from raylaunch.model import hub
from raylaunch.values.json_text import from_json

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelShape:
    """What the driver must know of a model.

    Attributes:
        architecture: name of its class, such as ``Qwen3ForCausalLM``.
        max_positions: longest context, in tokens, with what rotary scaling makes of it.
        vocab_size: token ids are below it.
        heads: attention heads.
        kv_heads: key and value heads.
        scaled_from: positions that its configuration names, where rotary scaling makes more of them.
        layers, hidden_size: decoder layers, and elements per token between them; 0 where nothing says so.
        dtype: of its weights and activations, where its configuration names one that the reference engine knows.
        commit: of a model on the Hub, the one that this was read of; None for a folder.
    """

    architecture: str
    max_positions: int
    vocab_size: int
    heads: int
    kv_heads: int
    scaled_from: int | None = None
    layers: int = 0
    hidden_size: int = 0
    dtype: str = ""
    commit: str | None = None

    def limit(self) -> str:
        """The longest context in words, for messages."""
        if self.scaled_from is not None:
            return f"{self.max_positions}, {self.scaled_from} positions with the model's rotary scaling"
        return f"{self.max_positions}, the model's positions; rotary scaling in its config.json would allow more"


def read_model_config(config: LaunchConfig) -> tuple[dict[str, Any], str | None]:
    """The model's ``config.json``, from its folder or the Hub, and the commit that it has there. Raises
    :class:`ConfigError`."""
    path = config.model.path
    folder = Path(path)
    if folder.is_absolute():  # else it is a name on the Hub: folders were made absolute when they were read
        file = folder / "config.json"
        try:
            is_folder, is_file = folder.is_dir(), file.is_file()
        except OSError as error:  # such as of a folder above it that this user may not enter
            raise ConfigError("model.path", path, f"cannot be looked into: {error.strerror}") from None
        if not is_folder:
            raise ConfigError("model.path", path, "no such folder; give a folder with config.json, or a Hub name")
        if not is_file:
            raise ConfigError("model.path", path, "the folder has no config.json")
    else:
        file = _from_hub(config)
    try:
        data = from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("model.path", path, f"its config.json cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError("model.path", path, "its config.json must hold a mapping")
    return data, hub.commit_of(file.parent)


def overridden_by_sglang(config: LaunchConfig) -> dict[str, Any]:
    """What SGLang is told to take in place of what ``config.json`` says. Raises :class:`ConfigError`."""
    name = "json_model_override_args"
    text = config.engine.sglang.args.get(name) if config.engine.kind == "sglang" else None
    try:
        data = {} if text is None else from_json(text)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"engine.sglang.args.{name}", text, f"must be JSON in a text: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"engine.sglang.args.{name}", text, "must be a JSON object")
    return data


def _from_hub(config: LaunchConfig) -> Path:
    path, revision = config.model.path, config.model.revision
    sglang = config.engine.kind == "sglang"
    here = not cluster_to_join(config.placement.address)  # else the ranks' nodes have caches of their own
    weights = here and not sglang and config.model.load_format != "dummy"
    try:
        answer = hub.ask(path, revision)
        folder = hub.snapshot(path, revision, ["config.json"], weights=weights and answer.commit is None)
    except ValueError:
        raise ConfigError("model.path", path, "is neither a folder nor a Hub name such as Qwen/Qwen3-8B") from None
    except hub.HubError as error:
        raise ConfigError("model.path", path, f"no such folder here, and the Hub does not give it: {error}") from None
    if sglang and answer.commit is None:
        hub.go_offline()  # SGLang asks for the files of the model by its name, on the driver and in the ranks
    return folder / "config.json"


def shape_of(data: Mapping[str, Any], path: str, commit: str | None = None) -> ModelShape:
    """The shape in a ``config.json``; a vision-language model keeps it under ``text_config``."""
    inner = data.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, Mapping) else data

    def number(key: str, default: int | None = None) -> int:
        value = next((one[key] for one in (text, data) if one.get(key) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != default):
            raise ConfigError("model.path", path, f"its config.json has {key} = {value!r}: must be a positive integer")
        return value

    heads = number("num_attention_heads")
    of_text = text if any(text.get(name) is not None for name in POSITIONS) else {**data, **text}
    try:
        trained, longest = trained_context(of_text), longest_context(of_text)
    except ValueError as error:
        raise ConfigError("model.path", path, f"its config.json has {error}") from None
    names = data.get("architectures")
    named = [str(one.get(key)) for one in (data, text) for key in ("dtype", "torch_dtype")]
    return ModelShape(
        architecture=str(names[0]) if isinstance(names, list) and names else "unknown",
        max_positions=longest,
        vocab_size=number("vocab_size"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        scaled_from=trained if longest > trained else None,
        layers=number("num_hidden_layers", 0),
        hidden_size=number("hidden_size", 0),
        dtype=next((one for one in named if one in DTYPES), ""),
        commit=commit,
    )


def with_context(config: LaunchConfig, shape: ModelShape) -> LaunchConfig:
    """The configuration with its context said outright where SGLang would make another one of the rotary scaling."""
    said = config.engine.max_context or config.engine.sglang.args.get("context_length")
    if config.engine.kind != "sglang" or said or shape.scaled_from is None:
        return config
    return config.replace({"engine.max_context": shape.max_positions})
