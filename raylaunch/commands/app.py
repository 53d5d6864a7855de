"""The command line: its commands, each in a file of :mod:`raylaunch.commands`. Loads neither Ray nor torch."""

from __future__ import annotations

from typing import Annotated

import typer

from raylaunch import benchmarks
from raylaunch.commands import chat, doctor, evaluate, generate, serve, show_config
from raylaunch.terminal.launch_options import add_command

app = typer.Typer(
    name="raylaunch",
    help="Starts tensor-parallel language models on Ray: every rank in the same phase, every failure with a name.",
    epilog="Exit codes: 0 done, 1 the launch failed or a result could not be written, 2 wrong configuration or "
    "usage, 3 a request failed, 130 interrupted, 141 standard output is read no further.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from raylaunch import __version__

        typer.echo(f"raylaunch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of ``raylaunch`` itself."""


add_command(app, "generate", generate.generate)
add_command(app, "serve", serve.serve)
add_command(app, "chat", chat.chat)
add_command(app, "eval", evaluate.evaluate)
add_command(app, "doctor", doctor.doctor)
add_command(app, "config", show_config.show_config)
app.add_typer(benchmarks.app, name="bench")
