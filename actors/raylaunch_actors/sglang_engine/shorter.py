"""What SGLang does twice, or longer than it need, while it is launched. Seconds of every start and of every rebuild."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from raylaunch_actors.sglang_engine import hooked
from raylaunch_actors.sglang_engine.hooks import Seam


def shorter_seams() -> list[Seam]:
    """One tokenizer or processor in place of two equal ones (2 s for 150,000 tokens), and collections of garbage that
    leave out all that was imported (1 s each)."""
    made = dict[str, Any]()
    return [
        *(Seam(hook, lambda original: once(original, made)) for hook in hooked.TOKENIZERS),
        *(Seam(hook, lambda _: collect_what_is_new) for hook in hooked.COLLECTIONS),
    ]


def once(original: Callable[..., Any], made: dict[str, Any]) -> Callable[..., Any]:
    """``original``, which makes something of a model's files: by the same arguments the same thing again. SGLang's
    scheduler and its worker, on one thread of one process, each load the tokenizer (0.5.17 and 0.5.23).

    Args:
        made: by function and arguments.
    """

    def make(*arguments: Any, **named: Any) -> Any:
        key = f"{original.__qualname__}{arguments}{sorted(named.items())}"
        if key not in made:
            made[key] = original(*arguments, **named)
        return made[key]

    return make


@contextlib.contextmanager
def collect_what_is_new(enable_cudagraph_gc: bool) -> Iterator[None]:
    """In place of SGLang's ``freeze_gc``, around the captures of a round, but without ``gc.unfreeze``: modules, which
    were frozen after their import, stay so. It walks through all of them, twice a round, and full collections would
    while it serves."""
    before = gc.isenabled()
    gc.collect()
    if not enable_cudagraph_gc:
        gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
        gc.collect()
