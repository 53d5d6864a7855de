"""Fills a model's parameters and buffers: from a checkpoint, or with seeded dummy values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raylaunch.errors import RankFault
from raylaunch_actors.reference.checkpoint import FLOATING, Checkpoint
from raylaunch_actors.reference.recipes import Recipe, Recipes, Ties, recipes_for, resolve_ties
from raylaunch_actors.reference.tensor_parallel import REPLICATED, TensorParallelPlan
from raylaunch_actors.reference.weight_files import few

_COMPARED_AT_ONCE = 64 << 20  # bytes


@dataclass(frozen=True)
class Shard:
    """Where this process stands, and what its parameters are to be.

    A parameter that its model builds in another dtype than ``dtype``, or always wants in float32, keeps that.
    """

    rank: int
    world_size: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Contents:
    """A checkpoint, understood: what each of its tensors is in the model."""

    checkpoint: Checkpoint
    recipes: Recipes
    ties: Ties

    @property
    def unused(self) -> tuple[str, ...]:
        """Names in the checkpoint that the model has no place for."""
        return tuple(self.recipes.unused)


def tied_names(model: Any) -> dict[str, str]:
    """Tied parameter -> the parameter whose value it shares."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Makes ``value`` the parameter or buffer ``name``."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, leaf, value if leaf in module._buffers else nn.Parameter(value, requires_grad=False))


def tie(model: Any) -> None:
    """Points tied parameters to their source."""
    for name, source in tied_names(model).items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, model.get_parameter(source))


