"""Paths in a configuration are the driver's: made absolute once, where they are read.

Ranks may run in another folder, on another node, with another home. What stands in a file is relative to the file's
folder, everything else to the working directory; a leading ``~`` is the driver's home.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Bases = Sequence[Path]
"""Folders that a path may be relative to; the first counts where it is in none of them."""

HOME = "~"


def working_directory() -> Path:
    """Raises ValueError if it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ValueError("is relative, and the working directory no longer exists: cd to one that does") from None


def absolute(text: str, bases: Bases | None = None) -> str:
    """A path that is valid in any working directory. Raises ValueError if it is empty or its home is unknown.

    Args:
        bases: None takes the working directory.
    """
    if not text:
        raise ValueError("is empty: give a path, or leave it out")
    path = Path(os.path.expanduser(text))
    if path.parts[:1] and path.parts[0].startswith(HOME):
        raise ValueError(f"the home folder of {path.parts[0]} is not known here: give an absolute path")
    if not path.is_absolute():
        path = (bases or [working_directory()])[0].absolute() / path
    # A link counts before the ".." that follows it, as for the kernel; elsewhere links stay as they were written.
    return str(path.resolve() if ".." in path.parts else path)


def folder_or_name(text: str, bases: Bases | None = None) -> str:
    """A folder, made absolute, or a name on the Hub such as ``Qwen/Qwen3-8B``, left as it is.

    It is a folder if it looks like one (``./m``, ``../m``, ``~/m``, ``/m``, ``m/``), there or not, or if
    there is one of that name.
    """
    if text.startswith((".", "/", HOME)) or not text:
        return absolute(text, bases)
    if (found := _first(text, bases, os.path.isdir)) is not None:
        return found
    return absolute(text, bases) if text.endswith("/") else text


def file_or_text(text: str, bases: Bases | None = None) -> str:
    """A file that exists, or that looks like one (``./t.jinja``), made absolute; else the text as it is."""
    if text.startswith(("./", "../", f"{HOME}/")):
        return absolute(text, bases)
    return _first(text, bases, os.path.isfile) or text


def _first(text: str, bases: Bases | None, exists: Callable[[Path], bool]) -> str | None:
    if "\n" in text or "\0" in text or len(text) > 4096:
        return None
    known = [working_directory()] if bases is None and not os.path.isabs(text) else bases or [Path()]
    return next((absolute(text, [base]) for base in known if exists(base / text)), None)


def _after_at(text: str, bases: Bases | None = None) -> str:
    return f"@{absolute(text[1:], bases)}" if text.startswith("@") else text


def _adapter(text: str, bases: Bases | None = None) -> str:
    name, separator, path = text.partition("=")
    return f"{name}={folder_or_name(path, bases)}" if separator else folder_or_name(text, bases)


MakeAbsolute = Callable[[str, Bases | None], str]

OF_SGLANG: Mapping[str, MakeAbsolute] = {
    **dict.fromkeys(
        (
            "crash_dump_folder", "debug_tensor_dump_output_folder", "decrypted_config_file",
            "decrypted_draft_config_file", "dllm_algorithm_config", "download_dir", "export_metrics_to_file_dir",
            "file_storage_path", "flexkv_config_file", "kt_weight_path", "lmcache_config_file",
            "modelopt_checkpoint_restore_path", "modelopt_checkpoint_save_path", "modelopt_export_path",
            "msprobe_dump_config", "pdmux_config_path", "ple_offload_dir", "quantization_param_path",
            "rl_quant_profile", "spec_trace_dir", "speculative_dspark_confidence_sts_path",
            "speculative_dspark_sps_table_path", "speculative_ngram_external_corpus_path",
        ),
        absolute,
    ),
    "completion_template": file_or_text,
    "hicache_storage_backend_extra_config": _after_at,
    "init_expert_location": file_or_text,
    "lora_paths": _adapter,
    "model_checksum": file_or_text,
    "speculative_adaptive_config": file_or_text,
    "speculative_draft_model_path": folder_or_name,
    "uno_lora_path": folder_or_name,
}  # fmt: skip
"""Arguments of SGLang's that are paths, or may be."""


def sglang_arguments(args: Mapping[str, Any], bases: Bases | None = None) -> dict[str, Any]:
    """SGLang's arguments with paths made absolute, those in lists and mappings too. Raises ValueError."""
    result = dict(args)
    for name in OF_SGLANG.keys() & args.keys():
        try:
            result[name] = _made_absolute(OF_SGLANG[name], args[name], bases)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    return result


def _made_absolute(make: MakeAbsolute, value: Any, bases: Bases | None) -> Any:
    if isinstance(value, str):
        return make(value, bases) if value else value
    if isinstance(value, list):
        return [_made_absolute(make, one, bases) for one in value]
    if isinstance(value, Mapping):  # an adapter with its path among other fields, or paths by their adapters' names
        named = "lora_path" in value
        return {
            key: one if named and key != "lora_path" else _made_absolute(make, one, bases) for key, one in value.items()
        }
    return value


SETTINGS: Mapping[str, MakeAbsolute] = {
    "model.path": folder_or_name,
    "model.tokenizer": folder_or_name,
    "engine.sglang.cache_dir": absolute,
    "serve.chat_template": file_or_text,
    "debug_folder": absolute,
}
"""Settings that are paths, or may be."""


def relative_to_file(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A file's sections, with paths relative to its folder made absolute.

    Names without ``./`` are looked for in the working directory too, if there is none in the file's folder. What is
    wrong is left as it is, to be refused with its key when the sections are checked.
    """
    bases = [folder]
    with contextlib.suppress(ValueError):
        bases.append(working_directory())
    return _sections(data, "", bases)


def _sections(data: Mapping[str, Any], prefix: str, bases: Bases) -> dict[str, Any]:
    result = dict(data)
    for name, value in data.items():
        key = f"{prefix}{name}"
        with contextlib.suppress(ValueError):
            if key in SETTINGS and value:
                result[name] = _made_absolute(SETTINGS[key], value, bases)
            elif key == "engine.sglang.args" and isinstance(value, Mapping):
                result[name] = sglang_arguments(value, bases)
            elif isinstance(value, Mapping):
                result[name] = _sections(value, f"{key}.", bases)
    return result
