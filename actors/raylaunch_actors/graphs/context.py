"""The forward context: what a forward pass is about, for code that the model's signatures do not reach.

Custom ops (attention) and captured pieces read it. Above all the *shape* is read from here and never from a
piece's arguments: a compiled piece need not have a symbolic size among them.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Mode(enum.Enum):
    """What a forward pass is for.

    TRACE compiles, EAGER runs the pieces as they are, WARM and CAPTURE are the first and second iteration of
    a shape inside the capture context, REPLAY replays the graphs.
    """

    TRACE = "trace"
    EAGER = "eager"
    WARM = "warm"
    CAPTURE = "capture"
    REPLAY = "replay"


class Attends(Protocol):
    """What the batch of a forward context does."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, layer: int) -> torch.Tensor:
        """q [1, H, T, D], k and v [1, Hkv, T, D] to [1, T, H, D]."""


@dataclass
class ForwardContext:
    """One forward pass.

    Attributes:
        mode: what the pass is for.
        round: ``"prefill"`` or ``"decode"``.
        shape: padded token count; with ``round`` it names the graphs to use.
        batch: what computes attention; None in a dummy pass.
    """

    mode: Mode
    round: str
    shape: int
    batch: Attends | None = None


_current: ContextVar[ForwardContext | None] = ContextVar("raylaunch_forward_context", default=None)


def current() -> ForwardContext:
    """The context of the forward pass that this thread is in. Raises RuntimeError outside of one."""
    context = _current.get()
    if context is None:
        raise RuntimeError("no forward context: run the model inside `with context.use(ForwardContext(...)):`")
    return context


@contextlib.contextmanager
def use(context: ForwardContext) -> Iterator[ForwardContext]:
    """Makes `context` the current one of this thread; the previous one is back afterwards."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
