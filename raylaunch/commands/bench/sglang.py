"""``raylaunch bench sglang``: SGLang started by its own launcher and by raylaunch, measured by the same client."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.commands.bench.figures import JsonFile, machine_line, numbers_of, write_figures
from raylaunch.commands.options import Config, Settings, load_config, require_writable
from raylaunch.commands.outcome import reported
from raylaunch.commands.progress import stderr_console
from raylaunch.errors import ConfigError

if TYPE_CHECKING:
    from raylaunch.commands.bench.timed_server import Served
    from raylaunch.config import LaunchConfig


def bench_sglang(
    config: Config = None,
    settings: Settings = None,
    prompts: Annotated[str, typer.Option(help="Prompt lengths to measure prefill with.")] = "256,512,1024,2048,4096",
    repeat: Annotated[int, typer.Option(min=1, help="Requests of each length; the median counts.")] = 15,
    concurrent: Annotated[int, typer.Option(min=1, help="Requests that are decoded at the same time.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens that each of them generates.")] = 64,
    warm: Annotated[bool, typer.Option(help="First start both once untimed, to fill the caches of kernels.")] = True,
    json_file: JsonFile = None,
) -> None:
    """Compare raylaunch with SGLang's own launcher: time to ready, prefill latency, decode throughput."""
    with reported():
        chosen = load_config(config, settings)
        lengths = numbers_of("--prompts", prompts, "prompt lengths such as 256,1024")
        require_writable("--json", json_file)
        if chosen.engine.kind != "sglang":
            raise ConfigError("engine.kind", chosen.engine.kind, "must be sglang: the same engine is launched twice")
        from raylaunch.commands.bench.timed_server import measure
        from raylaunch.commands.machine import describe_machine
        from raylaunch.model_check import check_model

        vocabulary = check_model(chosen).vocab_size
        machine = describe_machine()
        figures: dict[str, Served] = {}
        with tempfile.TemporaryDirectory(prefix="raylaunch-bench-") as folder:
            for name, command in commands(chosen, Path(folder)).items():
                for timed in (False, True) if warm else (True,):
                    stderr_console().print(f"{name}{'' if timed else ', untimed'}")
                    log = Path(folder) / f"{name}.log"
                    measured = measure(
                        command,
                        log,
                        lengths if timed else lengths[:1],
                        repeat if timed else 1,
                        concurrent,
                        new_tokens,
                        vocabulary,
                    )
                    if timed:
                        figures[name] = measured
        typer.echo("\n".join(show(machine, figures)))
        write_figures(json_file, machine, {name: asdict(one) for name, one in figures.items()})


def commands(config: LaunchConfig, folder: Path) -> dict[str, Callable[[int], list[str]]]:
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


def show(machine: dict[str, Any], figures: dict[str, Served]) -> list[str]:
    """The figures as lines for people; a ratio above 1 is for raylaunch."""
    theirs, ours = figures["sglang"], figures["raylaunch"]
    rows = [("ready, s", theirs.ready_s, ours.ready_s, theirs.ready_s / ours.ready_s)]
    for length, before in theirs.prefill_ms.items():
        after = ours.prefill_ms[length]
        rows.append((f"prefill {length} tokens, ms", before, after, before / after))
    before, after = theirs.decode_tokens_per_s, ours.decode_tokens_per_s
    rows.append(("decode, tokens/s", before, after, after / before))
    lines = [machine_line(machine), "", f"{'':<26} {'sglang':>10} {'raylaunch':>10} {'ratio':>7}"]
    return lines + [f"{name:<26} {left:10.2f} {right:10.2f} {ratio:7.2f}" for name, left, right, ratio in rows]
