"""Seconds to ready, and latency of requests, with ``capture.verify_first`` and without, by turns.

python docs/measurements/late_verification.py [CONFIG [KEY=VALUE...]]: a client asks anew a quarter of a second after
each answer, which is a little longer than the pause after which a shape may be verified.
"""

from __future__ import annotations

import statistics
import sys
import time

from raylaunch import Engine, LaunchConfig

TURNS, SECONDS, PAUSE_S, TOKENS = 2, 40.0, 0.25, 48
SHAPES = (f"capture.prefill_tokens={list(range(8, 257, 8))}", f"capture.decode_batch_sizes={list(range(2, 33, 2))}")


def main(path: str | None, *settings: str) -> None:
    more = settings or SHAPES
    for _ in range(TURNS):
        for first in ("all", "8"):
            config = LaunchConfig.from_yaml(path, more) if path else LaunchConfig.default(more)
            began = time.monotonic()
            with Engine(config.override(f"capture.verify_first={first}")) as engine:
                ready, left = time.monotonic() - began, len(engine.report.unverified)
                seconds = latencies(engine)
                now = len(engine.report.unverified)
            middle, mean = statistics.median(seconds) * 1e3, statistics.fmean(seconds) * 1e3
            text = (
                f"{len(seconds)} requests: median {middle:.1f} ms, mean {mean:.1f} ms; {left} shapes left, then {now}"
            )
            print(f"verify_first={first}: ready after {ready:.1f} s; {text}", flush=True)


def latencies(engine: Engine) -> list[float]:
    """Of requests for as many tokens each, without the first, in seconds."""
    seconds, end = list[float](), time.monotonic() + SECONDS
    while time.monotonic() < end:
        began = time.perf_counter()
        engine.generate("12+30=", max_new_tokens=TOKENS, ignore_eos=True)
        seconds.append(time.perf_counter() - began)
        time.sleep(PAUSE_S)
    return seconds[1:]


if __name__ == "__main__":
    main(*(sys.argv[1:] or [None]))
