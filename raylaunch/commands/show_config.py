"""``raylaunch config``: what a command line would launch, as a file that launches the same."""

from __future__ import annotations

from typing import Annotated

import typer

from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.printed import say


def show_config(
    launch: Launch,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of configurations instead.")] = False,
) -> None:
    """Print the whole configuration of a launch as YAML that starts the same launch; launch nothing.

    What is at its default is a comment. Secrets are left out.
    """
    with reported():
        from raylaunch.config.printed import as_schema, as_yaml

        say(as_schema() if schema else as_yaml(launch.config()), end="\n" if schema else "")
