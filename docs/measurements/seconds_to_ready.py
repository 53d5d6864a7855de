"""A table of where the seconds of launches go, from traces that ``serve --trace`` or ``bench sglang --traces`` wrote.

python docs/measurements/seconds_to_ready.py TRACE...: for each row, how many seconds after the command it began and how
long it took; the median of all traces for both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

OF_RANKS = ("connect", "load", "warmup", "capture", "register", "verify")
LEAST_S = 0.05


def rows(trace: Path) -> dict[str, tuple[float, float]]:
    """Begin and length by name: what the driver and its frontend did, and rank 0 phase by phase and between gates."""
    events = json.loads(trace.read_text())["traceEvents"]
    slices = [one for one in events if one["ph"] == "X"]
    names = {one["tid"]: one["args"]["name"] for one in events if one["ph"] == "M"}
    zero = min(one["ts"] for one in slices)
    found: dict[str, tuple[float, float]] = {}
    for one in sorted(slices, key=lambda one: one["ts"]):
        track = names[one["tid"]].split(" (")[0]
        if one["cat"] in ("wait", "barrier") or track not in ("driver", "frontend", "rank 0"):
            continue
        if (phase := one["cat"].upper()).lower() not in OF_RANKS:
            name = f"{track}: {one['name']}"
        elif one["name"].startswith(phase):
            name = f"{track}: {phase}"
        else:  # what it said of its work on the way
            name = f"{track}, {phase}: {one['name']}"
        began, length = found.get(name, ((one["ts"] - zero) / 1e6, 0.0))
        found[name] = began, length + one["dur"] / 1e6
    return found


def main() -> None:
    """Prints the table."""
    traces = [rows(Path(file)) for file in sys.argv[1:]]
    print("| | began | took |\n|---|---|---|")
    for name in dict.fromkeys(name for one in traces for name in one):
        seen = [one[name] for one in traces if name in one]
        began, took = (median(one[number] for one in seen) for number in (0, 1))
        if took >= LEAST_S:
            print(f"| {name} | {began:.1f} | {took:.1f} |")


if __name__ == "__main__":
    main()
