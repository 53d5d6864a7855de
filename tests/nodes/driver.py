"""A driver in a process of its own: holds an engine, and says on standard output what it sees, a JSON line each.

Commands on standard input: ``ask`` answers a sum, ``lost`` waits until the group is lost for good, ``rebuilt`` until it
serves again.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.group import stepping

SETTINGS = ("capture.prefill_tokens=[8,32]", "capture.decode_batch_sizes=[2]")
NODES_STEPPED = "--nodes-stepped"  # as in a large group: agents step the ranks of their nodes
PATIENCE_S = 300.0


def say(kind: str, **more: Any) -> None:
    print(json.dumps({"kind": kind, "at": time.time(), **more}), flush=True)


def say_error(error: LaunchError, kind: str = "error", **more: Any) -> None:
    states = [f"{one.node} {one.state}" for one in error.ranks]
    say(kind, code=error.code, phase=error.phase, rank=error.rank, text=str(error), states=states,
        teardown=error.teardown, **more)  # fmt: skip


def say_ready(engine: Engine) -> None:
    places = [[place.node, place.pid] for place in engine.report.places]
    say("ready", places=places, table=engine.report.table(200))


def until(condition: str, engine: Engine) -> float:
    """When the engine was first seen not to be ready, in seconds since the epoch."""
    end, unready = time.monotonic() + PATIENCE_S, 0.0
    while (health := engine.health(ask_ranks=False)).condition != condition and time.monotonic() < end:
        unready = unready or (0.0 if health.ready else time.time())
        time.sleep(0.02)
    return unready or time.time()


def main() -> None:
    """Launches with the settings of the command line, then obeys until standard input ends."""
    engine: Engine
    settings = [one for one in sys.argv[1:] if one != NODES_STEPPED]
    if NODES_STEPPED in sys.argv:
        stepping.CALLED_RANKS = 1

    def listener(step: Any, *_: int) -> None:
        say("step", phase=step.phase.name, places=[[place.node, place.pid] for place in engine.report.places])

    engine = Engine(LaunchConfig.default([*SETTINGS, *settings]), listener=listener)
    try:
        engine.start()
    except LaunchError as error:
        say_error(error)
        return
    try:
        say_ready(engine)
        for line in sys.stdin:
            if line.strip() == "ask":
                say("answer", text=engine.generate("12+30=", max_new_tokens=8).text)
            elif line.strip() == "lost":
                unready = until("failed", engine)
                assert engine.last_error is not None
                say_error(engine.last_error, unready=unready)
            elif line.strip() == "rebuilt":
                end = time.monotonic() + PATIENCE_S
                while not engine.restarts and time.monotonic() < end:
                    time.sleep(0.02)
                until("ready", engine)
                say_error(engine.failures[0][1], "failure")
                say_ready(engine)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
