"""Seconds after a SIGKILL of a rank until SGLang serves again on two GPUs, without spare ranks and with one for each.

python docs/measurements/losses.py FOLDER, from the root of the repository: Qwen3-8B's shape as in tests/gpu, one client
that streams, two losses each. FOLDER gets a trace of each launch for Perfetto.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from raylaunch import Engine
from raylaunch.frontends.sampling import SamplingParams
from tests.gpu.shapes import make_model
from tests.gpu.test_sglang import LAYERS, MODELS, config_for
from tests.standing import spare_pids

TOKENS = 1500  # more than are given out before the loss


def main(traces: Path) -> None:
    for standby in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder) / "m", MODELS[0], LAYERS, tokenizer=True)
            began = time.monotonic()
            with Engine(config_for(model, "recovery.rebuilds=6", f"recovery.standby={standby}")) as engine:
                print(f"standby {standby}: ready after {time.monotonic() - began:.1f} s", flush=True)
                engine.report.write_trace(traces / f"standby-{standby}-0.json")
                for rank in (0, 1):
                    if standby:
                        spare_pids(engine, 2)
                    lose(engine, rank)
                    engine.report.write_trace(traces / f"standby-{standby}-{rank + 1}.json")


def lose(engine: Engine, rank: int) -> None:
    """Kills a rank while a client streams, and prints what its client and those who ask for health have seen."""
    tokens: list[float] = []

    def stream() -> None:
        for _ in engine.stream("t11 t18 t5 t6", SamplingParams(max_new_tokens=TOKENS, ignore_eos=True)):
            tokens.append(time.monotonic())

    client = threading.Thread(target=stream, daemon=True)
    client.start()
    while len(tokens) < 5:
        time.sleep(0.01)
    killed = time.monotonic()
    os.kill(engine.report.places[rank].pid, signal.SIGKILL)
    while engine.health(ask_ranks=False).ready:
        time.sleep(0.002)
    lost = time.monotonic()
    while not engine.health(ask_ranks=False).ready:
        time.sleep(0.005)
    ready = time.monotonic()
    client.join(60)
    following = next(one for one in tokens if one > lost + 1)
    seen = f"unready {lost - killed:.3f}, ready {ready - killed:.2f}, next token {following - killed:.2f}"
    print(f"SIGKILL of rank {rank}: {seen} s; {len(tokens)} of {TOKENS} tokens", flush=True)
    print(engine.report.table(120), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
