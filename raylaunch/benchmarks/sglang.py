"""``raylaunch bench sglang``: SGLang started by its own launcher and by raylaunch, measured by the same client."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.benchmarks.results import JsonFile, machine_line, numbers_of, told_in_the_end, write_results
from raylaunch.errors import ConfigError
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.options import require_writable
from raylaunch.terminal.outcome import interruptible, reported
from raylaunch.terminal.printed import deliver
from raylaunch.terminal.progress import stderr_console

if TYPE_CHECKING:
    from raylaunch.benchmarks.timed_server import Command, Served
    from raylaunch.config import LaunchConfig

SEGMENTS = "sgl*_*"
JOINED = "raylaunch, Ray started before"
READY, READY_JOINED = "ready, s", "ready, Ray started before"


def bench_sglang(
    launch: Launch,
    prompts: Annotated[str, typer.Option(help="Prompt lengths to measure prefill with.")] = "256,512,1024,2048,4096",
    repeat: Annotated[int, typer.Option(min=1, help="Requests of each length; the median counts.")] = 15,
    concurrent: Annotated[int, typer.Option(min=1, help="Requests that are decoded at the same time.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens that each of them generates.")] = 64,
    warm: Annotated[bool, typer.Option(help="First start one untimed, to fill the caches of kernels.")] = True,
    starts: Annotated[int, typer.Option(min=1, help="How often each is started, in turn; the medians count.")] = 2,
    together: Annotated[
        bool, typer.Option(help="Have both up, each with half of the memory; deal processors out to them.")
    ] = False,
    joined: Annotated[
        bool, typer.Option(help="Measure raylaunch also as it joins a Ray cluster that was started before.")
    ] = False,
    traces: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a Chrome trace of each of raylaunch's launches there.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare raylaunch with SGLang's own launcher: time to ready, prefill latency, decode throughput.

    What ships with another engine, the default too, needs --engine sglang.
    """
    with reported():
        chosen = launch.config()
        lengths = numbers_of("--prompts", prompts, "prompt lengths such as 256,1024")
        require_writable("--json", json_file)
        require_comparable(chosen, together, joined)
        if traces is not None:
            require_writable("--traces", traces / "raylaunch-1.json")
        from raylaunch.benchmarks.programs import ray_session
        from raylaunch.benchmarks.timed_server import Work, measure
        from raylaunch.model_check import resolve
        from raylaunch.terminal.machine import describe_machine

        resolved = resolve(chosen)
        require_fitting(lengths, new_tokens, resolved.max_context)
        work = Work(tuple(lengths), repeat, concurrent, new_tokens, resolved.shape.vocab_size)
        machine = describe_machine()
        results: dict[str, list[Served]] = {}

        def tell() -> None:
            data = {name: [asdict(one) for one in each] for name, each in results.items()}
            deliver("\n".join(show(machine, results)), lambda: write_results(json_file, machine, data))

        with (
            told_in_the_end(lambda: results, tell),
            interruptible(),
            tempfile.TemporaryDirectory(prefix="raylaunch-bench-") as folder,
            segments_removed(),
            ray_session(chosen, resolved.request.cpus) if joined else contextlib.nullcontext() as cluster,
        ):
            servers = commands(resolved.config, Path(folder), cluster.address if cluster else None, traces)
            if warm:
                stderr_console().print("sglang, untimed")
                measure({"sglang": servers["sglang"]}, Path(folder), work.shortest())
            for group in groups(servers, starts, together):
                for name, measured in measure(group, Path(folder), work).items():
                    stderr_console().print(f"{name}: {measured}")
                    results.setdefault(name, []).append(measured)


def require_fitting(lengths: Sequence[int], new_tokens: int, context: int) -> None:
    """Raises :class:`ConfigError` where a prompt and its answer have more tokens than the context."""
    from raylaunch.benchmarks.timed_server import DECODE_PROMPT

    longest = max(lengths, default=0)
    if longest + 1 > context:
        raise ConfigError("--prompts", longest, f"a prompt and one token may have {context} together, the context")
    if DECODE_PROMPT + new_tokens > context:
        expected = f"with {DECODE_PROMPT} tokens of a prompt these are more than the context of {context}"
        raise ConfigError("--new-tokens", new_tokens, expected)


def require_comparable(config: LaunchConfig, together: bool, joined: bool = False) -> None:
    """Raises :class:`ConfigError` where the two launchers would not be measured alike."""
    if config.engine.kind != "sglang":
        expected = "must be sglang, which is launched in two ways: give a CONFIG with it, such as qwen3-8b-tp2"
        raise ConfigError("engine.kind", config.engine.kind, expected)
    from raylaunch.config.address import cluster_to_join

    address = cluster_to_join(config.placement.address)
    if together and len(os.sched_getaffinity(0)) < 2:
        raise ConfigError("--together", True, "processors are dealt out to two servers, and this process may use one")
    if together and joined:
        raise ConfigError("--joined", True, "goes without --together: processors are dealt out to what a server starts")
    if together and address:
        expected = "must not be set, nor RAY_ADDRESS, with --together: processors are dealt out to what a server starts"
        raise ConfigError("placement.address", address, expected)
    if joined and address:
        expected = "must not be set, nor RAY_ADDRESS, with --joined: raylaunch is also measured with a Ray of its own"
        raise ConfigError("placement.address", address, expected)


def groups(servers: Mapping[str, Command], starts: int, together: bool) -> list[dict[str, Command]]:
    """What is measured one after another; those of one group are up at the same time.

    Together they are started in an order that is turned round each time: where a process comes to lie on a machine
    with busy processors is decided at its start.
    """
    one_way = dict(servers)
    if together:
        return [one_way if start % 2 == 0 else dict(reversed(one_way.items())) for start in range(starts)]
    return [{name: command} for name, command in one_way.items()] * starts


