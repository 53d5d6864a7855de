"""``raylaunch bench sglang``: SGLang started by its own launcher and by raylaunch, measured by the same client."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.commands.bench.figures import JsonFile, machine_line, numbers_of, write_figures
from raylaunch.commands.options import Config, Settings, load_config, require_writable
from raylaunch.commands.outcome import reported
from raylaunch.commands.progress import stderr_console
from raylaunch.errors import ConfigError

if TYPE_CHECKING:
    from raylaunch.commands.bench.timed_server import Command, Served
    from raylaunch.config import LaunchConfig


def bench_sglang(
    config: Config = None,
    settings: Settings = None,
    prompts: Annotated[str, typer.Option(help="Prompt lengths to measure prefill with.")] = "256,512,1024,2048,4096",
    repeat: Annotated[int, typer.Option(min=1, help="Requests of each length; the median counts.")] = 15,
    concurrent: Annotated[int, typer.Option(min=1, help="Requests that are decoded at the same time.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens that each of them generates.")] = 64,
    warm: Annotated[bool, typer.Option(help="First start one untimed, to fill the caches of kernels.")] = True,
    starts: Annotated[int, typer.Option(min=1, help="How often each is started, in turn; the medians count.")] = 2,
    together: Annotated[
        bool, typer.Option(help="Have both up and ask them in turn: each needs half of the memory.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Compare raylaunch with SGLang's own launcher: time to ready, prefill latency, decode throughput."""
    with reported():
        chosen = load_config(config, settings)
        lengths = numbers_of("--prompts", prompts, "prompt lengths such as 256,1024")
        require_writable("--json", json_file)
        if chosen.engine.kind != "sglang":
            raise ConfigError("engine.kind", chosen.engine.kind, "must be sglang: the same engine is launched twice")
        from raylaunch.commands.bench.timed_server import Work, measure
        from raylaunch.commands.machine import describe_machine
        from raylaunch.model_check import check_model

        work = Work(tuple(lengths), repeat, concurrent, new_tokens, check_model(chosen).vocab_size)
        machine = describe_machine()
        figures: dict[str, list[Served]] = {}
        with tempfile.TemporaryDirectory(prefix="raylaunch-bench-") as folder:
            servers = commands(chosen, Path(folder))
            if warm:
                stderr_console().print("sglang, untimed")
                measure({"sglang": servers["sglang"]}, Path(folder), work.shortest())
            for group in groups(servers, starts, together):
                for name, measured in measure(group, Path(folder), work).items():
                    stderr_console().print(f"{name}: {measured}")
                    figures.setdefault(name, []).append(measured)
        typer.echo("\n".join(show(machine, figures)))
        write_figures(json_file, machine, {name: [asdict(one) for one in each] for name, each in figures.items()})


def groups(servers: Mapping[str, Command], starts: int, together: bool) -> list[dict[str, Command]]:
    """What is measured one after another; those of one group are up at the same time.

    Together they are started in an order that is turned round each time: where a process comes to lie on a machine
    with busy processors is decided at its start.
    """
    one_way = dict(servers)
    if together:
        return [one_way if start % 2 == 0 else dict(reversed(one_way.items())) for start in range(starts)]
    return [{name: command} for name, command in one_way.items()] * starts


def commands(config: LaunchConfig, folder: Path) -> dict[str, Command]:
    """How each server is started on a port. Both get the same server arguments."""
    import sys

    from raylaunch.sglang.arguments import server_arguments

    file = folder / "config.yaml"  # JSON is YAML; what was not set must stay so, as some defaults are SGLang's
    open_to_all = config.model_copy(update={"serve": config.serve.model_copy(update={"api_key": None})})
    data = open_to_all.model_dump(mode="json", by_alias=True, exclude_unset=True)
    file.write_text(json.dumps(data), encoding="utf-8")
    arguments = server_arguments(config)

    def theirs(port: int) -> list[str]:
        text = json.dumps({**arguments, "host": "127.0.0.1", "port": port})
        return [sys.executable, "-m", "raylaunch.commands.bench.sglang_server", text]

    def ours(port: int) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(port), "--no-report"]
        return [sys.executable, "-m", "raylaunch", "serve", str(file), *options]

    return {"sglang": theirs, "raylaunch": ours}


def show(machine: dict[str, Any], figures: dict[str, list[Served]]) -> list[str]:
    """The medians as lines for people; a ratio above 1 is for raylaunch.

    ``alike`` is the ratio of SGLang's own starts, smallest to largest: what comes of nothing but another start.
    """
    theirs, ours = (rows(figures[name]) for name in ("sglang", "raylaunch"))
    lines = [machine_line(machine), "", f"{'':<26} {'sglang':>10} {'raylaunch':>10} {'ratio':>7} {'alike':>7}"]
    for name, values in theirs.items():
        before, after = median(values), median(ours[name])
        ratio = after / before if name.endswith("tokens/s") else before / after
        lines.append(f"{name:<26} {before:10.2f} {after:10.2f} {ratio:7.3f} {min(values) / max(values):7.3f}")
    return lines


def rows(starts: list[Served]) -> dict[str, list[float]]:
    """Figures of one launcher's starts by the name of the row that shows them."""
    made = {"ready, s": [one.ready_s for one in starts]}
    for length in starts[0].prefill_ms:
        made[f"prefill {length} tokens, ms"] = [one.prefill_ms[length] for one in starts]
    made["decode, tokens/s"] = [one.decode_tokens_per_s for one in starts]
    return made
