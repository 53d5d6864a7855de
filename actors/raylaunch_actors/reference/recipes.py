"""Which tensors of a checkpoint make up which of a model's: by transformers' own tables of names and conversions.

Published checkpoints name tensors otherwise than the modules that transformers builds, or store in parts what those
hold in one piece. What transformers does about it when it loads a model is done here with the same tables
(``transformers.conversion_mapping``), so that a model it can load is loaded alike, and none needs a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from raylaunch_actors.reference.tensor_parallel import Split


@dataclass
class Recipe:
    """How one tensor of the model, or several at once, are made of the checkpoint's.

    Attributes:
        targets: names in the model; the first one stands for the recipe.
        keys: (the converter's pattern, name in the checkpoint), in the order in which they are joined.
        converter: makes the targets; None where the only key is taken as it is.
    """

    targets: tuple[str, ...]
    keys: list[tuple[str, str]] = field(default_factory=list)
    converter: WeightConverter | None = None

    def make(self, model: Any, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Reads what is needed and makes the targets. What the conversion raises is of any class."""
        if self.converter is None:
            return {self.targets[0]: read(self.keys[0][1])}
        converter = deepcopy(self.converter)
        for pattern, key in self.keys:
            converter.add_tensor(self.targets[0], key, pattern, lambda key=key: read(key))
        made = converter.convert(self.targets[0], model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def split_of_parts(self, splits: Mapping[str, Split]) -> Split | None:
        """How to divide each key, so that the rank's parts give its part of the target.

        None where that is not known: then whole tensors are read and what is made of them is divided.
        """
        split = splits[self.targets[0]]
        if self.converter is None or all(one.dim is None for one in splits.values()):
            return split
        kinds = [(type(operation), getattr(operation, "dim", None)) for operation in self.converter.operations]
        if len(self.targets) > 1 or kinds[0] != (MergeModulelist, 0) or split.dim not in (-1, -2):
            return None
        # Experts, stored one by one, are held as [experts, rows, columns]; gate and up are blocks of rows.
        if kinds[1:] == [] and len(self.converter.source_patterns) == 1 and split.blocks == 1:
            return split
        if kinds[1:] == [(Concatenate, 1)]:
            blocks = len(self.converter.source_patterns) if split.dim == -2 else 1
            return Split(split.dim) if split.blocks == blocks else None
        return None


@dataclass
class Recipes:
    """What becomes of a checkpoint.

    Attributes:
        of: recipes by their first target.
        unused: names in the checkpoint that the model has no place for.
        twice: names in the model that the checkpoint has both whole and in parts.
    """

    by_target: dict[str, Recipe] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    @property
    def present(self) -> set[str]:
        """Every name in the model that the checkpoint has."""
        return {target for recipe in self.by_target.values() for target in recipe.targets}


def recipes_for(model: Any, names: Iterable[str]) -> Recipes:
    """Finds a place for every tensor of a checkpoint, as ``from_pretrained`` does.

    Args:
        model: a transformers model, its parameters on any device.
        names: the checkpoint's.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    places = model.state_dict()
    prefix = model.base_model_prefix
    found = Recipes()
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, places)
        if target not in places and name in places:  # it has its final name already
            target, pattern = rename_source_key(name, [], [], prefix, places)
        if target not in places:
            found.unused.append(name)
            continue
        converter = by_pattern[pattern] if pattern is not None else None
        recipe = found.by_target.get(target)
        if recipe is None:
            recipe = found.by_target[target] = Recipe(_targets(target, converter), converter=converter)
        elif recipe.converter is not converter:
            found.twice.append(target)
            continue
        elif converter is None:  # under another name once more: transformers takes the first
            found.unused.append(name)
            continue
        recipe.keys.append((name if pattern is None else pattern, name))
    return found


def _targets(first: str, converter: WeightConverter | None) -> tuple[str, ...]:
    if converter is None:
        return (first,)
    patterns = converter.target_patterns
    return tuple(first.replace(patterns[0], pattern) for pattern in patterns)


@dataclass(frozen=True)
class Ties:
    """Which of the model's tensors are one.

    Attributes:
        tied: name -> the name whose tensor it shares.
        stored_as: name -> the name under which the checkpoint has its tensor, where that is another.
    """

    tied: dict[str, str] = field(default_factory=dict)
    stored_as: dict[str, str] = field(default_factory=dict)

    def place_of(self, name: str) -> str | None:
        """Where in the model the checkpoint's tensor ``name`` goes; None if it repeats another one."""
        source = next((source for source, stored in self.stored_as.items() if stored == name), None)
        return source or (None if name in self.tied else name)


def resolve_ties(configured: Mapping[str, str], present: Collection[str], equal: Callable[[str, str], bool]) -> Ties:
    """Decides by what the checkpoint holds, as transformers does, which pairs are tied indeed.

    Args:
        configured: name -> the name that it would share its tensor with, by the model's configuration.
        present: names that the checkpoint has.
        equal: whether the checkpoint has the same values under two names, both of them present.
    """
    ties = Ties()
    for target, source in configured.items():
        stored = ties.stored_as.get(source, source)
        if stored not in present:
            stored = next((one for one, other in configured.items() if other == source and one in present), "")
            if not stored:
                continue
            ties.stored_as[source] = stored
        if target not in present or target == stored or equal(target, stored):
            ties.tied[target] = source
    return ties
