"""Which files of a folder hold a model's weights: decided as transformers decides, and without torch.

``model.safetensors`` comes before an index, an index before anything else; of an index only the names of its files
count, and files that neither names (``consolidated.safetensors``, variants such as ``model.fp16.safetensors``) are not
read. What transformers would read and this engine does not is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylaunch.errors import RankFault
from raylaunch.values.json_text import from_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_MOST_NAMED = 6
_LONGEST = 200


def weight_files(folder: Path, config: Mapping[str, Any] | None = None) -> list[Path]:
    """The safetensors files to read, in transformers' order: where two hold the same tensor, the last one counts.

    Args:
        folder: the model's.
        config: its ``config.json``, None to read it; ``transformers_weights`` there names the file.

    Raises:
        RankFault: there are none, one is missing, or transformers would read others, which this engine cannot.
    """
    if (folder / ADAPTER).exists():
        text = "transformers would change the model by this adapter, and the reference engine knows none: merge it into"
        raise RankFault(None, f"{folder} holds {ADAPTER}: {text} the weights, or move it elsewhere")
    names = sorted(file.name for file in folder.iterdir())
    if any(_DISTRIBUTED.fullmatch(name) for name in names):
        raise RankFault(
            None, f"{folder} holds a distributed checkpoint: save it with save_pretrained() for one process"
        )
    if config is None:
        config = from_json((folder / "config.json").read_text(encoding="utf-8"))
    if (named := config.get("transformers_weights")) is not None:
        return _named(folder, str(named))
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _of_index(folder / INDEX)
    raise RankFault(None, f"{folder} holds neither {SINGLE} nor {INDEX}; {_instead(names)}")


def index_metadata(files: Sequence[Path]) -> Mapping[str, Any]:
    """What the index that names these files says of the whole checkpoint; nothing if there is none."""
    index = files[0].parent / INDEX
    if files[0].name == SINGLE or not index.is_file():
        return {}
    metadata = from_json(index.read_text(encoding="utf-8")).get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def _named(folder: Path, name: str) -> list[Path]:
    file, said = folder / name, f"{folder}/config.json: transformers_weights = {few([name])}"
    if not _stays_inside(name) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise RankFault(None, f"{said} is no safetensors file in the folder")
    if not os.path.isfile(file):
        raise RankFault(None, f"{said} does not exist")
    return _of_index(file) if name.endswith(".json") else [file]


def _of_index(index: Path) -> list[Path]:
    try:
        weights = from_json(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RankFault(None, f"{index} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(weights, dict) or not weights:
        raise RankFault(None, f"{index}: weight_map must name the tensors and their files")
    names = sorted({str(name) for name in weights.values()})
    if outside := [name for name in names if not _stays_inside(name)]:
        raise RankFault(None, f"{index}: {few(outside)}: weight_map must name files in its folder")
    if gone := [name for name in names if not os.path.isfile(index.parent / name)]:
        raise RankFault(None, f"{index.parent}: {few(gone)}: named by {index.name} and not there")
    return [index.parent / name for name in names]


def _stays_inside(name: str) -> bool:
    """Told by the name alone: files of the Hub's cache are links that lead out of their folder."""
    return not os.path.isabs(name) and ".." not in Path(name).parts


def _instead(names: list[str]) -> str:
    """What the folder has in the place of weights that could be read."""
    if any(name in _PICKLED or name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "its weights are pickled, and only safetensors are read: save them with save_pretrained()"
    if any(name.endswith(".gguf") for name in names):
        return "its weights are GGUF, and only safetensors are read"
    others = [name for name in names if name.endswith(".safetensors")]
    return f"{few(others)} would not be read by transformers either" if others else "model.load_format=dummy needs none"


def few(names: Collection[str]) -> str:
    """The first of some names, and how many more there are; of a very long one its beginning."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    shown = (name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in list(names)[:_MOST_NAMED])
    return ", ".join(shown) + more
