"""WARMUP under SGLang: the kernels of a forward pass are built before anything is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raylaunch_actors.sglang_engine.versions import model_context


def build_kernels(runner: Any) -> None:
    """Runs the smallest shape of SGLang's prefill runner once, prepared as for its capture, and captures nothing.

    SGLang does so itself for pieces, which it compiles before. Of other backends the first forward pass would be the
    first iteration of CAPTURE: kernels would be compiled under its deadline, and one that fails be named there. All
    ranks must call this: there are all-reduces in it.
    """
    backend = runner.backend
    if not hasattr(backend, "_graphs"):
        return
    backend.capture_one = _run  # of this object only: the method of its class is hooked
    try:
        # Both as around its capture: the second tells the model's layers how they will be captured.
        with model_context(runner), backend.replay_session():
            runner.capture_one_shape(min(runner.capture_num_tokens))
    finally:
        del backend.capture_one
    runner.device_module.synchronize()  # a kernel that fails must not be found out later


def _run(shape_key: Any, forward: Callable[[], Any], *_: Any, **options: Any) -> None:
    forward()
