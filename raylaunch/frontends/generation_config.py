"""How a model wants tokens to be chosen where a request says nothing: its ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, RequestError
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model import hub
from raylaunch.values.json_text import from_json

FILE = "generation_config.json"
OF_BOTH = ("temperature", "top_k", "top_p")
OF_SGLANG = ("min_p", "repetition_penalty")
CHANGES_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_length": (20,),  # transformers' own
    "max_new_tokens": (),
    "max_time": (),
    "stop_strings": ([],),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({},),
    "watermarking_config": (),
}
"""What else the file may ask of an answer, and values that ask for nothing; null always does."""


@dataclass(frozen=True)
class SamplingDefaults:
    """What holds where a request says nothing.

    Attributes:
        values: sampling parameters by our names; those that only SGLang knows by its own. Empty where the model says
            nothing, or is not asked.
        why: where they come from.
        unused: what the model asks for besides and the engine does not do, such as ``min_p = 0.1``.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In a sentence, for the report."""
        text = ", ".join(f"{name} {value:g}" for name, value in self.values.items())
        if self.values.get("temperature") == 0:
            text = f"greedy{text.removeprefix('temperature 0')}"
        unused = f"; not used of it: {', '.join(self.unused)}" if self.unused else ""
        return f"{text or 'greedy in Python, temperature 1 over HTTP'} ({self.why}{unused})"


def sampling_defaults(config: LaunchConfig, revision: str | None = None) -> SamplingDefaults:
    """What the model's ``generation_config.json`` says, unless ``engine.sampling_defaults`` is ``openai``.

    Args:
        revision: of a model on the Hub, the one to read; else the configured one.
    Raises:
        ConfigError: the file cannot be read, or asks for something impossible.
    """
    engine, sglang = config.engine, config.engine.kind == "sglang"
    asked = engine.sglang.args.get("sampling_defaults", engine.sampling_defaults)
    if asked != "model":
        return SamplingDefaults(why=f"engine.sampling_defaults is {asked}")
    file = _file(config.model.path, revision or config.model.revision)
    if file is None:
        return SamplingDefaults(why=f"the model has no {FILE}")
    try:
        data = from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("model.path", config.model.path, f"its {FILE} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError("model.path", config.model.path, f"its {FILE} must hold a mapping")
    try:
        found = read(data, (*OF_BOTH, *OF_SGLANG) if sglang else OF_BOTH)
    except RequestError as error:
        expected = f"its {FILE} has {error}; engine.sampling_defaults=openai leaves it unread"
        raise ConfigError("model.path", config.model.path, expected) from None
    preferred = _preferred(engine.sglang.args.get("preferred_sampling_params")) if sglang else {}
    values = {name: value for name, value in found.values.items() if name not in preferred}
    why = f"{found.why}; over HTTP SGLang takes them for chats" if sglang and values else found.why
    return SamplingDefaults(values, why, found.unused)


def read(data: Mapping[str, Any], known: tuple[str, ...]) -> SamplingDefaults:
    """What the file's ``data`` says, for an engine that knows the sampling parameters ``known``.

    Raises:
        RequestError: names the value that is impossible.
    """
    given = {name: data[name] for name in known if data.get(name) is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if data.get("do_sample") is False:
        given = {"temperature": 0.0} | {name: given[name] for name in ("repetition_penalty",) if name in given}
        why = f"{FILE}: do_sample is false"
    else:
        why = FILE if given else f"{FILE} says nothing of it"
    own = {name: given[name] for name in OF_BOTH if name in given}
    checked = SamplingParams.of(None, own) if own else None
    for name, value in given.items():
        if name not in own and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise RequestError(f"{name} = {value!r}: must be a number")
    values = {name: getattr(checked, name) if name in own else value for name, value in given.items()}
    unused = tuple(
        f"{name} = {data[name]!r}"
        for name, nothing in CHANGES_NOTHING.items()
        if name not in known and data.get(name) is not None and data[name] not in nothing
    )
    return SamplingDefaults(values, why, unused)


def _preferred(given: Any) -> Mapping[str, Any]:
    """SGLang's argument ``preferred_sampling_params``, which goes before the model's; it may be JSON."""
    if isinstance(given, str):
        try:
            given = from_json(given)
        except ValueError:  # SGLang says so itself
            return {}
    return given if isinstance(given, Mapping) else {}


def _file(path: str, revision: str | None) -> Path | None:
    """Where the file is, fetched from the Hub if need be; None if there is none."""
    folder = Path(path)
    if not folder.is_absolute():  # as the configuration has made every folder
        try:
            folder = hub.snapshot(path, revision, [FILE])
        except (hub.HubError, ValueError):  # told where config.json is read
            return None
    return folder / FILE if (folder / FILE).is_file() else None
