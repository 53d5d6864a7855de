"""``raylaunch serve``: launch, answer HTTP requests until told to stop, shut down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.commands.launch_options import Launch
from raylaunch.errors import ConfigError
from raylaunch.terminal.options import require_writable
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.progress import stderr_console
from raylaunch.terminal.session import launched
from raylaunch.values.api_key import VARIABLE, key_of_environment

if TYPE_CHECKING:
    from raylaunch.config import ServeConfig


def serve(
    launch: Launch,
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any.", show_default="30000")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="What clients must send. Everybody on this machine can see it here: better set the variable.",
            envvar=VARIABLE,
            show_default=False,
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Print the table of phases.")] = True,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome trace of the launch.")] = None,
) -> None:
    """Launch a model and serve it over HTTP: SGLang's and OpenAI's endpoints, metrics and a status page.

    SIGTERM and Ctrl-C let running requests end first. Ends with code 1 if the group is lost for good.
    """
    with reported():
        chosen = launch.config()
        key_of_environment()  # typer would take an empty variable for none
        given = {"host": host, "port": port, "api_key": api_key}
        chosen = chosen.model_copy(update={"serve": changed(chosen.serve, given)})
        require_writable("--trace", trace)
        try:
            from raylaunch.serve.run import bind, require_key_for_code
            from raylaunch.serve.run import serve as run
        except ModuleNotFoundError as error:
            raise ConfigError("serve", error.name, "is not installed; pip install 'raylaunch[serve]'") from None
        console = stderr_console()
        with bind(chosen.serve) as listener:
            require_key_for_code(chosen, chosen.serve, listener)  # before a launch of minutes
            with launched(chosen, show_report=report, trace=trace) as engine:
                run(engine, chosen.serve, listener, say=lambda text: console.print(text, markup=False, soft_wrap=True))


def changed(settings: ServeConfig, given: dict[str, Any]) -> ServeConfig:
    """The settings with those of the command line. Raises :class:`ConfigError`; never shows the key."""
    from pydantic import ValidationError

    changes = {name: value for name, value in given.items() if value is not None}
    data = {name: getattr(settings, name) for name in type(settings).model_fields}
    try:
        return type(settings).model_validate({**data, **changes})
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        expected = str(problem["msg"]).removeprefix("Value error, ")
        expected = expected[0].lower() + expected[1:]
        raise ConfigError(f"--{name.replace('_', '-')}", given.get(name), expected) from None
