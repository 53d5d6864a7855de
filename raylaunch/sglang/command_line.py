"""SGLang's arguments as they are written behind its own launcher: ``--attention-backend fa3``.

The parser is made of the annotations in SGLang's source, as SGLang itself makes its own: importing it takes many
seconds, and what is wrong is told at once. Choices and ranges are left to SGLang.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from raylaunch.errors import ConfigError
from raylaunch.sglang.source import argument_classes, installed_folder
from raylaunch.values.json_text import from_json

KEY = "arguments after --"
NUMBERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float}
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
NUMBER = re.compile(rf"\s*(\d+(?:\.\d+)?)({'|'.join(UNITS)})\s*")


def arguments_of(words: Sequence[str]) -> dict[str, Any]:
    """SGLang's arguments by name, as ``engine.sglang.args`` has them.

    Raises:
        ConfigError: SGLang is not installed, or they are not written as it wants them.
    """
    if not words:
        return {}
    folder = installed_folder()
    if folder is None:
        raise ConfigError(KEY, " ".join(words), "are SGLang's, and sglang is not installed here")
    return vars(parser_of(folder).parse_args(list(words)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(KEY, message, "SGLang has others, or writes them otherwise: see sglang.launch_server --help")


class _Renamed(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        raise ConfigError(KEY, option_string, f"SGLang calls it {self.const} now")


def parser_of(folder: Path) -> argparse.ArgumentParser:
    """A parser that knows SGLang's options, and makes of them what its ``ServerArgs`` takes; it has no defaults.

    Raises:
        ConfigError: the source is not as expected.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    classes = argument_classes(folder)
    for name, annotation in (field for one in classes for field in _fields(one)):
        kind, more = _parts(annotation)
        if more.get("no_cli"):
            continue
        flag = more.get("cli_name") or f"--{name.replace('_', '-')}"
        parser.add_argument(flag, *more.get("aliases", ()), dest=name, **_how(kind, more))
    for call in (node for one in classes for node in ast.walk(one)):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
            words = {word.arg: _constant(word.value) for word in call.keywords}
            names = [text for text in map(_constant, call.args) if isinstance(text, str)]
            if any(name in parser._option_string_actions for name in names):
                continue
            if "new_flag" in words:
                parser.add_argument(*names, action=_Renamed, nargs="*", const=words["new_flag"])
            elif words.get("action") == "store_true":
                parser.add_argument(*names, action="store_true")
            elif "action" not in words and names != ["--config"]:  # that is a file of its own launcher's
                parser.add_argument(*names, type=NUMBERS.get(str(words.get("type")), str))
    return parser


def _fields(made: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for item in made.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id, item.annotation


def _parts(annotation: ast.expr) -> tuple[str, dict[str, Any]]:
    """The type of ``A[type, Arg(...)]``, and what ``Arg`` is told."""
    elements = [annotation]
    if isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") in ("A", "Annotated"):
        inside = annotation.slice
        elements = list(inside.elts) if isinstance(inside, ast.Tuple) else [inside]
    more: dict[str, Any] = {}
    for one in elements[1:]:
        if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "Arg":
            more = {word.arg or "": _constant(word.value) for word in one.keywords}
    kind = ast.unparse(elements[0])
    return kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Optional[") else kind, more


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # a name, such as that of a function
        return ast.unparse(node)


def _how(kind: str, more: dict[str, Any]) -> dict[str, Any]:
    """How an option of this type is read."""
    action, convert = str(more.get("action", "")), str(more.get("type_parser", ""))
    if action.endswith("BooleanOptionalAction"):
        return {"action": argparse.BooleanOptionalAction}
    if action:
        return {"nargs": "*"}  # adapters, each a name and a path
    given: dict[str, Any] = {name: more[name] for name in ("nargs", "const") if name in more}
    if convert:
        return {"type": _number if "int" in convert else str if "str" in convert else _json_or_text, **given}
    if kind.lower().startswith("list["):
        return {"nargs": "+", "type": NUMBERS.get(kind[5:-1], str), **given}
    if kind == "bool":
        return {"action": "store_true"}
    if kind.startswith("Literal["):
        kind = type(ast.literal_eval(kind.removeprefix("Literal")[1:-1].split(",")[0])).__name__
    return {"type": NUMBERS.get(kind, str), **given}


def _number(text: str) -> int:
    found = NUMBER.fullmatch(text)
    if found is None or ("." in text and text.endswith("i")):
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 4096, 4k or 4Ki")
    return int(Decimal(found[1]) * UNITS[found[2]])


def _json_or_text(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return text
