"""What several groups behind one port do beside one of them alone: new tokens a second, by turns in one launch.

    python docs/measurements/replicas.py CONFIG FILE.json     # a configuration with parallel.replicas

A group gets as many requests at once in both: all of them together as many times more as there are groups.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from raylaunch import LaunchConfig, Replicas
from raylaunch.terminal.machine import describe_machine

REQUESTS, PROMPT, NEW_TOKENS, TURNS = 32, 256, 256, 8


def tokens_per_s(generate: Callable[..., Any], groups: int, draw: random.Random) -> float:
    """Of requests with prompts of their own, all sent at once."""
    prompts = [[draw.randrange(10, 900) for _ in range(PROMPT)] for _ in range(REQUESTS * groups)]
    began = time.perf_counter()
    answers = generate(prompts, max_new_tokens=NEW_TOKENS, ignore_eos=True, temperature=0.0)
    return sum(len(one.token_ids) for one in answers) / (time.perf_counter() - began)


def main(config: LaunchConfig, file: Path) -> None:
    draw, one, all_of_them = random.Random(0), list[float](), list[float]()
    with Replicas(config) as replicas:
        count = len(replicas.engines)
        print(replicas.engines[0].report.table(140), flush=True)
        for _ in range(1 + TURNS):  # the first is not counted
            one.append(tokens_per_s(replicas.engines[0].generate, 1, draw))
            all_of_them.append(tokens_per_s(replicas.generate, count, draw))
            print(f"one {one[-1]:.0f}, {count} {all_of_them[-1]:.0f} tokens/s", flush=True)
    ratios = [several / alone for several, alone in zip(all_of_them[1:], one[1:], strict=True)]
    print(f"{count} groups: {median(ratios):.2f} times one ({min(ratios):.2f} to {max(ratios):.2f})")
    figures = {"machine": describe_machine(), "groups": count, "one": one, "all": all_of_them, "ratios": ratios}
    file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(LaunchConfig.from_yaml(sys.argv[1]), Path(sys.argv[2]))
