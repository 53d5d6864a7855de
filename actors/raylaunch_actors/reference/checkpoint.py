"""Reads a rank's part of a safetensors checkpoint, and only that part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raylaunch.errors import RankFault
from raylaunch_actors.reference.tensor_parallel import Split

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """A folder with ``model.safetensors``, or with an index and its shards.

    Attributes:
        files: tensor name -> file that holds it (after :meth:`open`).
        bytes_read: bytes of the slices read so far, in the checkpoint's dtype.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files: dict[str, Path] = {}
        self.bytes_read = 0
        self._open: dict[Path, Any] = {}

    def open(self) -> None:
        """Opens every file. Raises RankFault if one is missing, damaged or lacks a tensor it should hold."""
        index = self.folder / INDEX
        if index.exists():
            self.files = {name: self.folder / file for name, file in _weight_map(index).items()}
        elif (self.folder / SINGLE).exists():
            self.files = dict.fromkeys(self._handle(self.folder / SINGLE).keys(), self.folder / SINGLE)
        else:
            raise RankFault(None, f"{self.folder} holds neither {SINGLE} nor {INDEX}")
        held = {file: set(self._handle(file).keys()) for file in sorted(set(self.files.values()))}
        for name, file in self.files.items():
            if name not in held[file]:
                raise RankFault(None, f"{index} says that {file.name} holds {name}, and it does not")

    def close(self) -> None:
        """Closes the files."""
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self._handle(self.files[name]).get_slice(name).get_shape())

    def read(self, name: str, split: Split, rank: int, world_size: int) -> Tensor:
        """The rank's part of a tensor, on the CPU, in the checkpoint's dtype. Raises RankFault."""
        file = self.files[name]
        try:
            whole = self._handle(file).get_slice(name)
            shape = tuple(whole.get_shape())
            if split.dim is None or world_size == 1:
                tensor: Tensor = whole[...] if shape else self._handle(file).get_tensor(name)
            else:
                dim, ranges = split.ranges(name, shape, rank, world_size)
                before = [slice(None)] * dim
                parts = [whole[(*before, slice(start, stop))] for start, stop in ranges]
                tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
        except SafetensorError as error:
            raise RankFault(None, f"{file}: {name} cannot be read: {error}") from error
        self.bytes_read += tensor.nbytes
        return tensor

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(str(file), framework="pt")
            except FileNotFoundError as error:
                raise RankFault(None, f"{file} is named by the index and does not exist") from error
            except (SafetensorError, OSError) as error:
                raise RankFault(
                    None,
                    f"{file} ({file.stat().st_size} bytes) is damaged or not a safetensors file: {error}",
                ) from error
        return self._open[file]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weights = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise RankFault(None, f"{index} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(weights, dict) or not weights:
        raise RankFault(None, f"{index}: weight_map must name the tensors and their files")
    return {str(name): str(file) for name, file in weights.items()}
