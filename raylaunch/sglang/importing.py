"""SGLang's driver side is imported on a thread, while Ray is started and the ranks import theirs."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from raylaunch.errors import ConfigError
from raylaunch.report import Span, timed
from raylaunch.startup.signals import of_a_command

SET_NOTHING = ("torch", "openai.types.responses", "fastapi", "aiohttp", "requests", "IPython", "scipy.optimize")
"""Some of what SGLang imports; torch's compiler, for one, sets variables of its process."""
SWITCH_S = 0.0005
_one = threading.Lock()  # several frontends of a process


def import_sglang(spans: list[Span], met: threading.Event, closing: Callable[[], bool]) -> None:
    """Imports what the frontend needs. Raises :class:`ConfigError` if that cannot be.

    Args:
        spans: are added to.
        met: set once Ray is there: the others and SGLang 0.5.23 set variables, which a Ray that is started meanwhile
            would hand to its workers.
        closing: nobody needs it any more.
    """
    from raylaunch_actors.preload import import_all

    with _one, _beside_others(), timed(spans, "imports before Ray is there"):
        import_all(SET_NOTHING)
    met.wait()
    if closing():
        return
    with _one, _beside_others(), timed(spans, "imports SGLang"):
        policy = asyncio.get_event_loop_policy()
        try:
            import uvloop  # noqa: F401
            from sglang.srt.entrypoints import engine, http_server  # noqa: F401  # http_server takes seconds
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            text = f"cannot be imported by the driver: {type(error).__name__}: {error}"
            raise ConfigError("engine.kind", "sglang", text) from error
        finally:
            asyncio.set_event_loop_policy(policy)  # SGLang (0.5.17, 0.5.23) sets its own for the whole process


@contextmanager
def _beside_others() -> Iterator[None]:
    """Around seconds of imports on a thread: others, such as those that start Ray, wait for the interpreter at each of
    their calls, and soon have it."""
    from raylaunch_actors.preload import short_imports

    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_S))
    try:
        with short_imports(last=False) if of_a_command() else nullcontext():  # a program's own imports are its own
            yield
    finally:
        sys.setswitchinterval(before)
