"""The page of all commands, made of their own signatures.

python docs/commands_page.py > docs/commands.md
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from raylaunch.commands.app import app
from raylaunch.terminal.launch_options import Launch

HEAD = """# Command line

Made from the commands themselves; a test keeps it true. `raylaunch COMMAND --help` says the same.

"""
LAUNCH = """
## Options of a launch

Every command with a `MODEL` takes them.

`MODEL` is a YAML file or the name of one that ships, a model's folder, or its name on the Hub
([which is which](models.md)); without it the model that adds is launched, on two CPU ranks. What follows `--` are
SGLang's own arguments, as SGLang writes them.

"""
OF_LAUNCH = {field.name for field in fields(Launch)}
VALUES = {int: "number", float: "number", str: "text"}


def commands_page() -> str:
    """All commands as Markdown: a table of options for each, and once those of a launch."""
    commands = list(_commands(app, "raylaunch"))
    (launch,) = {rows for _, callback in commands if (rows := tuple(_rows(callback, of_launch=True)))}
    sections = (_section(name, callback) for name, callback in commands)
    return "".join([HEAD, f"{app.info.epilog}\n", *sections, LAUNCH, _table(launch)])


def _commands(group: typer.Typer, name: str) -> Iterator[tuple[str, Callable[..., None]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{name} {command.name}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{name} {inner.name}")


def _section(name: str, callback: Callable[..., None]) -> str:
    launches = "model" in inspect.signature(callback).parameters
    usage = f"{name} [OPTIONS] [MODEL] [-- SGLANG'S ARGUMENTS]" if launches else name
    parts = (
        f"## `{name}`",
        f"```text\n{usage}\n```",
        inspect.getdoc(callback),
        _table(_rows(callback, of_launch=False)),
    )
    return "\n" + "\n\n".join(map(str, parts))


def _rows(callback: Callable[..., None], *, of_launch: bool) -> Iterator[str]:
    for one in inspect.signature(callback, eval_str=True).parameters.values():
        kind, *more = typing.get_args(one.annotation) or (None,)
        info = next((info for info in more if isinstance(info, OptionInfo | ArgumentInfo)), None)
        if info is not None and one.name != "model" and (one.name in OF_LAUNCH) is of_launch:
            yield _row(one.name, kind, one.default, info)


def _row(name: str, kind: Any, default: Any, info: OptionInfo | ArgumentInfo) -> str:
    spelled = _spelled(name, kind, info)
    about = f"{info.help}{f' Or set `{info.envvar}`.' if info.envvar else ''}"
    cells = (", ".join(f"`{one}`" for one in spelled), _value(kind, info), _default(spelled, default, info), about)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _spelled(name: str, kind: Any, info: OptionInfo | ArgumentInfo) -> list[str]:
    """What it is called on the command line. Inside ``Annotated`` the first name is where a default would be."""
    if isinstance(info, ArgumentInfo):
        return [info.metavar or name.upper()]
    given = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
    own = name.replace("_", "-")
    return [one for names in given for one in names.split("/")] or [f"--{own}", *([f"--no-{own}"] * (kind is bool))]


def _value(kind: Any, info: OptionInfo | ArgumentInfo) -> str:
    if info.metavar:
        return f"`{info.metavar}`"
    while isinstance(kind, types.UnionType) or typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    return "" if kind is bool else VALUES.get(kind, "text")


def _default(spelled: list[str], default: Any, info: OptionInfo | ArgumentInfo) -> str:
    if default is inspect.Parameter.empty:
        return "must be given"
    if isinstance(info.show_default, str):
        return info.show_default
    if len(spelled) > 1:
        return f"`{spelled[0 if default else 1]}`"
    return "" if default in (None, False) else f"`{default}`"


def _table(rows: Iterable[str]) -> str:
    return "| option | value | default | what it is |\n|---|---|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    print(commands_page(), end="")
