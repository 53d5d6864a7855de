"""How weights are read: the formats of ``model.load_format``, and what each of them needs on the nodes of the ranks."""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raylaunch.config import LaunchConfig
from raylaunch.model import hub
from raylaunch.values.json_text import from_json

OF_REFERENCE = ("auto", "safetensors", "dummy")
PATTERN = "model-rank-{rank}-part-{part}.safetensors"
"""Names of the files of ``sharded_state``, unless ``model_loader_extra_config`` has another ``pattern``."""
PLACES = re.compile(r"\{(rank|part)[^{}]*\}")
"""In such a pattern; with how a number is to be written, as in ``{rank:02d}``."""


@dataclass(frozen=True)
class LoadFormat:
    """A way to read weights.

    Attributes:
        files: patterns of names; those of the first one that any file has are read. None where nothing is read.
        package: that ranks import for it, and pip's name of it.
        refused: why no launch can have it; "" if one can.
        keeps: whether every rebuild reads the same files, through the kernel's page cache.
    """

    files: tuple[str, ...] = ()
    package: tuple[str, str] = ("", "")
    refused: str = ""
    keeps: bool = False


_SAFETENSORS = (hub.WEIGHTS,)
_ANY = (hub.WEIGHTS, "*.bin", "*.pt")
_NO_FOLDER = "reads a model.path that is no folder with a config.json, which raylaunch needs"

FORMATS = {
    "auto": LoadFormat(_ANY, keeps=True),
    "safetensors": LoadFormat(_SAFETENSORS, keeps=True),
    "pt": LoadFormat(("*.pt",), keeps=True),
    "npcache": LoadFormat(("*.bin",)),  # which become other files
    "mistral": LoadFormat(("consolidated*.safetensors",), keeps=True),
    "layered": LoadFormat(_ANY, keeps=True),
    "flash_rl": LoadFormat(_ANY, keeps=True),
    "bitsandbytes": LoadFormat(_ANY, ("bitsandbytes", "bitsandbytes"), keeps=True),
    "sharded_state": LoadFormat(_SAFETENSORS, keeps=True),
    "presharded": LoadFormat(_ANY),  # which become other files
    "fastsafetensors": LoadFormat(_SAFETENSORS, ("fastsafetensors", "fastsafetensors")),  # past the page cache
    "instanttensor": LoadFormat(_SAFETENSORS, ("instanttensor", "instanttensor")),
    "runai_streamer": LoadFormat(_SAFETENSORS, ("runai_model_streamer", "runai-model-streamer")),
    "dummy": LoadFormat(),
    "remote_instance": LoadFormat(),
    "gguf": LoadFormat(refused=_NO_FOLDER),
    "expert_pack": LoadFormat(refused=_NO_FOLDER),
    "remote": LoadFormat(refused=_NO_FOLDER),
    "private": LoadFormat(refused="needs a package that only SGLang's vendor has"),
}
"""By name. What an installed SGLang knows beside them is taken as it is."""
KEPT = tuple(name for name, one in FORMATS.items() if one.keeps)


@dataclass(frozen=True)
class Weights:
    """What the ranks of a launch read on a node.

    Attributes:
        path, revision: a folder, or a name on the Hub and what is read of it.
        engine, load_format: which decide what is read of it.
        pattern: of the names of the files of ``sharded_state``.
        ranks: on that node, where each reads files of its own.
        of: in the group.
    """

    path: str
    revision: str | None
    engine: str
    load_format: str
    pattern: str
    ranks: tuple[int, ...]
    of: int

    @property
    def format(self) -> LoadFormat:
        return FORMATS.get(self.load_format, LoadFormat())


def weights_of(config: LaunchConfig, ranks: Iterable[int], revision: str | None = None) -> Weights:
    """What these ranks will read; of a model on the Hub this ``revision``, else the configured one."""
    extra = config.engine.sglang.args.get("model_loader_extra_config") or {}
    try:
        told = from_json(extra) if isinstance(extra, str) else extra
        pattern = str(dict(told).get("pattern", PATTERN))
    except (TypeError, ValueError):  # SGLang says so
        pattern = PATTERN
    model, world = config.model, config.parallel.tensor_parallel_size
    own = tuple(ranks) if model.load_format == "sharded_state" else ()
    revision = revision or model.revision
    return Weights(model.path, revision, config.engine.kind, model.load_format, pattern, own, world)


