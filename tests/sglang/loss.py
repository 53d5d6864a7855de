"""A rank killed while SGLang's scheduler serves, on GPUs and on CPUs alike."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from raylaunch import Engine
from tests.busy import patient


def lose_rank_1(engine: Engine, ask: Callable[[], object], running_s: float, rebuilt_s: float) -> list[int]:
    """F07: kills rank 1 while ``ask`` runs. Unready at once, the group is rebuilt, and the request goes on in it.

    Args:
        running_s: seconds that ``ask`` gets before the kill; it must take longer.
        rebuilt_s: seconds that the rebuilding may take.
    Returns:
        The processes of the group that was lost.
    """
    pids = [place.pid for place in engine.report.places]
    answered: list[object] = []

    def run() -> None:
        answered.append(ask())

    asking = threading.Thread(target=run)
    asking.start()
    time.sleep(running_s)
    killed = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    while engine.health(ask_ranks=False).ready and time.monotonic() < killed + 10:
        time.sleep(0.005)
    unready = time.monotonic() - killed
    assert unready < patient(2)
    assert engine.wait_ready(rebuilt_s)
    print(f"unready after {unready:.2f} s, ready again after {time.monotonic() - killed:.1f} s")
    asking.join(rebuilt_s)
    assert len(answered) == 1, "the request did not go on"
    return pids
