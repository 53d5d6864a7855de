"""What the reference engine needs of its communicator: its device, the sizes of its messages, memory for its graphs."""

from __future__ import annotations

from pathlib import Path

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


def make_link(spec: RankSpec, dtype: torch.dtype) -> Link:
    """This rank's link for messages of the model's hidden states in ``dtype``. The rank's device is current."""
    capture = spec.config.capture
    shapes = {*capture.prefill_tokens, *capture.decode_batch_sizes}
    sizes = tuple(sorted(shape * spec.shape.hidden_size * dtype.itemsize for shape in shapes))
    return link_of(spec, sizes, arena_bytes(spec, sizes[-1] if spec.plan.measures else 0))


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


def message_dtype(spec: RankSpec, path: Path) -> torch.dtype:
    """Of the model's all-reduces: as configured, as its ``config.json`` has it, or the weights' own, where they are on
    this node already; of a Hub model they come only after this."""
    for named in (spec.config.model.dtype, spec.shape.dtype):
        if named in DTYPES:
            return DTYPES[named]
    try:
        return Checkpoint(weight_files(path)).own_dtype() or torch.float32
    except RankFault:  # LOAD says so, if weights are wanted
        return torch.float32


def arena_bytes(spec: RankSpec, probes: int) -> int:
    """Bytes to share: the staging slots, the inputs of the largest graph of every piece, and those of the probes."""
    capture = spec.config.capture
    rows = max(capture.prefill_tokens) + max(capture.decode_batch_sizes)
    pieces = spec.shape.layers + 1 if spec.plan.rounds else 0
    # Four bytes per element and two inputs alive hold for every dtype and every decoder of this engine.
    graphs = arena_bytes_needed(spec.config.communicator.max_bytes, pieces, rows, spec.shape.hidden_size, 4, 2)
    return graphs + probes + ARENA_SPARE
