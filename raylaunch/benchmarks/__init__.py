"""``raylaunch bench``: measurements, a file per command; ``results`` has what they share."""

from __future__ import annotations

import typer

from raylaunch.benchmarks import allreduce, decode, launch, prefill, sglang

app = typer.Typer(help="Measurements.", no_args_is_help=True)
app.command("launch")(launch.bench_launch)
app.command("allreduce")(allreduce.bench_allreduce)
app.command("prefill")(prefill.bench_prefill)
app.command("decode")(decode.bench_decode)
app.command("sglang")(sglang.bench_sglang)
