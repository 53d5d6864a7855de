"""The command line: its commands, each in a file of :mod:`raylaunch.commands`. Loads neither Ray nor torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer

from raylaunch import __version__
from raylaunch.commands import bench, doctor, evaluate, generate, serve
from raylaunch.commands.printed import open_missing_streams

app = typer.Typer(
    name="raylaunch",
    help="Starts tensor-parallel language models on Ray: every rank in the same phase, every failure with a name.",
    epilog="Exit codes: 0 done, 1 the launch failed or a result could not be written, 2 wrong configuration or "
    "usage, 3 a request failed, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raylaunch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of ``raylaunch`` itself."""


app.command("generate")(generate.generate)
app.command("serve")(serve.serve)
app.command("eval")(evaluate.evaluate)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")


OF_FILES = ("--trace", "--output", "--data", "--plot")
"""Options whose value is a file's name, which may be of any bytes."""


def undecodable(arguments: Sequence[str]) -> str:
    """Why an argument cannot be used: it is not UTF-8, and no file's name; "" if all can be."""
    for before, argument in pairwise(("", *arguments)):
        option, separator, _ = argument.partition("=")
        of_file = before in OF_FILES or (separator and option in OF_FILES)
        config = not argument.startswith("-") and not before.startswith("-") and os.path.isfile(argument)
        if not (of_file or config) and any("\udc80" <= one <= "\udcff" for one in argument):
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            if "api" in before or "api_key" in argument or "api-key" in argument:
                shown = "..."
            name = before if before.startswith("-") else "argument"
            return f"{name} = {shown!r}: is not valid UTF-8, and only names of files may be: write it in UTF-8"
    return ""


def main() -> None:
    """Entry point of the console script and of ``python -m raylaunch``."""
    open_missing_streams()
    if problem := undecodable(sys.argv[1:]):
        print(f"ConfigError {problem}", file=sys.stderr)
        sys.exit(2)
    try:
        app()
    except SystemExit as end:
        cluster = sys.modules.get("raylaunch.cluster")
        if cluster is not None and cluster.abandoned():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        raise
