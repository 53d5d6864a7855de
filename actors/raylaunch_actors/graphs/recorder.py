"""Records the aten operations of one run, as a CUDA stream capture records kernels.

Every operation really runs. Kept are those that write memory; views are address arithmetic and vanish. An
operation that reads data back, draws random numbers or changes a tensor's metadata in place is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raylaunch.errors import CaptureError
from raylaunch_actors.communicator.base import AllReduce, require_capture
from raylaunch_actors.graphs import ops
from raylaunch_actors.graphs.backend import GraphLabel
from raylaunch_actors.graphs.memory_plan import Lifetime

# tagged as depending on data because of boolean masks only; a gather with integers is static
INDEXING = {torch.ops.aten.index.Tensor}
# what torch.tensor(3.0) does to its result; no memory is written
NOTHING_TO_REPLAY = {torch.ops.aten.detach_.default}


@dataclass(frozen=True)
class RecordedOp:
    """One recorded operation.

    Attributes:
        kind: ``fresh`` writes new tensors, ``in place`` writes arguments, ``all-reduce`` is a collective.
        func: the operation.
        outputs: the new tensors, None for a missing one.
    """

    kind: Literal["fresh", "in place", "all-reduce"]
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[torch.Tensor | None, ...] = ()


def storage_key(tensor: torch.Tensor) -> int:
    """Names a tensor's storage; unique while a tensor on it is alive."""
    return tensor.untyped_storage()._cdata


def tensors_in(*trees: object) -> list[torch.Tensor]:
    """All tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):
    """Records while it is entered as a context manager; it leaves no trace once it is left.

    Args:
        label: which graph is recorded.
        communicator: the one whose all-reduces may occur.
        read_only: tensors that must not be written in place.
    """

    def __init__(self, label: GraphLabel, communicator: AllReduce, read_only: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.label = label
        self.communicator = communicator
        self.steps: list[RecordedOp] = []
        self._read_only = {storage_key(t) for t in read_only}
        self._first: dict[int, int] = {}  # storages made while recording: the step that made them
        self._last: dict[int, int] = {}
        self._nbytes: dict[int, int] = {}
        self._alive: list[torch.Tensor] = list(read_only)  # so that storage keys are not recycled

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.raylaunch.all_reduce.default:
            return self._all_reduce(*args, **kwargs)
        if func is torch.ops.raylaunch.attention.default:
            raise CaptureError(None, f"{self.label}: raylaunch::attention is inside a captured piece: the split failed")
        if _is_composite(func):
            # In inference mode composites arrive whole. What is replayed must be the operations that they
            # run, not their out= variants, which may compute in another order.
            with self:
                return func.decompose(*args, **kwargs)
        if func in NOTHING_TO_REPLAY:
            return func(*args, **kwargs)
        self._refuse(func, args, kwargs)
        result = func(*args, **kwargs)
        self._record(func, args, kwargs, result)
        return result

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's memory was made while recording."""
        return storage_key(tensor) in self._first

    def lifetimes(self, outputs: object) -> tuple[list[Lifetime], list[Lifetime]]:
        """Storages made while recording: (inputs of all-reduces, all others). `outputs` live to the end."""
        end = len(self.steps) + 1
        last = dict(self._last)
        for tensor in tensors_in(outputs):
            if self.owns(tensor):
                last[storage_key(tensor)] = end
        shared = {storage_key(step.args[0]) for step in self.steps if step.kind == "all-reduce"}
        blocks = [Lifetime(k, self._nbytes[k], first, last[k]) for k, first in self._first.items()]
        return [b for b in blocks if b.key in shared], [b for b in blocks if b.key not in shared]

    # ---- one operation ------------------------------------------------------------------------------------

    def _all_reduce(self, x: torch.Tensor, group: str) -> torch.Tensor:
        communicator = ops.get_communicator(group)
        if communicator is not self.communicator:
            raise CaptureError(None, f"{self.label}: the group {group!r} is not the one that graphs are captured for")
        require_capture(communicator, f"{self.label}: an all-reduce")
        if not x.is_contiguous() or not self.owns(x):  # not the graph's own memory: peers could not read it
            with self:
                x = torch.clone(x, memory_format=torch.contiguous_format)
        out = communicator.all_reduce(x)  # real, so that the captured run's results are valid
        func = torch.ops.raylaunch.all_reduce.default
        self._add(RecordedOp("all-reduce", func, (x, group), {}, (out,)))
        return out

    def _refuse(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tags = func.tags
        reads = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
        if reads and func in INDEXING:
            reads = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if reads:
            raise CaptureError(None, f"{self.label}: {func} depends on data and cannot be captured")
        if torch.Tag.nondeterministic_seeded in tags:
            raise CaptureError(None, f"{self.label}: {func} draws random numbers and cannot be captured")
        if torch.Tag.inplace_view in tags:
            raise CaptureError(None, f"{self.label}: {func} changes a tensor's shape in place and cannot be captured")
        if func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                if storage_key(tensor) in self._read_only:
                    raise CaptureError(
                        None,
                        f"{self.label}: {func} writes to an input of the piece: others would not see it",
                    )

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        made = [r for r in results if isinstance(r, torch.Tensor)]
        known = {storage_key(t) for t in tensors_in(args, kwargs)}
        fresh = [t for t in made if storage_key(t) not in known]
        if func._schema.is_mutable:
            if fresh:
                raise CaptureError(None, f"{self.label}: {func} both writes its arguments and makes new tensors")
            self._add(RecordedOp("in place", func, args, kwargs))
        elif fresh and len(fresh) < len(made):
            raise CaptureError(None, f"{self.label}: {func} returns both views and new tensors")
        elif fresh:
            outputs = tuple(r if isinstance(r, torch.Tensor) else None for r in results)
            self._add(RecordedOp("fresh", func, args, kwargs, outputs))
        else:  # a view, also where the schema does not say so (_unsafe_view)
            self._touch(args, kwargs)
            self._alive += made

    def _add(self, step: RecordedOp) -> None:
        self._touch(step.args, step.kwargs)
        for tensor in step.outputs:
            if tensor is None:
                continue
            key = storage_key(tensor)
            self._alive.append(tensor)
            self._first.setdefault(key, len(self.steps))
            self._last[key] = len(self.steps)
            self._nbytes[key] = tensor.untyped_storage().nbytes()
        self.steps.append(step)

    def _touch(self, *trees: object) -> None:
        for tensor in tensors_in(*trees):
            self._alive.append(tensor)
            if self.owns(tensor):
                self._last[storage_key(tensor)] = len(self.steps)


def _is_composite(func: Any) -> bool:
    """Whether a CPU run of the operation is made of other operations."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    name = func.name()
    return has(name, "CompositeImplicitAutograd") and not has(name, "CPU")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    written: list[object] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[index] if index < len(args) else kwargs.get(argument.name))
    return tensors_in(written)
