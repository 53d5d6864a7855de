"""``raylaunch bench prefill``: how long a prompt takes to its first token, in several variants of one launch."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from statistics import median_high
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.benchmarks.plot import draw
from raylaunch.benchmarks.results import JsonFile, Plot, machine_line, require_outputs, sizes_of, write_results
from raylaunch.benchmarks.variants import DEFAULT, Results, comparison, lines_of, measure_all, plain, variants_of
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.printed import deliver
from raylaunch.values.masking import masked

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase

WARM_UP = 3


@dataclass(frozen=True)
class PrefillResult:
    """Seconds from handing in a prompt of ``tokens`` tokens to its first token: median, least, most of ``runs``."""

    tokens: int
    runs: int
    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:.2f} ms ({self.least * 1e3:.2f} to {self.most * 1e3:.2f})"


def bench_prefill(
    launch: Launch,
    tokens: Annotated[str, typer.Option(help="Lengths of prompts.")] = "128,256,512,1024,2048,4096",
    variants: Annotated[str, typer.Option(help="Ways to launch: eager, library, custom, inductor.")] = DEFAULT,
    repeat: Annotated[int, typer.Option(min=1, help="Timed prompts of each length.")] = 15,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Measure prefill: one prompt of random tokens at a time, from handing it in to its first token."""
    with reported():
        lengths = sizes_of("--tokens", tokens, "lengths of prompts such as 128,1024")
        wanted = launch.config()
        chosen = variants_of(variants, wanted)
        require_outputs(json_file, plot)
        from raylaunch.terminal.machine import describe_machine

        machine = describe_machine()

        def show(results: Results[PrefillResult]) -> None:
            medians = {name: {n: one.median * 1e3 for n, one in column.items()} for name, column in results.items()}
            title = f"prefill of {wanted.name}, {wanted.parallel.tensor_parallel_size} ranks: ms to the first token"
            data = {"config": masked("", wanted.model_dump(mode="json")), "prefill": plain(results)}
            text = "\n".join([machine_line(machine), *comparison(title, "tokens", medians, faster_is_less=True)])
            deliver(
                text,
                lambda: write_results(json_file, machine, data),
                lambda: draw(plot, lines_of(medians), title, "prompt tokens", "ms"),
            )

        measure_all(chosen, lengths, refusal, lambda engine, length: time_prefill(engine, length, repeat), show)


def refusal(engine: EngineBase, tokens: int) -> str:
    """Why prompts of this length cannot be measured, or ""."""
    if tokens + 1 > engine.max_context:
        return f"a prompt and one token may have {engine.max_context} tokens together (the context, or the KV cache)"
    return ""


def time_prefill(engine: EngineBase, tokens: int, repeat: int) -> PrefillResult:
    """Times ``repeat`` prompts of ``tokens`` random tokens, one after another, after a few that are not timed."""
    draw_token = random.Random(tokens)
    took = []
    for number in range(WARM_UP + repeat):
        prompt = [draw_token.randrange(engine.shape.vocab_size) for _ in range(tokens)]
        began = time.perf_counter()
        engine.generate([prompt], max_new_tokens=1, temperature=0.0, ignore_eos=True)
        if number >= WARM_UP:
            took.append(time.perf_counter() - began)
    return PrefillResult(tokens, repeat, median_high(took), min(took), max(took))
