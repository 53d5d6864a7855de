"""``raylaunch bench allreduce``: what an all-reduce takes by every way that is possible here, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.benchmarks.plot import draw
from raylaunch.benchmarks.programs import ray_session, run_program
from raylaunch.benchmarks.results import JsonFile, Plot, machine_line, require_outputs, sizes_of, write_results
from raylaunch.errors import ConfigError
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.printed import deliver
from raylaunch.terminal.progress import stderr_console

if TYPE_CHECKING:
    from raylaunch_actors.programs.bench_all_reduce import Measured

    from raylaunch.config import LaunchConfig
    from raylaunch.report import LaunchReport

KIB = 1024
BASELINES = ("nccl in graph", "gloo in graph")


@dataclass(frozen=True)
class AllReduceResult:
    """One way to reduce one size.

    Attributes:
        variant: kind, and ``in graph`` or ``eager``.
        nbytes: of the message.
        microseconds: of one all-reduce, on the slowest rank.
        bus_bandwidth: bytes per second that each rank sends and receives: 2 (n-1)/n times size by time, as NCCL's tests
            define it.
        of_link: share of the NVLinks' limit in one direction, None where that is unknown.
        of_best: times as long as the fastest variant at this size.
        of_library: times as long as the library in a graph, None without it.
    """

    variant: str
    nbytes: int
    microseconds: float
    bus_bandwidth: float
    of_link: float | None
    of_best: float
    of_library: float | None


def bench_allreduce(
    launch: Launch,
    sizes: Annotated[str, typer.Option(help="Message sizes in KiB.")] = "8,16,32,64,128,256,512,1024,2048,4096,8192",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each graph; the median counts.")] = 50,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Time every all-reduce that is possible between the ranks of MODEL, in graphs and eagerly; no model is loaded."""
    with reported():
        wanted = launch.config()
        kibs = sizes_of("--sizes", sizes, "sizes in KiB such as 8,64,1024")
        require_outputs(json_file, plot)
        measuring = bench_config(wanted, [kib * KIB for kib in kibs], repeats)
        from raylaunch.terminal.machine import describe_machine

        machine = describe_machine()
        ranks = wanted.parallel.tensor_parallel_size
        stderr_console().print(f"timing all-reduces of {ranks} ranks")
        with ray_session(measuring, float(ranks)):
            done = run_program(measuring, "bench_all_reduce")
        about, results = results_of(done.report, done.offer)
        data = {**about, "figures": [asdict(result) for result in results]}
        lines = {result.variant: [(f.nbytes, f.microseconds) for f in results if f.variant == result.variant]
                 for result in results}  # fmt: skip
        title = f"all-reduce of {ranks} ranks, {about['dtype']}"
        deliver(
            "\n".join(show(machine, about, results)),
            lambda: write_results(json_file, machine, data),
            lambda: draw(plot, lines, title, "bytes", "microseconds"),
        )


def bench_config(config: LaunchConfig, sizes: Sequence[int], repeats: int) -> LaunchConfig:
    """``config`` for ranks that time all-reduces. Raises :class:`ConfigError`."""
    from raylaunch_actors.programs.bench_all_reduce import REPEATS, SIZES

    if config.parallel.tensor_parallel_size < 2:
        raise ConfigError("parallel.tensor_parallel_size", 1, "one rank reduces nothing; at least 2 are needed")
    environment = {**config.environment, SIZES: json.dumps(list(sizes)), REPEATS: str(repeats)}
    return config.replace(
        {
            "engine.kind": "reference",  # its gates are those of the program that measures
            "communicator.kind": "auto",
            "capture.enabled": False,
            "environment": environment,
        }
    )


def results_of(report: LaunchReport, measured: Sequence[Measured]) -> tuple[dict[str, Any], list[AllReduceResult]]:
    """What was measured, by each rank: on what (for people and JSON), and every result."""
    from raylaunch.protocol import CommunicatorFacts, Gate

    facts = report.facts(Gate.CONNECTED)[0][1][0].facts
    assert isinstance(facts, CommunicatorFacts)
    times = {
        f"{kind} {name}": {size: max(getattr(one, way)[kind][size] for one in measured) for size in sizes}
        for kind, sizes in measured[0].graph.items()
        for way, name in (("graph", "in graph"), ("eager", "eager"))
    }
    bandwidths = [one.link_bandwidth for one in measured if one.link_bandwidth is not None]
    link = min(bandwidths) if len(bandwidths) == len(measured) else None
    about = {
        "ranks": len(measured),
        "device": report.places[0].device,
        "dtype": measured[0].dtype,
        "link_bandwidth": link,
        "auto": [asdict(route) for route in facts.routes],
        "reason": facts.reason,
    }
    return about, compare(times, len(measured), link)


def compare(times: Mapping[str, Mapping[int, float]], ranks: int, link: float | None) -> list[AllReduceResult]:
    """Results from microseconds by variant and size, by size and then as the variants come."""
    baseline = next((times[name] for name in BASELINES if name in times), None)
    results = []
    for size in sorted(next(iter(times.values()))):
        best = min(one[size] for one in times.values())
        for variant, one in times.items():
            bus = 2 * (ranks - 1) / ranks * size / (one[size] / 1e6)
            of_library = one[size] / baseline[size] if baseline else None
            results.append(
                AllReduceResult(
                    variant, size, one[size], bus, bus / link if link else None, one[size] / best, of_library
                )
            )
    return results


def show(machine: Mapping[str, Any], about: Mapping[str, Any], results: Sequence[AllReduceResult]) -> list[str]:
    """The results as lines for people."""
    from raylaunch.protocol import Route
    from raylaunch.protocol.rules.common import human_bytes
    from raylaunch.report import describe_routes

    link = about["link_bandwidth"]
    limit = f"NVLink {link / 1e9:.0f} GB/s in one direction" if link else "the links' limit is unknown"
    width = max(len(result.variant) for result in results)
    lines = [
        machine_line(dict(machine)),
        f"{about['ranks']} ranks on {about['device']}, {about['dtype']}; {limit}",
        "",
        f"{'size':>10}  {'variant':<{width}}  {'us':>10}  {'bus GB/s':>8}  {'of link':>7}  {'of best':>7}  of library",
    ]
    for result in results:
        of_link = f"{result.of_link:.1%}" if result.of_link is not None else "-"
        of_library = f"{result.of_library:.2f}" if result.of_library is not None else "-"
        lines.append(
            f"{human_bytes(result.nbytes):>10}  {result.variant:<{width}}  {result.microseconds:10.1f}  "
            f"{result.bus_bandwidth / 1e9:8.3f}  {of_link:>7}  {result.of_best:7.2f}  {of_library:>10}"
        )
    chosen = describe_routes([Route(**route) for route in about["auto"]])
    return [*lines, "", f"communicator.kind=auto would take: {chosen} ({about['reason']})"]