def understand(model: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> Contents:
    """Compares names and shapes with the model's, before anything is read: a wrong checkpoint fails at once.

    What the configuration ties and the checkpoint holds with different values is tied no longer, in ``model`` too;
    tensors that the model has no place for are left out, and listed.

    Args:
        dtype: in which two tensors that might be one are compared.

    Raises:
        RankFault: with all that is missing or of another shape, in one message.
    """
    recipes = recipes_for(model, checkpoint.files)
    whole = {target: recipe for recipe in recipes.by_target.values() for target in recipe.targets}

    def equal(one: str, other: str) -> bool:
        return _equal(checkpoint, whole[one], whole[other], dtype)

    ties = resolve_ties(tied_names(model), recipes.present, equal)
    contents = Contents(checkpoint, recipes, ties)
    faults = _faults(model, contents)
    if faults:
        files = ", ".join(sorted({path.name for path in checkpoint.paths})[:2])
        where = f"{checkpoint.paths[0].parent} ({files}{', ...' if len(checkpoint.paths) > 2 else ''})"
        raise RankFault(
            None, f"{where} is not a checkpoint of this {type(model).__name__}; tensors {'; '.join(faults)}"
        )
    model.all_tied_weights_keys = ties.tied
    return contents


def fill_from_checkpoint(
    model: Any, plan: TensorParallelPlan, contents: Contents, shard: Shard, progress: Callable[[str], None]
) -> int:
    """Loads this rank's part of every parameter and buffer. Returns how many of the checkpoint's tensors were read.

    Raises:
        RankFault: a file is damaged, or a tensor cannot be divided among the ranks.
    """
    dtypes = _Dtypes(model, shard.dtype)
    places = {name: (tensor.dim(), tensor.dtype) for name, tensor in model.state_dict().items()}
    read = 0
    for recipe in contents.recipes.by_target.values():
        names = {target: contents.ties.place_of(target) for target in recipe.targets}
        if not any(names.values()):
            continue
        progress(recipe.targets[0])
        splits = {target: plan.split(name or target, places[target][0]) for target, name in names.items()}
        parts = recipe.split_of_parts(splits)

        def part(key: str, split: Any = REPLICATED if parts is None else parts) -> Tensor:
            return contents.checkpoint.read(key, split, shard.rank, shard.world_size)

        for target, value in recipe.make(model, part).items():
            if (name := names.get(target)) is None:
                continue
            if parts is None:
                value = splits[target].shard(name, value, shard.rank, shard.world_size)
            # Always a copy: what was read may be a view of the mapped file, which others may replace or truncate.
            own = torch.empty(value.shape, dtype=dtypes.dtype_for(name, places[name][1]), device=shard.device)
            assign(model, name, own.copy_(value))
        read += len(recipe.keys)
    return read


def fill_dummy(model: Any, plan: TensorParallelPlan, shard: Shard, seed: int, progress: Callable[[str], None]) -> int:
    """Random values, seeded by each parameter's name: ranks agree, and any number of ranks makes the same
    model.

    Matrices are normal with deviation ``fan_in ** -0.5``, norms one, biases zero. Returns the number of
    parameters.
    """
    tied = tied_names(model)
    wanted = {name: one for name, one in model.named_parameters(remove_duplicate=False) if name not in tied}
    generator = torch.Generator(device=shard.device)
    dtypes = _Dtypes(model, shard.dtype)
    for name, parameter in wanted.items():
        progress(name)
        shape, split = tuple(parameter.shape), plan.split(name, parameter.dim())
        if len(shape) > 1:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            whole = torch.empty(shape, dtype=torch.float32, device=shard.device)
            whole.normal_(0.0, shape[-1] ** -0.5, generator=generator)
            value = split.shard(name, whole, shard.rank, shard.world_size)
        else:
            local = split.local_shape(name, shape, shard.rank, shard.world_size)
            value = torch.full(local, 0.0 if name.endswith("bias") else 1.0, device=shard.device)
        dtype = dtypes.dtype_for(name, parameter.dtype)
        assign(model, name, value.to(dtype).clone(memory_format=torch.contiguous_format))
    return len(wanted)


class _Dtypes:
    """In which dtype a model keeps each tensor: some are always in float32."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        plan = model._get_dtype_plan(dtype)
        self._kept = [(re.compile(name.replace("*", ".*")), kept) for name, kept in plan.items()]

    def dtype_for(self, name: str, built: torch.dtype) -> torch.dtype:
        """Dtype of ``name``, which the model has built as ``built``."""
        return next((kept for pattern, kept in self._kept if pattern.search(name)), built)


def _faults(model: Any, contents: Contents) -> list[str]:
    """Everything that makes it no checkpoint of this model, in phrases."""
    recipes, checkpoint = contents.recipes, contents.checkpoint
    places = model.state_dict()
    there = recipes.present | contents.ties.tied.keys() | contents.ties.stored_as.keys()
    missing = [name for name in places if name not in there]
    shapes: list[str] = []
    stored: list[str] = []
    for recipe in recipes.by_target.values():
        if not any(map(contents.ties.place_of, recipe.targets)):
            continue
        for target, shape in _shapes(model, recipe, checkpoint).items():
            if shape != (wanted := tuple(places[target].shape) if target in places else None):
                of = f" of {len(recipe.keys)} tensors" if len(recipe.keys) > 1 else ""
                shapes.append(f"{target}{of} has shape {_text(shape)}, the model's config wants {_text(wanted)}")
        if places[recipe.targets[0]].is_floating_point():
            stored += [
                f"{key} is stored as {checkpoint.dtype(key)}"
                for _, key in recipe.keys
                if checkpoint.dtype(key) not in FLOATING
            ]
    parts = [
        f"{len(names)} {what}: {few(names)}"
        for what, names in (
            ("missing", missing),
            ("both whole and in parts", recipes.twice),
            ("of another shape", shapes),
            ("quantised, and config.json has no quantization_config", stored),
        )
        if names
    ]
    if missing and recipes.unused:  # which may be the missing ones under other names
        parts.append(f"{len(recipes.unused)} unexpected: {few(recipes.unused)}")
    return parts


def _shapes(model: Any, recipe: Recipe, checkpoint: Checkpoint) -> dict[str, tuple[int, ...] | str]:
    """Shapes of what a recipe makes, found out without reading; or why it makes nothing."""
    if recipe.converter is None:
        return {recipe.targets[0]: checkpoint.shape(recipe.keys[0][1])}
    try:
        made = recipe.make(model, lambda key: torch.empty(checkpoint.shape(key), device="meta"))
    except Exception as error:  # a conversion raises what its operations do
        return {recipe.targets[0]: f"none ({str(error).splitlines()[0] if str(error) else type(error).__name__})"}
    return {name: tuple(value.shape) for name, value in made.items()}


def _text(shape: tuple[int, ...] | str | None) -> str:
    return str(list(shape)) if isinstance(shape, tuple) else shape or "none"


def _equal(checkpoint: Checkpoint, one: Recipe, other: Recipe, dtype: torch.dtype) -> bool:
    """Whether two tensors of the checkpoint are the same in ``dtype``; read piece by piece, and not counted as read."""
    if one.converter is not None or other.converter is not None:
        return False  # kept apart, which is right in any case: two copies of one value answer as one
    left, right = one.keys[0][1], other.keys[0][1]
    if checkpoint.shape(left) != checkpoint.shape(right):
        return False
    pieces = zip(checkpoint.pieces(left, _COMPARED_AT_ONCE), checkpoint.pieces(right, _COMPARED_AT_ONCE), strict=True)
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in pieces)
