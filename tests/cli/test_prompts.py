"""Prompts from options, files and pipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from raylaunch.commands import prompts
from raylaunch.commands.prompts import prompts_of
from raylaunch.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.txt", "12+30=\n\n7+8=\r\n", (["12+30=", "7+8="], False)),
        ("a.txt", "\ufeff12+30=", (["12+30="], False)),
        ("a.jsonl", '{"prompt": "a\\nb", "answer": "c"}\n', (["a\nb"], True)),
        ("a.txt", '{"prompt": "a"}', (['{"prompt": "a"}'], False)),
    ],
)
def test_prompts_of_a_file(name: str, text: str, found: object, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert prompts_of(None, str(tmp_path / name)) == found


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"\xff", "cannot be read"),
        ("a.jsonl", b"12", "line 1 must be"),
        ("a.jsonl", b'\n{"text": "a"}', 'line 2 must be {"prompt": "12\\+30="}'),
        ("a.jsonl", b'{"prompt": ""}', "line 1 must be"),
        ("a.jsonl", b"[", "line 1 is not JSON"),
        pytest.param("a.jsonl", b"[" * 100_000, "line 1 is not JSON: it is nested too deep", id="nested deep"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', "line 1: .*surrogate"),
    ],
)
def test_files_that_are_refused(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        prompts_of(None, str(tmp_path / name))


@pytest.mark.parametrize("file", ["/nowhere.txt", "~nobody-of-this-name/prompts.txt"])
def test_files_that_are_not_there(file: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        prompts_of(None, file)


def test_options_and_what_contradicts_them() -> None:
    assert prompts_of(["a", "b\n"], None) == (["a", "b\n"], False)
    with pytest.raises(ConfigError, match="leave out either"):
        prompts_of(["a"], "x")
    with pytest.raises(ConfigError, match="no UTF-8"):
        prompts_of(["a\udcff"], None)


class Stdin:
    def __init__(self, fd: int) -> None:
        self.buffer, self._fd = os.fdopen(fd, "rb"), fd

    def fileno(self) -> int:
        return self._fd


@pytest.mark.parametrize("file", [None, "-"])
def test_a_pipe_is_read(file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"12+30=\n7+8=\n")
    os.close(writing)
    monkeypatch.setattr(prompts.sys, "stdin", Stdin(reading))
    assert prompts_of(None, file) == (["12+30=", "7+8="], False)


@pytest.mark.parametrize("stdin", [None, "/dev/null"])
def test_what_may_never_end_is_not_read(stdin: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = None if stdin is None else Stdin(os.open(stdin, os.O_RDONLY))
    monkeypatch.setattr(prompts.sys, "stdin", found)
    with pytest.raises(ConfigError, match="give one, or --prompt-file FILE"):
        prompts_of(None, None)
