"""``raylaunch bench decode``: output tokens per second of requests that run together, in several variants."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.benchmarks.plot import draw
from raylaunch.benchmarks.results import JsonFile, Plot, machine_line, require_outputs, sizes_of, write_results
from raylaunch.benchmarks.variants import (
    DEFAULT,
    Results,
    Unmeasured,
    comparison,
    lines_of,
    measure_all,
    plain,
    variants_of,
)
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.printed import deliver
from raylaunch.values.masking import masked

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase

PROMPT = 16
Arrivals = Sequence[tuple[float, int]]
"""When chunks of one answer came, in seconds, and how many tokens each had."""


@dataclass(frozen=True)
class DecodeResult:
    """While all of ``requests`` requests are being decoded: tokens per second of all, and seconds of a step.

    The medians of ``runs`` runs of ``new_tokens`` tokens each. A step is the time between two tokens of a request:
    several passes where requests take turns, as they are more than the largest decode shape.
    """

    requests: int
    runs: int
    new_tokens: int
    tokens_per_second: float
    step: float

    def __str__(self) -> str:
        return f"{self.tokens_per_second:.0f} tokens/s, {self.step * 1e3:.2f} ms a step"


def bench_decode(
    launch: Launch,
    batch_sizes: Annotated[str, typer.Option(help="Requests that run together.")] = "1,2,4,8,16,32",
    new_tokens: Annotated[int, typer.Option(min=8, help="Tokens that each request generates.")] = 64,
    variants: Annotated[str, typer.Option(help="Ways to launch: eager, library, custom, inductor.")] = DEFAULT,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs of each batch size.")] = 3,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Measure decode: requests that run together, from the moment when all have begun until the first one ends."""
    with reported():
        sizes = sizes_of("--batch-sizes", batch_sizes, "numbers of requests such as 1,8,32")
        wanted = launch.config()
        chosen = variants_of(variants, wanted)
        require_outputs(json_file, plot)
        from raylaunch.terminal.machine import describe_machine

        machine = describe_machine()

        def show(results: Results[DecodeResult]) -> None:
            speeds = {name: {n: one.tokens_per_second for n, one in column.items()} for name, column in results.items()}
            steps = {name: {n: one.step * 1e3 for n, one in column.items()} for name, column in results.items()}
            title = f"decode of {wanted.name}, {wanted.parallel.tensor_parallel_size} ranks: output tokens per second"
            lines = [machine_line(machine), *comparison(title, "requests", speeds, faster_is_less=False)]
            lines += comparison("the same: ms of a step", "requests", steps, faster_is_less=True)
            data = {"config": masked("", wanted.model_dump(mode="json")), "decode": plain(results)}
            deliver(
                "\n".join(lines),
                lambda: write_results(json_file, machine, data),
                lambda: draw(plot, lines_of(speeds), title, "requests", "tokens per second"),
            )

        measure_all(
            chosen,
            sizes,
            lambda engine, size: refusal(engine, size, new_tokens),
            lambda engine, size: time_decode(engine, size, new_tokens, repeat),
            show,
        )


def refusal(engine: EngineBase, requests: int, new_tokens: int) -> str:
    """Why so many requests cannot be measured together, or ""."""
    if PROMPT + new_tokens > engine.max_context:
        return f"{PROMPT} prompt tokens and {new_tokens} new ones are more than the context of {engine.max_context}"
    if requests > engine.config.engine.max_running_requests:
        return f"engine.max_running_requests is {engine.config.engine.max_running_requests}"
    if engine.kv_tokens and requests * (PROMPT + new_tokens) > engine.kv_tokens:
        return f"the KV cache holds {engine.kv_tokens} tokens"
    return ""


def time_decode(engine: EngineBase, requests: int, new_tokens: int, repeat: int) -> DecodeResult:
    """Runs ``requests`` requests together ``repeat`` times, after once that is not timed. Raises :class:`Unmeasured` as
    :func:`common_rate`."""
    draw_token = random.Random(requests)
    rates = []
    for _ in range(1 + repeat):
        prompts = [[draw_token.randrange(engine.shape.vocab_size) for _ in range(PROMPT)] for _ in range(requests)]
        rates.append(common_rate(asyncio.run(_run_together(engine, prompts, new_tokens))))
    rate = median_high(rates[1:])
    return DecodeResult(requests, repeat, new_tokens, rate, requests / rate)


def common_rate(answers: Sequence[Arrivals]) -> float:
    """Tokens per second of all requests together, while all of them were running.

    The sum of the requests' own rates: the tokens of each after its first chunk in that time, up to its last chunk
    there, by the time between the two. Chunks of one step come one after another, so what is cut off at one moment for
    all ends in the middle of a step; each request's own chunks are whole steps apart, whether all decode in every step
    or they take turns because they are more than the largest decode shape.

    Raises :class:`Unmeasured` if they never ran together for as long as each has two chunks.
    """
    began = max(arrivals[0][0] for arrivals in answers)
    ended = min(arrivals[-1][0] for arrivals in answers)
    common = [[arrival for arrival in arrivals if began <= arrival[0] <= ended] for arrivals in answers]
    if any(len(arrivals) < 2 for arrivals in common):
        raise Unmeasured("the requests never ran all at the same time for two steps: generate more tokens")
    return sum(sum(count for _, count in own[1:]) / (own[-1][0] - own[0][0]) for own in common)


async def _run_together(engine: EngineBase, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Arrivals]:
    async def one(prompt: Sequence[int]) -> Arrivals:
        return [
            (time.perf_counter(), len(chunk.token_ids))
            async for chunk in engine.astream(prompt, max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True)
            if chunk.token_ids
        ]

    return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))
