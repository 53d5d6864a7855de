"""A model in the place of a configuration: what the argument names, and with which engine it is served by default."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from raylaunch.config.files import shipped_configs
from raylaunch.config.paths import absolute
from raylaunch.errors import ConfigError

Kind = Literal["file", "shipped", "folder", "hub"]
HUB_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
OF_A_MODEL = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
NAMES_SHOWN = 3


def kind_of(text: str, there: Literal["file", "folder", ""], shipped: Iterable[str], beside: Iterable[str]) -> Kind:
    """What a command's argument is: a file with a configuration, the name of one that ships, a model's folder, or its
    name on the Hub.

    Args:
        there: what the path ``text`` leads to; "" if to nothing.
        shipped: names of the configurations that ship, without their ending.
        beside: names in the folder in which ``text`` would be, for what may have been meant.
    Raises:
        ConfigError: it is none of them.
    """
    if there == "file":
        if text.endswith(OF_A_MODEL) or os.path.basename(text) == "config.json":
            raise _wrong(text, "is a file of a model: give its folder")
        return "file"
    if there == "folder":
        return "folder"
    folder, name = os.path.split(text)
    known = sorted(shipped)
    if folder in ("", "configs") and name.removesuffix(".yaml") in known:
        return "shipped"
    if page := HUB_PAGE.match(text):
        raise _wrong(text, f"is a page: give the name alone, {page[1]}")
    path = text.startswith((".", "/", "~")) or text.endswith(("/", ".yaml", ".yml")) or text.count("/") > 1
    if path or not HUB_NAME.fullmatch(text):
        close = difflib.get_close_matches(name.removesuffix(".yaml"), known, NAMES_SHOWN)
        close += difflib.get_close_matches(name, sorted(beside), NAMES_SHOWN)
        none = "no such file or folder" if path else "is no file, folder or Hub name such as Qwen/Qwen3-8B"
        raise _wrong(text, f"{none}{_meant(close) or f'; configurations that ship: {_listed(known)}'}")
    if not folder and (close := [one for one in known if one.startswith(text)] or _close(text, known)):
        raise _wrong(text, f"is no file, folder or configuration that ships{_meant(close)}")
    return "hub"


def find_model(text: str) -> tuple[Kind, str]:
    """The same of this machine, and where it is: an absolute path, or the name on the Hub. Raises ConfigError."""
    if not text:  # as a shell's variable that is not set
        raise _wrong(text, "is empty: give a model or a configuration, or leave it out, which takes one that ships")
    path = Path(os.path.expanduser(text))
    there: Literal["file", "folder", ""] = "file" if os.path.isfile(path) else "folder" if os.path.isdir(path) else ""
    files = {file.stem: str(file) for file in shipped_configs().glob("*.yaml")}
    try:
        beside = os.listdir(path.parent)
    except (OSError, ValueError):
        beside = []
    kind = kind_of(text, there, files, beside)
    if kind == "shipped":
        return kind, files[path.name.removesuffix(".yaml")]
    return kind, text if kind == "hub" else absolute(text)


def launch_name(model: str) -> str:
    """A name for the launch of a model, such as ``qwen3-8b`` for ``Qwen/Qwen3-8B``."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", os.path.basename(model.rstrip("/")).lower()).lstrip("_.-")
    return name[:64] or "model"


def choose_engine(
    *, sglang: str, tested: Iterable[str], gpus: int, device: str, args: Mapping[str, object]
) -> tuple[Literal["sglang", "reference"], str]:
    """The engine of a launch that names none, and why.

    Args:
        sglang: the installed version of SGLang, or ``absent``.
        tested: versions that raylaunch was run with.
        gpus: how many this machine has.
        device: ``engine.device``.
        args: SGLang's arguments, where there are any.
    """
    if args:
        return "sglang", "it is given arguments of SGLang's"
    if sglang == "absent":
        return "reference", "SGLang is not installed"
    if sglang not in tested:
        return "reference", f"SGLang {sglang} is installed, which raylaunch was never run with"
    if device == "cpu":
        return "reference", "it is to run on CPUs"
    if not gpus:
        return "reference", "there is no GPU here"
    return "sglang", f"SGLang {sglang} is installed, and there {'is 1 GPU' if gpus == 1 else f'are {gpus} GPUs'}"


def _close(text: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(text.removesuffix(".yaml"), list(known), NAMES_SHOWN, 0.75)


def _meant(close: list[str]) -> str:
    return f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _wrong(text: str, expected: str) -> ConfigError:
    return ConfigError("MODEL", text, expected)
