"""``raylaunch serve``: launch, answer HTTP requests until told to stop, shut down."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.errors import ConfigError
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.options import require_writable
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.progress import stderr_console
from raylaunch.terminal.session import launched
from raylaunch.values.api_key import VARIABLE

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig


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
        from raylaunch.group.preloaded import preloading

        with preloading(chosen) as preloaded:  # before Ray is imported, and the rest is looked at
            try:
                from raylaunch.serve.run import bind, exposed, require_key_for_code
                from raylaunch.serve.run import serve as run
            except ModuleNotFoundError as error:
                raise ConfigError("serve", error.name, "is not installed; pip install 'raylaunch[serve]'") from None
            from raylaunch.config.api_key import key_of_environment

            key_of_environment()  # typer would take an empty variable for none
            chosen = changed(chosen, {"host": host, "port": port, "api_key": api_key})
            chosen = chosen.model_copy(update={"recovery": chosen.recovery.of_server()})
            require_writable("--trace", trace)
            console = stderr_console()
            with bind(chosen.serve) as listener:
                require_key_for_code(chosen, exposed=exposed(chosen.serve, listener))  # before a launch of minutes
                with launched(chosen, show_report=report, trace=trace, preloaded=preloaded) as engine:
                    gc.freeze()  # or each full collection walks through all that was imported, between two requests
                    run(engine, chosen.serve, listener, say=partial(console.print, markup=False, soft_wrap=True))


def changed(config: LaunchConfig, given: dict[str, Any]) -> LaunchConfig:
    """The configuration with the options that were given. Raises :class:`ConfigError`; never shows the key."""
    try:
        return config.replace({f"serve.{name}": value for name, value in given.items() if value is not None})
    except ConfigError as error:
        option = error.key.removeprefix("serve.").replace("_", "-")
        raise ConfigError(f"--{option}", error.value, error.expected) from None