def commands(
    config: LaunchConfig, folder: Path, cluster: str | None = None, traces: Path | None = None
) -> dict[str, Command]:
    """How each server is started on a port. All get the same server arguments, the same variables, and what was
    compiled before for any.

    Args:
        cluster: address of the Ray cluster that raylaunch joins too; None for none.
        traces: folder for the traces of raylaunch's launches.
    """
    import sys

    from raylaunch_actors.sglang_engine.environment import caches

    from raylaunch.sglang.arguments import LONGER_CONTEXT, implementation, of_the_server, server_arguments

    file = folder / "config.yaml"  # JSON is YAML; what was not set must stay so, as some defaults are SGLang's
    open_to_all = config.replace({"serve.api_key": None})
    data = open_to_all.model_dump(mode="json", by_alias=True, exclude_unset=True)
    file.write_text(json.dumps(data), encoding="utf-8")
    arguments = server_arguments(config) | of_the_server(config)
    kept = caches(config.engine.sglang.cache_dir)
    variables = {**kept, **LONGER_CONTEXT, **implementation(config.communicator.kind), **config.environment}
    told = folder / "sglang.json"  # not on the command line, which everybody can see: variables may be secret
    told.write_text(json.dumps({"arguments": arguments, "variables": variables}), encoding="utf-8")

    numbers = itertools.count(1)

    def theirs(port: int) -> list[str]:
        return [sys.executable, "-m", "raylaunch.benchmarks.sglang_server", str(told), str(port)]

    def ours(port: int) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(port), "--no-report"]
        if traces is not None:
            options += ["--trace", str(traces / f"raylaunch-{next(numbers)}.json")]
        return [sys.executable, "-m", "raylaunch", "serve", str(file), *options]

    def joining(port: int) -> list[str]:
        return [*ours(port), "--set", f"placement.address={cluster}"]

    return {"sglang": theirs, "raylaunch": ours, **({JOINED: joining} if cluster else {})}


@contextlib.contextmanager
def segments_removed(folder: Path = Path("/dev/shm")) -> Iterator[None]:
    """SGLang's own launcher leaves shared memory behind (https://github.com/sgl-project/sglang/pull/28089): what is new
    in the end, this user's, and not mapped, is removed."""
    before = set(folder.glob(SEGMENTS))
    try:
        yield
    finally:
        for left in set(folder.glob(SEGMENTS)) - before:
            with contextlib.suppress(OSError):  # it may be gone meanwhile
                # Others' processes do not show what they have mapped.
                if left.stat().st_uid == os.getuid() and not is_mapped_by_any(left):
                    left.unlink()


def is_mapped_by_any(file: Path) -> bool:
    """Whether a process of this machine has a file mapped, of those that this user may look into."""
    return any(is_mapped(file, process) for process in Path("/proc").glob("[0-9]*"))


def is_mapped(file: Path, process: Path) -> bool:
    """Whether a process, a folder of ``/proc``, has a file mapped; one that has ended has none."""
    try:
        return str(file) in (process / "maps").read_text(errors="replace")
    except OSError:
        return False


def show(machine: dict[str, Any], results: dict[str, list[Served]]) -> list[str]:
    """The means as lines for people, of what was measured of SGLang's own at least; a ratio above 1 is for raylaunch.

    ``+-`` is the standard error of the ratio, from the deals of the processors; ``alike`` is the ratio of SGLang's own
    starts, smallest to largest: what comes of nothing but another start.
    """
    theirs, ours = (rows(results[name]) if name in results else {} for name in ("sglang", "raylaunch"))
    if JOINED in results:
        theirs[READY_JOINED], ours[READY_JOINED] = theirs[READY], rows(results[JOINED])[READY]
    lines = [
        machine_line(machine),
        "",
        f"{'':<26} {'sglang':>10} {'raylaunch':>10} {'ratio':>7} {'+-':>7} {'alike':>7}",
    ]
    for name, values in theirs.items():
        starts = [fmean(one) for one in values]
        before, alike = median(starts), min(starts) / max(starts)
        compared = f"{'-':>10} {'-':>7} {'-':>7}"
        if name in ours:
            after = median(fmean(one) for one in ours[name])
            ratio = after / before if name.endswith("tokens/s") else before / after
            error = f"{standard_error(values, ours[name]):7.3f}" if len(values[0]) > 2 else f"{'-':>7}"
            compared = f"{after:10.2f} {ratio:7.3f} {error}"
        lines.append(f"{name:<26} {before:10.2f} {compared} {alike:7.3f}")
    return lines


def standard_error(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> float:
    """Of the ratio of two servers, from the ratios of all pairs of deals in which they had the same processors.

    Args:
        theirs, ours: results of each start, one for each deal, as many for both.
    """
    ratios = [
        fmean(mine[deal : deal + 2]) / fmean(other[deal : deal + 2])
        for mine, other in zip(ours, theirs, strict=True)
        for deal in range(0, len(mine), 2)
    ]
    return stdev(ratios) / math.sqrt(len(ratios))


def rows(starts: list[Served]) -> dict[str, list[list[float]]]:
    """Results of one launcher's starts, and of their deals, by the name of the row that shows them."""
    made = {READY: [[one.ready_s] for one in starts]}
    for length in starts[0].prefill_ms:
        made[f"prefill {length} tokens, ms"] = [one.prefill_ms[length] for one in starts]
    made["decode, tokens/s"] = [one.decode_tokens_per_s for one in starts]
    return made
