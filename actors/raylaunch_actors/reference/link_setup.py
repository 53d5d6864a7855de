"""What the reference engine needs of its communicator: its device, the sizes of its messages, memory for its graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.settings import Settings
from raylaunch_actors.communicator.shared_memory import arena_bytes_needed
from raylaunch_actors.reference.checkpoint import Checkpoint
from raylaunch_actors.reference.link import Communicators, Link
from raylaunch_actors.reference.weight_files import weight_files
from raylaunch_actors.spec import RankSpec

ARENA_SPARE = 1 << 20  # small inputs of many pieces are rounded up
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSizes:
    """What ``config.json`` says of a model's all-reduces: layers, elements per token, and their dtype."""

    layers: int
    hidden: int
    dtype: torch.dtype


def make_link(spec: RankSpec, path: Path) -> Link:
    """This rank's link for the model in the folder ``path``. The rank's device is current."""
    config, model = spec.config, model_sizes(spec, path)
    shapes = {*config.capture.prefill_tokens, *config.capture.decode_batch_sizes}
    sizes = tuple(sorted(shape * model.hidden * model.dtype.itemsize for shape in shapes))
    return link_of(spec, sizes, arena_bytes(spec, model, sizes[-1] if spec.plan.measures else 0))


def link_of(spec: RankSpec, sizes: tuple[int, ...], arena: int) -> Link:
    """A link for messages of these sizes in bytes, with ``arena`` bytes to share on a CPU."""
    config = spec.config
    settings = Settings(
        spec.rank,
        spec.world_size,
        config.communicator.kind,
        sizes,
        config.communicator.max_bytes,
        config.communicator.table_rows,
        arena,
        config.deadlines.collective,
        min(config.deadlines.collective, config.deadlines.connect / 2),  # so that the phase has time for another kind
        spec.bind_host,
    )
    kinds: Communicators
    if spec.device == "cuda":
        from raylaunch_actors.communicator.gpu import GpuCommunicators

        kinds = GpuCommunicators(settings)
    else:
        from raylaunch_actors.communicator.cpu import CpuCommunicators

        kinds = CpuCommunicators(settings)
    return Link(settings, kinds)


def model_sizes(spec: RankSpec, path: Path) -> ModelSizes:
    """Reads the model's ``config.json``. Raises RankFault if it does not say how large the all-reduces are."""
    data = json.loads((path / "config.json").read_text())
    text = data.get("text_config") or data
    try:
        layers, hidden = int(text["num_hidden_layers"]), int(text["hidden_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise RankFault(None, f"{path}/config.json does not say {error}") from None
    named = [spec.config.model.dtype, *(one.get(key) for one in (data, text) for key in ("dtype", "torch_dtype"))]
    dtype = next((DTYPES[str(one)] for one in named if one in DTYPES), None)
    return ModelSizes(layers, hidden, dtype or _stored_dtype(path, data))


def _stored_dtype(path: Path, data: Mapping[str, Any]) -> torch.dtype:
    """The weights' own, where they are on this node already; of a Hub model they come only after this."""
    try:
        checkpoint = Checkpoint(weight_files(path, data))
        return checkpoint.own_dtype() or torch.float32
    except RankFault:  # LOAD says so, if weights are wanted
        return torch.float32


def arena_bytes(spec: RankSpec, model: ModelSizes, probes: int) -> int:
    """Bytes to share: the staging slots, the inputs of the largest graph of every piece, and those of the probes."""
    capture = spec.config.capture
    rows = max(capture.prefill_tokens) + max(capture.decode_batch_sizes)
    pieces = model.layers + 1 if spec.plan.rounds else 0
    # Four bytes per element and two inputs alive hold for every dtype and every decoder of this engine.
    graphs = arena_bytes_needed(spec.config.communicator.max_bytes, pieces, rows, model.hidden, 4, 2)
    return graphs + probes + ARENA_SPARE
