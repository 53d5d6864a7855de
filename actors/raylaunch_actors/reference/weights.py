"""Fills a model's parameters: from a checkpoint, or with seeded dummy values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raylaunch.errors import RankFault
from raylaunch_actors.reference.checkpoint import Checkpoint
from raylaunch_actors.reference.tensor_parallel import Plan, Split

# Module names are not always the names in published checkpoints: model type -> (module prefix, checkpoint
# prefix).
_QWEN_VL = (("model.language_model.", "model."), ("model.visual.", "visual."))
_PREFIXES = {"qwen2_vl": _QWEN_VL, "qwen2_5_vl": _QWEN_VL}
_UNUSED = (r"rotary_emb\.inv_freq$",)  # computed, though old checkpoints store it
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True)
class Target:
    """A parameter to fill: its name, whole shape and split."""

    name: str
    shape: tuple[int, ...]
    split: Split


@dataclass(frozen=True)
class Shard:
    """Where this process stands, and what its parameters are to be."""

    rank: int
    world_size: int
    dtype: torch.dtype
    device: torch.device


def targets(model: Any, plan: Plan) -> list[Target]:
    """Every parameter of the model once; tied ones under the name of their source."""
    tied = tied_names(model)
    return [
        Target(name, tuple(parameter.shape), plan.split(name, parameter.dim()))
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in tied
    ]


def tied_names(model: Any) -> dict[str, str]:
    """Tied parameter -> the parameter whose value it shares."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Makes ``value`` the parameter ``name``."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))


def tie(model: Any) -> None:
    """Points tied parameters to their source."""
    for name, source in tied_names(model).items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, model.get_parameter(source))


def fill_from_checkpoint(
    model: Any, plan: Plan, checkpoint: Checkpoint, shard: Shard, progress: Callable[[str], None]
) -> tuple[int, tuple[str, ...]]:
    """Loads every parameter from an open checkpoint.

    Names and shapes are compared before anything is read, so that a wrong checkpoint fails at once and with
    all its faults in one message.

    Returns:
        How many of the checkpoint's tensors were read, and the names of those that are rightly unused.

    Raises:
        RankFault: a tensor is missing, unexpected or of another shape; a file is damaged.
    """
    wanted = targets(model, plan)
    sources = {target.name: _sources(target.name, model.config.model_type, checkpoint) for target in wanted}
    missing = sorted(name for name, keys in sources.items() if not keys)
    used = {key for keys in sources.values() for key in keys}
    left = sorted(checkpoint.files.keys() - used)
    unused = tuple(name for name in left if _rightly_unused(name, model))
    unexpected = [name for name in left if name not in unused]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what}: {_few(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        kind = type(model).__name__
        raise RankFault(None, f"{checkpoint.folder} is not a checkpoint of this {kind}; tensors {'; '.join(parts)}")
    for target in wanted:
        _check_shape(target, sources[target.name], checkpoint)
    for target in wanted:
        progress(target.name)
        value = _read(target, sources[target.name], checkpoint, shard)
        # Always a copy: what was read may be a view of the mapped file, which others may replace or truncate.
        assign(model, target.name, torch.empty(value.shape, dtype=shard.dtype, device=shard.device).copy_(value))
    return len(used), unused


def fill_dummy(model: Any, plan: Plan, shard: Shard, seed: int, progress: Callable[[str], None]) -> int:
    """Random values, seeded by each parameter's name: ranks agree, and any number of ranks makes the same
    model.

    Matrices are normal with deviation ``fan_in ** -0.5``, norms one, biases zero. Returns the number of
    parameters.
    """
    wanted = targets(model, plan)
    generator = torch.Generator(device=shard.device)
    for target in wanted:
        progress(target.name)
        if len(target.shape) > 1:
            digest = hashlib.sha256(f"{seed}/{target.name}".encode()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            whole = torch.empty(target.shape, dtype=torch.float32, device=shard.device)
            whole.normal_(0.0, target.shape[-1] ** -0.5, generator=generator)
            value = target.split.of(target.name, whole, shard.rank, shard.world_size)
        else:
            shape = target.split.local_shape(target.name, target.shape, shard.rank, shard.world_size)
            value = torch.full(shape, 0.0 if target.name.endswith("bias") else 1.0, device=shard.device)
        assign(model, target.name, value.to(shard.dtype).clone(memory_format=torch.contiguous_format))
    return len(wanted)


def _sources(name: str, model_type: str, checkpoint: Checkpoint) -> list[str]:
    """The checkpoint's tensors that make up the parameter ``name``; empty if they are not there."""
    names = [name]
    for module, stored in _PREFIXES.get(model_type, ()):
        if name.startswith(module):
            names.append(stored + name.removeprefix(module))
    for candidate in names:
        if candidate in checkpoint.files:
            return [candidate]
        module, _, leaf = candidate.rpartition(".")
        if module.endswith("experts") and leaf in _FUSED:  # stored one by one, held in one tensor
            keys: list[str] = []
            expert = 0
            while f"{module}.{expert}.{_FUSED[leaf][0]}.weight" in checkpoint.files:
                keys += [f"{module}.{expert}.{part}.weight" for part in _FUSED[leaf]]
                expert += 1
            if keys and all(key in checkpoint.files for key in keys):
                return keys
    return []


def _is_fused(target: Target, keys: list[str]) -> bool:
    return keys[0].endswith(".weight") and target.name.rpartition(".")[2] in _FUSED


def _check_shape(target: Target, keys: list[str], checkpoint: Checkpoint) -> None:
    expected = target.shape
    if _is_fused(target, keys):
        experts, rows, columns = target.shape
        parts = len(_FUSED[target.name.rpartition(".")[2]])
        if len(keys) != experts * parts:
            raise RankFault(
                None, f"{target.name}: the checkpoint has {len(keys) // parts} experts, the config {experts}"
            )
        expected = (rows // parts, columns)
    for key in keys:
        if (found := checkpoint.shape(key)) != expected:
            raise RankFault(
                None,
                f"{checkpoint.files[key]}: {key} has shape {list(found)}, the model's config wants {list(expected)}",
            )


def _read(target: Target, keys: list[str], checkpoint: Checkpoint, shard: Shard) -> Tensor:
    if not _is_fused(target, keys):
        return checkpoint.read(keys[0], target.split, shard.rank, shard.world_size)
    parts = len(_FUSED[target.name.rpartition(".")[2]])
    each = Split(target.split.dim)  # a fused tensor's blocks are separate tensors here
    rows = [checkpoint.read(key, each, shard.rank, shard.world_size) for key in keys]
    return torch.stack([torch.cat(rows[i : i + parts]) for i in range(0, len(rows), parts)])


def _rightly_unused(name: str, model: Any) -> bool:
    if name in tied_names(model):  # a copy of what it is tied to
        return True
    patterns = [*_UNUSED, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    return any(re.search(pattern, name) for pattern in patterns)


def _few(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
