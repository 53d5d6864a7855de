"""A rank killed while SGLang's scheduler serves, on GPUs and on CPUs alike."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from raylaunch import Engine, RequestFailed
from tests.busy import patient


def lose_rank_1(engine: Engine, ask: Callable[[], object], running_s: float, rebuilt_s: float) -> list[int]:
    """F07: kills rank 1 while ``ask`` runs. Unready at once, the request ends in an error, the group is rebuilt.

    Args:
        running_s: seconds that ``ask`` gets before the kill; it must take longer.
        rebuilt_s: seconds that the rebuilding may take.
    Returns:
        The processes of the group that was lost.
    """
    pids = [place.pid for place in engine.report.places]
    ended: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except RequestFailed as error:
            ended.append(error)

    asking = threading.Thread(target=run)
    asking.start()
    time.sleep(running_s)
    killed = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    while engine.health(ask_ranks=False).ready and time.monotonic() < killed + 10:
        time.sleep(0.005)
    unready = time.monotonic() - killed
    asking.join(10)
    print(f"unready after {unready:.2f} s, the request ended after {time.monotonic() - killed:.2f} s")
    assert unready < patient(2)
    assert len(ended) == 1
    assert engine.wait_ready(rebuilt_s)
    print(f"ready again after {time.monotonic() - killed:.1f} s")
    return pids
