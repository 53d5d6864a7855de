"""``raylaunch bench launch``: what a barrier of the driver costs, and how long each phase of a launch takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median_high
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.benchmarks.programs import ray_session, run_program
from raylaunch.benchmarks.results import JsonFile, machine_line, numbers_of, percentile, told_in_the_end, write_results
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.options import require_writable
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.printed import deliver
from raylaunch.terminal.progress import stderr_console
from raylaunch.terminal.session import launched

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig
    from raylaunch.report import LaunchReport

NOOP_SHAPES = 100


@dataclass(frozen=True)
class StepCost:
    """What one barrier costs while ranks do nothing. Milliseconds; ``per_rank`` is the median's share of one rank."""

    ranks: int
    steps: int
    median: float
    p99: float
    per_rank: float


def bench_launch(
    launch: Launch,
    repeat: Annotated[int, typer.Option(min=0, help="Launches of MODEL; 0 measures barriers only.")] = 3,
    ranks: Annotated[str, typer.Option(help='Group sizes to measure barriers with; "" measures none.')] = "2,4,8",
    json_file: JsonFile = None,
) -> None:
    """Measure the driver: a barrier of ranks that do nothing, and the phases of whole launches."""
    with reported():
        wanted = launch.config()
        sizes = numbers_of("--ranks", ranks, "numbers of ranks such as 2,4,8")
        require_writable("--json", json_file)
        idle = {size: noop_config(wanted, size) for size in sizes}
        from raylaunch.model_check import resolve
        from raylaunch.terminal.machine import describe_machine

        wholes = [resolve(wanted)] * repeat if repeat else []  # before barriers are measured: it may be impossible
        machine = describe_machine()
        costs: list[StepCost] = []
        launches: list[dict[str, Any]] = []

        def tell() -> None:
            barriers = [asdict(cost) for cost in costs]
            results = {"barriers": barriers, "launches": launches, "medians": medians(launches)}
            deliver("\n".join(show(machine, costs, launches)), lambda: write_results(json_file, machine, results))

        with told_in_the_end(lambda: costs or launches, tell):
            if idle:
                time_barriers(idle, costs)
            for number, whole in enumerate(wholes, 1):
                stderr_console().print(f"launch {number} of {repeat}")
                with launched(whole, show_report=False) as engine:
                    launches.append(engine.report.to_dict())


def noop_config(config: LaunchConfig, ranks: int) -> LaunchConfig:
    """``config`` for ranks that do nothing: no model, GPU or fault, and many barriers. Raises :class:`ConfigError`."""
    return config.replace(
        {
            "parallel.tensor_parallel_size": ranks,
            "engine": {"kind": "reference", "device": "cpu"},  # whose rounds are known beforehand
            "placement.resources_per_rank": {},
            "faults": (),
            "debug": "off",
            "communicator": {},
            "capture": {
                "prefill_tokens": tuple(range(2, NOOP_SHAPES + 2)),
                "decode_batch_sizes": (2,),
                "granularity": "iteration",
            },
        }
    )


def time_barriers(configs: dict[int, LaunchConfig], costs: list[StepCost]) -> None:
    """Launches idle ranks in each size, times their barriers and adds what they cost. Raises :class:`LaunchError`."""
    with ray_session(next(iter(configs.values())), float(max(configs))):
        for size, config in configs.items():
            stderr_console().print(f"barriers of {size} ranks")
            costs.append(cost_of(size, run_program(config, "noop").report))


def cost_of(ranks: int, report: LaunchReport) -> StepCost:
    """From release to release, over the barriers inside CAPTURE."""
    from raylaunch.protocol import Gate

    took = [
        (after.released - before.released) * 1e3
        for before, after in pairwise(report.steps)
        if after.step.gate is Gate.ITERATION
    ]
    middle = median_high(took)
    return StepCost(ranks, len(took), middle, percentile(took, 99), middle / ranks)


def medians(launches: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of every phase, and of ``ready``."""
    if not launches:
        return {}
    phases = {name: median_high(one["phases"][name]["seconds"] for one in launches) for name in launches[0]["phases"]}
    return {**phases, "ready": median_high(one["seconds"] for one in launches)}


def show(machine: dict[str, Any], costs: list[StepCost], launches: list[dict[str, Any]]) -> list[str]:
    """The results as lines for people."""
    lines = [machine_line(machine)]
    if costs:
        lines += ["", "one barrier, ranks idle, milliseconds", " ranks  barriers  median     p99  per rank"]
        lines += [f"{c.ranks:6}  {c.steps:8}  {c.median:6.2f}  {c.p99:6.2f}  {c.per_rank:8.2f}" for c in costs]
    if launches:
        lines += ["", f"a whole launch, median of {len(launches)}, seconds"]
        every = [*(launch["phases"] for launch in launches)]
        for name, middle in medians(launches).items():
            values = [one[name]["seconds"] for one in every] if name != "ready" else [o["seconds"] for o in launches]
            lines.append(f"  {name:<9} {middle:7.2f}   ({min(values):.2f} to {max(values):.2f})")
    return lines
