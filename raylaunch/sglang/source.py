"""SGLang as it is installed: its version, and what its source says. Imports nothing of it, which takes seconds."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import ConfigError

TESTED = ("0.5.17", "0.5.23")
"""Versions of SGLang that this package was run with, oldest first. Those between them and newer ones are tried where
every hook fits."""


@dataclass(frozen=True)
class Hook:
    """Something of SGLang's that is called, read or replaced.

    Attributes:
        module: such as ``sglang.srt.managers.scheduler``.
        path: in it: a function, a class, a method, or an attribute of a class: ``Scheduler.get_init_info``.
        parameters: their names, ``self`` too, with ``*`` before those that go by name alone; ``...`` at the end allows
            more of them. "" takes any.
        optional: a version may lack it.
        only_with: a module without which nobody needs it.
    """

    module: str
    path: str
    parameters: str = ""
    optional: bool = False
    only_with: str = ""

    def __str__(self) -> str:
        return f"{self.module}.{self.path}"

    def fits(self, parameters: str) -> bool:
        """Whether a function with these parameters is what is expected here."""
        wanted, found = self.parameters.split(", "), parameters.split(", ")
        return found[: len(wanted) - 1] == wanted[:-1] if wanted[-1] == "..." else wanted in ([""], found)


def installed_version() -> str:
    """The installed version of SGLang, or ``absent``."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def installed_folder() -> Path | None:
    """Where SGLang is installed, found without importing it."""
    spec = importlib.util.find_spec("sglang")
    # Without a file of its own it is only a folder of that name, such as the one that a clone is in.
    folders = list(spec.submodule_search_locations or ()) if spec is not None and spec.origin else []
    return Path(folders[0]) if folders else None


@functools.cache
def known_arguments(folder: Path) -> tuple[str, ...]:
    """Names of all server arguments. Raises :class:`ConfigError` as :func:`argument_classes`."""
    fields = [one.target for node in argument_classes(folder) for one in node.body if isinstance(one, ast.AnnAssign)]
    if not fields:
        raise ConfigError("engine.kind", "sglang", f"{folder} has no server arguments")
    names = [field.id for field in fields if isinstance(field, ast.Name)]
    return tuple(name for name in names if not name.startswith("_"))


@functools.cache
def known_load_formats(folder: Path) -> tuple[str, ...]:
    """What it takes as ``load_format``; nothing where its source does not say so."""
    files = [folder / "srt" / name for name in ("arg_groups/choices.py", "server_args.py")]
    for node in (node for file in files if file.is_file() for node in _tree(file).body if isinstance(node, ast.Assign)):
        if [ast.unparse(target) for target in node.targets] == ["LOAD_FORMAT_CHOICES"]:
            return tuple(ast.literal_eval(node.value))
    return ()


@functools.cache
def argument_classes(folder: Path) -> tuple[ast.ClassDef, ...]:
    """``ServerArgs``, and since 0.5.20 the classes that have its fields, as they are written.

    Raises:
        ConfigError: the source is not as expected.
    """
    more = sorted((folder / "srt" / "arg_groups" / "fields").glob("*.py"))
    try:
        main = [node for node in _tree(folder / "srt" / "server_args.py").body if isinstance(node, ast.ClassDef)]
        others = [node for file in more for node in _tree(file).body if isinstance(node, ast.ClassDef)]
    except (OSError, SyntaxError) as error:
        raise ConfigError("engine.kind", "sglang", f"its server arguments cannot be read: {error}") from None
    return (*(node for node in main if node.name == "ServerArgs"), *others)


def misfits(hooks: Iterable[Hook], folder: Path) -> list[str]:
    """The hooks that do not fit the SGLang in ``folder``, each with what is there instead."""
    return [f"{hook} {problem}" for hook in hooks if (problem := _problem(hook, folder))]


def digest_of(hooks: Sequence[Hook], folder: Path) -> str:
    """Another one as soon as the hooks are others, or a file that they are in."""
    digest = hashlib.sha256()
    for hook in hooks:
        digest.update(repr(hook).encode())
    for module in sorted({hook.module for hook in hooks} | {hook.only_with for hook in hooks}):
        if (file := _file(module, folder)) is not None:
            status = file.stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _problem(hook: Hook, folder: Path) -> str:
    if hook.only_with and _file(hook.only_with, folder) is None:
        return ""
    file = _file(hook.module, folder)
    found = _names(file).get(hook.path) if file is not None else None
    if found is None:
        return "" if hook.optional else "is not there"
    return "" if hook.fits(found) else f"takes ({found}), and not ({hook.parameters})"


def _file(module: str, folder: Path) -> Path | None:
    place = folder.parent.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@functools.cache
def _names(file: Path) -> dict[str, str]:
    """What a module defines, ``Class.method`` and ``Class.attribute`` too, and the parameters of what is a function."""
    try:
        return dict(_defined(_tree(file).body))
    except (OSError, SyntaxError):
        return {}


def _defined(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, _parameters(node.args)
        elif isinstance(node, ast.ClassDef):
            yield node.name, ""
            yield from ((f"{node.name}.{name}", "") for name in _attributes(node))
            yield from ((f"{node.name}.{name}", parameters) for name, parameters in _defined(node.body))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, "") for target in targets if isinstance(target, ast.Name))
        else:  # what stands behind a condition may be there
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from _defined(getattr(node, part, []))


def _parameters(told: ast.arguments) -> str:
    before = [one.arg for one in (*told.posonlyargs, *told.args)]
    star = [f"*{told.vararg.arg}"] if told.vararg else ["*"] if told.kwonlyargs else []
    rest = [one.arg for one in told.kwonlyargs] + ([f"**{told.kwarg.arg}"] if told.kwarg else [])
    return ", ".join([*before, *star, *rest])


def _attributes(node: ast.ClassDef) -> set[str]:
    """What its methods set on ``self``."""
    return {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute)
        and isinstance(one.ctx, ast.Store)
        and isinstance(one.value, ast.Name)
        and one.value.id == "self"
    }


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
