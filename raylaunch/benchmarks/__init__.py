"""``raylaunch bench``: measurements, a file per command; ``results`` has what they share."""

from __future__ import annotations

import typer

from raylaunch.benchmarks import allreduce, decode, launch, prefill, sglang
from raylaunch.benchmarks.sweep.command import bench_sweep
from raylaunch.terminal.launch_options import add_command

app = typer.Typer(help="Measurements.", no_args_is_help=True)
add_command(app, "launch", launch.bench_launch)
add_command(app, "allreduce", allreduce.bench_allreduce)
add_command(app, "prefill", prefill.bench_prefill)
add_command(app, "decode", decode.bench_decode)
add_command(app, "sglang", sglang.bench_sglang)
app.command("sweep")(bench_sweep)
