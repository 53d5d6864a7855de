"""Which part of each weight a rank holds, read from the model's own tensor-parallel plan.

transformers publishes a plan with every model: module or parameter name -> style, as plain data. That data is
stable over versions; its runtime is not, so only the data is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylaunch.errors import RankFault


@dataclass(frozen=True)
class Split:
    """How a tensor is divided among the ranks.

    Attributes:
        dim: dimension that is divided (negative: from the end); None: every rank holds all of it.
        blocks: equal blocks along ``dim`` that are each divided; 2 for a fused gate and up projection.
    """

    dim: int | None = None
    blocks: int = 1

    def ranges(
        self, name: str, shape: tuple[int, ...], rank: int, world_size: int
    ) -> tuple[int, list[tuple[int, int]]]:
        """The dimension, and the (start, stop) ranges along it that ``rank`` holds, in order.

        Raises RankFault, naming the tensor, if the dimension does not divide.
        """
        if self.dim is None:
            raise ValueError("a replicated tensor has no ranges")
        dim = self.dim % len(shape)
        if shape[dim] % (self.blocks * world_size):
            raise RankFault(
                None,
                f"{name}: dimension {dim} of {list(shape)} does not divide into "
                f"{self.blocks * world_size} equal parts; the number of ranks must divide "
                f"{shape[dim] // self.blocks}",
            )
        block = shape[dim] // self.blocks
        step = block // world_size
        return dim, [(b * block + rank * step, b * block + (rank + 1) * step) for b in range(self.blocks)]

    def local_shape(self, name: str, shape: tuple[int, ...], rank: int, world_size: int) -> tuple[int, ...]:
        """Shape of what one rank holds."""
        if self.dim is None or world_size == 1:
            return shape
        dim, ranges = self.ranges(name, shape, rank, world_size)
        return (*shape[:dim], sum(stop - start for start, stop in ranges), *shape[dim + 1 :])

    def shard(self, name: str, full: Tensor, rank: int, world_size: int) -> Tensor:
        """The rank's part of a whole tensor (a view where it is one range)."""
        if self.dim is None or world_size == 1:
            return full
        dim, ranges = self.ranges(name, tuple(full.shape), rank, world_size)
        parts = [full.narrow(dim, start, stop - start) for start, stop in ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


REPLICATED = Split()

# style -> (split of the weight, split of a one-dimensional bias)
STYLES: Mapping[str, tuple[Split, Split]] = {
    "colwise": (Split(-2), Split(-1)),
    "colwise_gather_output": (Split(-2), Split(-1)),
    "rowwise": (Split(-1), REPLICATED),  # the bias is added once, after the sum
    "packed_colwise": (Split(-2, blocks=2), Split(-1, blocks=2)),
    "replicate": (REPLICATED, REPLICATED),
    "replicated_with_grad_allreduce": (REPLICATED, REPLICATED),
    "embedding_rowwise": (REPLICATED, REPLICATED),  # costs memory, saves an all-reduce
    "moe_tp_experts": (
        REPLICATED,
        REPLICATED,
    ),  # a module's style: its output is summed; its weights have their own
}


class TensorParallelPlan:
    """A model's tensor-parallel plan.

    Args:
        styles: name pattern (``model.layers.*.mlp.up_proj``) -> style.
    """

    def __init__(self, styles: Mapping[str, str]) -> None:
        self.styles = dict(styles)

    def check(self) -> None:
        """Raises RankFault if it uses a style that is not known here."""
        unknown = {name: style for name, style in self.styles.items() if style not in STYLES}
        if unknown:
            name, style = next(iter(unknown.items()))
            raise RankFault(
                None,
                f"the model's tensor-parallel plan wants {style!r} for {name}; known are {', '.join(sorted(STYLES))}",
            )

    def module_style(self, name: str) -> str | None:
        """Style of the module ``name``."""
        return self.styles.get(_pattern(name))

    def parameter_style(self, name: str) -> str | None:
        """Style of a parameter: its own, or that of its module."""
        pattern = _pattern(name)
        return self.styles.get(pattern) or self.styles.get(pattern.rpartition(".")[0])

    def split(self, name: str, dims: int) -> Split:
        """How the parameter ``name`` of ``dims`` dimensions is divided; unnamed ones are replicated."""
        style = self.parameter_style(name)
        if style is None:
            return REPLICATED
        weight, bias = STYLES[style]
        return bias if dims == 1 else weight


def with_norms_of_heads(styles: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """``styles``, and norms that have a row of weights for each head divided as the heads are.

    Plans leave them out (Cohere's, with query-key norm), as if every rank held all heads.

    Args:
        shapes: parameter name -> its whole shape.
    """
    more = {}
    for name, shape in shapes.items():
        module = _pattern(name).rpartition(".")[0]
        parent, _, leaf = module.rpartition(".")
        if leaf in ("q_norm", "k_norm") and len(shape) == 2 and styles.get(f"{parent}.{leaf[0]}_proj") == "colwise":
            more[module] = "colwise"
    return {**styles, **more}


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


class RowParallelLinear(nn.Module):
    """A linear layer whose input features are divided among the ranks: the partial products are summed.

    Takes over the weight ``[out, in / world_size]`` and the (whole) bias of ``linear``.
    """

    def __init__(self, linear: nn.Linear, group: str) -> None:
        super().__init__()
        self.weight, self.bias, self.group = linear.weight, linear.bias, group

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in / world_size]`` -> ``[..., out]``, equal on all ranks."""
        out: Tensor = torch.ops.raylaunch.all_reduce(F.linear(x, self.weight), self.group)
        return out if self.bias is None else out + self.bias


def insert_all_reduces(model: nn.Module, plan: TensorParallelPlan, group: str) -> int:
    """Replaces row-parallel layers and marks experts to sum over ``group``; returns how many sums a pass has.

    The experts' function (:mod:`.interfaces`) looks for the mark. Raises RankFault if the plan places no sum
    at all, or puts one on a layer that is not an ``nn.Linear``.
    """
    count = 0
    for name, module in list(model.named_modules()):
        style = plan.module_style(name)
        if style == "rowwise":
            if type(module) is not nn.Linear:
                raise RankFault(
                    None, f"{name} is row-parallel and a {type(module).__name__}; only nn.Linear is supported"
                )
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, RowParallelLinear(module, group))
            count += 1
        elif style == "moe_tp_experts":
            module.raylaunch_group = group
            count += 1
    if count == 0:
        raise RankFault(
            None,
            f"{type(model).__name__} has no tensor-parallel plan that this engine understands; use 1 rank",
        )
    return count
