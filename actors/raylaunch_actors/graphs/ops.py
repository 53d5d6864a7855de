"""The custom ops ``raylaunch::all_reduce``, ``raylaunch::attention`` and ``raylaunch::experts``.

All are functional and opaque to Dynamo. Attention is where a compiled model is cut into pieces; an all-reduce
inside a piece is recorded by the graph backend; experts hide a loop that depends on data.
`torch.library.Library` rather than `custom_op`: its dispatch costs about 10 us less per call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.graphs import context

DEVICE_KEYS = ("CPU", "CUDA")


_groups: dict[str, AllReduce] = {}


def bind_group(name: str, communicator: AllReduce) -> None:
    """Lets ``raylaunch::all_reduce(x, name)`` run on `communicator`.

    Raises ValueError if the name is bound to another.
    """
    if _groups.setdefault(name, communicator) is not communicator:
        raise ValueError(f"the group name {name!r} is bound to another communicator; unbind_group it first")


def unbind_group(name: str) -> None:
    """Forgets the group, if it is known."""
    _groups.pop(name, None)


def get_communicator(name: str) -> AllReduce:
    """The communicator bound to a group name. Raises KeyError with the names that are bound."""
    try:
        return _groups[name]
    except KeyError:
        bound = ", ".join(sorted(_groups)) or "none"
        raise KeyError(
            f"no communicator is bound to the group {name!r} (bound: {bound}); call ops.bind_group"
        ) from None


def _all_reduce(x: torch.Tensor, group: str) -> torch.Tensor:
    return get_communicator(group).all_reduce(x)


def _all_reduce_fake(x: torch.Tensor, group: str) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, layer: int) -> torch.Tensor:
    batch = context.current().batch
    if batch is None:  # a dummy pass: the cache must not be touched
        b, h, t, d = q.shape
        return q.new_zeros((b, t, h, d))
    return batch.attend(q, k, v, scale, layer)


def _attention_fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, layer: int) -> torch.Tensor:
    b, h, t, d = q.shape
    return q.new_empty((b, t, h, d))


def _experts(
    x: torch.Tensor, idx: torch.Tensor, w: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """SiLU-gated experts: x [T, H], idx and w [T, k], gate_up [E, 2I, H], down [E, H, I] to [T, H].

    Loops over experts that have tokens, which depends on data: not for CUDA graphs.
    """
    out = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        token, slot = torch.where(idx == expert)
        if token.numel() == 0:
            continue
        gate, up = F.linear(x[token], gate_up[expert]).chunk(2, -1)
        y = F.linear(F.silu(gate) * up, down[expert]) * w[token, slot, None]
        out.index_add_(0, token, y.to(out.dtype))
    return out


def _grouped_experts(
    x: torch.Tensor, idx: torch.Tensor, w: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """The same by grouped matrix products: every shape is fixed, so that it can be captured. bfloat16 only."""
    if x.dtype != torch.bfloat16:
        raise RankFault(None, f"experts on a GPU need bfloat16, not {x.dtype}: set model.dtype=bfloat16")
    tokens, chosen = idx.shape
    flat = idx.reshape(-1)
    order = flat.argsort(stable=True)
    ends = torch.zeros(gate_up.shape[0], dtype=torch.int32, device=x.device)
    ends = ends.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32)).cumsum(0, dtype=torch.int32)
    rows = x[order // chosen]
    gate, up = torch._grouped_mm(rows, gate_up.transpose(-2, -1), offs=ends).chunk(2, -1)
    y = torch._grouped_mm(F.silu(gate) * up, down.transpose(-2, -1), offs=ends)
    y = y * w.reshape(-1)[order, None]
    # Back to the order of tokens, then summed over each token's experts in a fixed order: same bits every time.
    return torch.empty_like(y).index_copy_(0, order, y).view(tokens, chosen, -1).sum(1).to(x.dtype)


def _experts_fake(
    x: torch.Tensor, idx: torch.Tensor, w: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(x)


_library = torch.library.Library("raylaunch", "DEF")
_library.define("all_reduce(Tensor x, str group) -> Tensor")
_library.define("attention(Tensor q, Tensor k, Tensor v, float scale, int layer) -> Tensor")
_library.define("experts(Tensor x, Tensor idx, Tensor w, Tensor gate_up, Tensor down) -> Tensor")
for _key in DEVICE_KEYS:
    _library.impl("all_reduce", _all_reduce, _key)
    _library.impl("attention", _attention, _key)
_library.impl("experts", _experts, "CPU")
_library.impl("experts", _grouped_experts, "CUDA")
torch.library.register_fake("raylaunch::all_reduce", _all_reduce_fake)
torch.library.register_fake("raylaunch::attention", _attention_fake)
torch.library.register_fake("raylaunch::experts", _experts_fake)