def reads_files(load_format: str) -> bool:
    """Whether ranks read weights of the model's folder."""
    return bool(FORMATS.get(load_format, FORMATS["auto"]).files)


def is_checkpoint(load_format: str) -> bool:
    """Whether it reads safetensors as an index names them, if there is one."""
    return FORMATS.get(load_format, FORMATS["auto"]).files[:1] == _SAFETENSORS and load_format != "sharded_state"


def problem_with(weights: Weights, *, fetched: bool = True) -> str:
    """What this node lacks to load them, in a line; "" if it is nothing, or nobody can say.

    Args:
        fetched: whether files are here that the Hub has.
    """
    package, name = weights.format.package
    if package and importlib.util.find_spec(package) is None:
        return f"needs the package {package}, which {_here()} has not: pip install {name}"
    try:
        if fetched or Path(weights.path).is_absolute():
            files_of(weights)
    except LookupError as error:
        return str(error)
    return ""


def files_of(weights: Weights) -> list[Path]:
    """The files with weights that ranks of this node read, in order; none where the folder is not known yet.

    Raises:
        LookupError: there are none, or not those that there should be; says which.
    """
    folder = Path(weights.path) if Path(weights.path).is_absolute() else hub.cached(weights.path, weights.revision)
    patterns = weights.format.files
    if folder is None or not folder.is_dir() or not patterns:
        return []
    if weights.load_format == "sharded_state":
        return [file for rank in weights.ranks for file in _shards(folder, weights, rank)]
    found = next((files for one in patterns if (files := sorted(folder.glob(one)))), [])
    if not found:
        raise LookupError(_lacks(folder, " or ".join(patterns)))
    if patterns[0] == hub.WEIGHTS and found[0].match(hub.WEIGHTS):
        if file := hub.missing_weights(folder):
            raise LookupError(_lacks(folder, file))
        found = _of_index(folder, found)
    return found


def _of_index(folder: Path, found: list[Path]) -> list[Path]:
    index = folder / hub.INDEX
    if not index.is_file():
        return found
    named = set(from_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [file for file in found if file.name in named]


def _shards(folder: Path, weights: Weights, rank: int) -> list[Path]:
    """Files of a rank. Raises LookupError if there are none, or some for more ranks than the group has."""

    try:
        wanted = weights.pattern.format(rank=rank, part="*")  # as SGLang does
        files, every = sorted(folder.glob(wanted)), sorted(folder.glob(PLACES.sub("*", weights.pattern)))
    except (LookupError, ValueError, NotImplementedError):
        text = f"is given the pattern {weights.pattern!r}: must be names of files with {{rank}} and {{part}} in them"
        raise LookupError(text) from None
    saved = _read_by(weights.pattern)
    numbers = {int(match[1]) for file in every if (match := saved.fullmatch(file.name)) and match.groups()}
    if numbers and (many := max(numbers) + 1) > weights.of:
        text = f"{folder} on {_here()} was saved by {many} ranks, and parallel.tensor_parallel_size is {weights.of}"
        raise LookupError(text)
    if not files:
        raise LookupError(f"{_lacks(folder, wanted)}; as many ranks must save it as will read it")
    return files


def _read_by(pattern: str) -> re.Pattern[str]:
    """What reads the ranks of the names that a pattern makes."""
    parts = PLACES.split(pattern)  # text, and the name of the place behind it, in turns
    what = {"rank": r"(\d+)", "part": ".*"}
    return re.compile("".join(what[one] if at % 2 else re.escape(one) for at, one in enumerate(parts)))


def _lacks(folder: Path, what: str) -> str:
    return f"needs {what} in {folder}, where {_here()} has none"


def _here() -> str:
    return f"node {platform.node()}"
