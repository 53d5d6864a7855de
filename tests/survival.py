"""Requests that outlive their group: every rank killed and stopped in turn under clients that stream; both engines."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from signal import Signals

from raylaunch import Engine, RaylaunchError
from raylaunch.frontends.sampling import SamplingParams

CLIENTS = 16
AGAIN_S = 150.0


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        failed: errors in place of an answer.
        unlike: prompts and answers that differ from those without a loss, which stand beside them.
        at: when tokens came, on the monotonic clock.
        answers: how many were whole and right.
        pauses: seconds from each signal to the next token of anybody.
    """

    failed: list[str] = field(default_factory=list)
    unlike: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    answers: int = 0
    pauses: list[float] = field(default_factory=list)


def survive(
    engine: Engine,
    losses: int,
    prompts: Sequence[str],
    params: SamplingParams,
    ready: Callable[[], object] = lambda: None,
) -> Seen:
    """Loses each rank in turn, by SIGKILL and by SIGSTOP, while 16 clients stream greedy answers.

    Args:
        ready: called before each loss, and waited for.
    """
    answers = engine.generate(prompts, params)
    right = dict(zip(prompts, (answer.token_ids for answer in answers), strict=True))
    seen, done, draw = Seen(), threading.Event(), random.Random(0)
    clients = [threading.Thread(target=_ask, args=(engine, n, right, params, done, seen)) for n in range(CLIENTS)]
    for one in clients:
        one.start()
    try:
        ranks = range(len(engine.report.places))
        strikes = itertools.cycle(itertools.product((Signals.SIGKILL, Signals.SIGSTOP), ranks))
        for number, rank in itertools.islice(strikes, losses):
            ready()
            time.sleep(draw.uniform(0.3, 1.5))
            _strike(engine, number, rank, seen)
        time.sleep(0.5)
    finally:
        done.set()
        for one in clients:
            one.join(AGAIN_S)
    assert not any(one.is_alive() for one in clients), "a request hangs"
    return seen


def _strike(engine: Engine, number: Signals, rank: int, seen: Seen) -> None:
    before = len(engine.failures)
    os.kill(engine.report.places[rank].pid, number)
    struck = time.monotonic()
    while len(engine.failures) == before:
        assert time.monotonic() < struck + 30, f"{number.name} to rank {rank} was not noticed"
        time.sleep(0.01)
    lost = time.monotonic()
    assert engine.wait_ready(AGAIN_S), engine.last_error
    while seen.at[-1] < lost:
        assert time.monotonic() < lost + AGAIN_S, "no token came after the rebuild"
        time.sleep(0.01)
    seen.pauses.append(min(at for at in seen.at if at > lost) - struck)
    print(f"{number.name} to rank {rank}: next token after {seen.pauses[-1]:.1f} s", flush=True)


def _ask(
    engine: Engine,
    number: int,
    right: dict[str, tuple[int, ...]],
    params: SamplingParams,
    done: threading.Event,
    seen: Seen,
) -> None:
    """Streams one answer after the other, and compares each, token by token."""
    draw = random.Random(number)
    while not done.is_set():
        prompt = draw.choice(sorted(right))
        tokens: list[int] = []
        try:
            for chunk in engine.stream(prompt, params):
                tokens += chunk.token_ids
                seen.at.append(time.monotonic())
        except RaylaunchError as error:
            seen.failed.append(str(error))
            continue
        if tuple(tokens) == right[prompt]:
            seen.answers += 1
        else:
            seen.unlike.append((prompt, tuple(tokens), right[prompt]))
