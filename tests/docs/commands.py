"""Whether a shell command can be meant as it is written, without running it."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from raylaunch.commands.app import app
from raylaunch.config import LaunchConfig, apply_overrides, shipped_configs
from raylaunch.config.model_argument import find_model
from raylaunch.sglang.source import installed_version
from raylaunch.terminal.configuration import configuration_of
from raylaunch.terminal.launch_options import SGLANG, Launch
from tests.head import ROOT

PLAIN = {
    ".",
    "cd",
    "curl",
    "echo",
    "head",
    "hostname",
    "lm_eval",
    "mkdocs",
    "pre-commit",
    "printf",
    "prometheus",
    "scontrol",
}
"""Programs whose arguments nothing is known of."""
ASSIGNMENT = re.compile(r"\w+=")
FILES = ("prompt_file", "data")


class Wrong(Exception):
    """A command that cannot be meant."""


def check(text: str, made: set[str]) -> None:
    """Looks at every command of a block.

    Args:
        made: files that earlier commands have made; those of this block are added.
    Raises:
        Wrong: a program, a command, an option, a setting or a file does not exist.
    """
    for words in commands(text):
        if ">" in words:
            words, (_, *file) = words[: words.index(">")], words[words.index(">") :]
            made.add(file[0])
        _check(words, made)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, also those in ``$(...)``. Variables that are set before one are left out,
    and those that are used are 1."""
    for line in re.sub(r"\$\w+", "1", text.replace("\\\n", " ")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("();|&"):
                if words or not ASSIGNMENT.match(word):
                    words.append(word)
            else:
                if words:
                    yield words
                words = []


def _check(words: Sequence[str], made: set[str]) -> None:
    program, *arguments = words
    if program == "python" and arguments[:1] == ["-m"]:
        program, *arguments = arguments[1:]
    known: Mapping[str, Callable[[list[str], set[str]], None]] = {
        "raylaunch": check_raylaunch, "ray": _check_ray, "serve": _check_serve, "pip": _check_pip, "pytest": _nothing,
        "venv": _nothing, "python": _check_files, "kubectl": _check_files, "docker": _check_files, "srun": _check_srun,
    }  # fmt: skip
    if program in known:
        known[program](arguments, made)
    elif program not in PLAIN:
        raise Wrong(f"{program}: nothing is known of this program")


def check_raylaunch(arguments: list[str], made: set[str], *, whole: bool = True) -> None:
    """Parses them as the command line does, and makes the configuration that they ask for.

    Args:
        whole: what must be given is there.
    """
    command: Any = typer.main.get_command(app)
    words = list(arguments)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in command.commands:
            raise Wrong(f"raylaunch has no command {name}")
        command = command.commands[name]
    if hasattr(command, "commands") and not words:
        return
    passed = {"Exit"} if whole else {"Exit", "MissingParameter"}  # the first of --help, --version
    try:
        context = command.make_context("raylaunch", words)
    except Exception as error:  # of typer's, whose classes have moved
        if type(error).__name__ in passed:
            return
        raise Wrong(f"raylaunch {shlex.join(arguments)}: {getattr(error, 'message', error)}") from None
    for name in FILES:
        file = context.params.get(name)
        shipped = shipped_configs() / "data" / f"{file}.jsonl"
        if file not in (None, "-", *made) and not Path(file).exists() and not shipped.is_file():
            raise Wrong(f"there is no file {file}")
    given = {field.name: context.params.get(field.name) for field in fields(Launch) if field.name != "sglang"}
    _check_launch(Launch(**given, sglang=context.meta.get(SGLANG, ())), made)


def _check_launch(launch: Launch, made: set[str]) -> None:
    model, sglang = launch.model, launch.sglang
    if model is not None and model.startswith("http://"):
        return
    if sglang and installed_version() == "absent":  # nobody here knows its arguments
        sglang = ()
    try:
        if model is not None and model not in made and find_model(model)[0] == "hub":  # which is not asked
            LaunchConfig.from_dict(apply_overrides({"model": {"path": model}}, launch.changes()))
        else:
            configuration_of(None if model in made else model, launch.changes(), sglang)
    except Exception as error:
        raise Wrong(str(error)) from None


def _check_ray(arguments: list[str], made: set[str]) -> None:
    from ray.scripts.scripts import cli

    own, behind = _cut(arguments)
    if own[0] == "symmetric-run":  # its other options are those of `ray start`
        start = [word for word in own[1:] if not word.startswith(("--address", "--min-nodes"))]
        own = ["start", "--address=A", *[word for word in start if word.startswith("--")]]
    _parse(cli, "ray", own + (["--", *behind] if "submit" in own else []))
    if behind:
        _check(behind, made)


def _check_serve(arguments: list[str], made: set[str]) -> None:
    from ray.serve.scripts import cli

    _parse(cli, "serve", arguments)
    if arguments[0] == "deploy":
        _check_files(arguments, made)


def _parse(command: Any, name: str, words: list[str]) -> None:
    shown = shlex.join([name, *words])
    while hasattr(command, "commands"):
        inner = command.commands.get(words[0]) if words else None
        if inner is None:
            raise Wrong(f"{shown}: there is no such command")
        command, words = inner, words[1:]
    try:
        command.make_context(name, list(words))
    except Exception as error:
        raise Wrong(f"{shown}: {getattr(error, 'message', error)}") from None


def _check_srun(arguments: list[str], made: set[str]) -> None:
    _check(arguments[next(index for index, word in enumerate(arguments) if not word.startswith("-")) :], made)


def _check_pip(arguments: list[str], _: set[str]) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", " ".join(arguments)))):
        if extra not in known:
            raise Wrong(f"there is no extra {extra}")


def _check_files(arguments: list[str], made: set[str]) -> None:
    for word in arguments:
        if word.endswith((".yaml", ".py", "Dockerfile")) and word not in made and not Path(word).exists():
            raise Wrong(f"there is no file {word}")


def _nothing(_: list[str], __: set[str]) -> None:
    pass


def _cut(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]
