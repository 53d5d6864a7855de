"""Prompts from the command line, from a file, or from standard input."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from raylaunch.errors import ConfigError
from raylaunch.terminal.printed import require_stdin
from raylaunch.values.encodable import problem_of
from raylaunch.values.json_text import from_json, numbered_lines

STDIN = "-"
OPTION = "--prompt-file"


def prompts_of(given: Sequence[str] | None, file: str | None) -> tuple[list[str], bool]:
    """At least one prompt, and whether they came as JSON lines.

    Args:
        given: those of ``--prompt``.
        file: of ``--prompt-file``; ``-`` is standard input, which is also read without either if something is piped to
            it.
    Raises:
        ConfigError: there is none, or one of them cannot be used.
    """
    if given and file is not None:
        raise ConfigError(OPTION, file, "leave out either this or --prompt")
    for text in given or ():
        if problem := problem_of(text):
            raise ConfigError("--prompt", text, problem)
    if given:
        return list(given), False
    if file is None and not _is_piped():
        raise ConfigError("--prompt", "", "give one, or --prompt-file FILE, or pipe prompts to standard input")
    as_json = (file or STDIN).endswith(".jsonl")
    name = "standard input" if file in (None, STDIN) else str(file)
    lines = _lines(file, name)
    if not lines:
        raise ConfigError(OPTION, name, "holds no prompt")
    return [_prompt(name, number, line, as_json) for number, line in lines], as_json


def _lines(file: str | None, name: str) -> list[tuple[int, str]]:
    if file == STDIN:
        require_stdin()
    try:
        data = sys.stdin.buffer.read() if file in (None, STDIN) else Path(os.path.expanduser(str(file))).read_bytes()
        return numbered_lines(data)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(OPTION, name, f"cannot be read: {error}") from None


def _prompt(name: str, number: int, line: str, as_json: bool) -> str:
    text: object = line
    if as_json:
        try:
            data = from_json(line)
        except ValueError as error:
            raise ConfigError(OPTION, name, f"line {number} is not JSON: {error}") from None
        text = data.get("prompt") if isinstance(data, dict) else None
    if not isinstance(text, str) or not text:
        raise ConfigError(OPTION, name, f'line {number} must be {{"prompt": "12+30="}}')
    if problem := problem_of(text):
        raise ConfigError(OPTION, name, f"line {number}: {problem}")
    return text


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file. Of anything else nobody knows whether it will ever end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # there is none
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
