"""Reads a rank's part of a safetensors checkpoint, and only that part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raylaunch.errors import RankFault
from raylaunch_actors.reference.tensor_parallel import Split
from raylaunch_actors.reference.weight_files import index_metadata

# Names of dtypes in safetensors files; those of quantised weights are not among them.
FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """The files that hold a model's weights; see :func:`.weight_files.weight_files`.

    Attributes:
        files: tensor name -> file that holds it (after :meth:`open`).
        bytes_read: bytes of the slices read so far, in the checkpoint's dtype.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.files: dict[str, Path] = {}
        self.bytes_read = 0
        self._open: dict[Path, Any] = {}

    def open(self) -> None:
        """Opens every file. Raises RankFault if one is missing or damaged."""
        for path in self.paths:
            self.files |= dict.fromkeys(self._handle(path).keys(), path)

    def close(self) -> None:
        """Closes the files."""
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self._handle(self.files[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The tensor's dtype by its name in the file, such as ``BF16``."""
        return str(self._handle(self.files[name]).get_slice(name).get_dtype())

    def own_dtype(self) -> torch.dtype | None:
        """The dtype that the index names, else that of the first floating tensor of the first file, as transformers
        has it; None if that is none of a plain model's. Raises RankFault if the file is damaged."""
        if named := index_metadata(self.paths).get("dtype"):
            dtype = getattr(torch, str(named), None)
            return dtype if isinstance(dtype, torch.dtype) else None
        handle = self._handle(self.paths[0])
        names = (str(handle.get_slice(name).get_dtype()) for name in handle.keys())  # noqa: SIM118  no mapping
        return next((FLOATING[name] for name in names if name in FLOATING), None)

    def pieces(self, name: str, nbytes: int) -> Iterator[Tensor]:
        """A tensor of at least one dimension, in pieces of about ``nbytes``; not counted as read."""
        whole, shape = self._handle(self.files[name]).get_slice(name), self.shape(name)
        rows = max(1, nbytes // (4 * max(1, math.prod(shape[1:]))))
        for start in range(0, shape[0], rows):
            yield whole[start : start + rows]

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
                raise RankFault(None, f"{file} does not exist") from error
            except (SafetensorError, OSError) as error:
                raise RankFault(
                    None,
                    f"{file} ({file.stat().st_size} bytes) is damaged or not a safetensors file: {error}",
                ) from error
        return self._open[file]
