"""Standard output that cannot show a character, is full, closed, or read no further: in a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylaunch.commands.app import app
from raylaunch.terminal.printed import say

PROGRAM = """
from types import SimpleNamespace
import raylaunch.engine
from raylaunch.errors import RequestError
from raylaunch.report import LaunchReport

class Engine:
    frontend = SimpleNamespace(room=2)
    def __init__(self, config, listener):
        if config.config.name == "denied":
            raise PermissionError(13, "Permission denied", "/somewhere")
        self.config, self.report, self.listener = config.config, LaunchReport(config.config.name), listener
    def start(self):
        from raylaunch.protocol import Gate, Step
        self.listener(Step(Gate.MEET), 0, 9)
    def shutdown(self):
        pass
    def generate(self, prompt, params):
        made = lambda one: SimpleNamespace(text=f"{one} é 😀", token_ids=(1,), finish_reason="stop")
        return made(prompt) if isinstance(prompt, str) else [made(one) for one in prompt]
    def stream(self, prompt, params):
        return iter([self.generate(prompt, params)])
    async def agenerate(self, prompt, params):
        if prompt.startswith("refused"):
            raise RequestError("the prompt is too long")
        return self.generate(prompt, params)

raylaunch.engine.Engine = Engine
from raylaunch.cli import main
main()
"""


def command(*arguments: str, shell: str = "", encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    """Runs the command line with an engine that is there at once; ``shell`` redirects its output."""
    line = f'exec "$0" -c "$1" "${{@:2}}" {shell}'
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(
        ["bash", "-c", line, sys.executable, PROGRAM, *arguments], capture_output=True, env=environment, timeout=60
    )


GENERATE = ("generate", "--prompt", "A", "--no-report")


LATIN, ASCII, UTF = ("latin-1", b"A \xe9 ?\n"), ("ascii", b"A ? ?\n"), ("utf-8", "A é 😀\n".encode())


@pytest.mark.parametrize(
    ("encoding", "shown", "how"),
    [
        (*LATIN, "--no-stream"),
        (*ASCII, "--stream"),
        (*UTF, "--stream"),
        pytest.param(*LATIN, "--stream", marks=pytest.mark.slow),
        pytest.param(*ASCII, "--no-stream", marks=pytest.mark.slow),
        pytest.param(*UTF, "--no-stream", marks=pytest.mark.slow),
    ],
)
def test_answers_with_characters_that_it_does_not_have(encoding: str, shown: bytes, how: str) -> None:
    done = command(*GENERATE, how, encoding=encoding)
    assert (done.returncode, done.stdout) == (0, shown)
    assert b"Traceback" not in done.stderr


def test_tables_and_bars_too() -> None:
    done = command("generate", "--prompt", "A", "--prompt", "B", encoding="ascii")
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 2)
    assert b"ready" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [("doctor",), ("doctor", "--json"), ("--help",), ("generate", "--help")])
def test_reports_json_and_help_too(arguments: tuple[str, ...], encoding: str) -> None:
    done = CliRunner(charset=encoding).invoke(app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1)
    assert done.stdout


def test_a_full_disk_loses_no_answer(tmp_path: Path) -> None:
    done = command(*GENERATE, shell="> /dev/full")
    assert done.returncode == 1
    told = "standard output cannot be written: No space left on device; this was to be written there:\nA é 😀\n"
    assert done.stderr.decode().endswith(told)
    file = tmp_path / "answers"
    done = command("eval", "--data", "sums-heldout", "--limit", "1", "--output", str(file), shell="> /dev/full")
    assert done.returncode == 1
    assert b"Accuracy: " in done.stderr
    assert file.read_text().count("\n") == 1


@pytest.mark.parametrize("how", ["--no-stream", "--stream"])
def test_a_reader_that_has_left_is_no_error(how: str) -> None:
    done = command(*GENERATE, how, shell="> >(exit)")
    assert done.returncode == 141
    assert done.stderr.decode().splitlines()[-1].split()[-1] == "CONNECT"  # the launch's own last line


def test_neither_output_is_read_any_further() -> None:
    done = command("generate", "--prompt", "A", shell="> >(exit) 2>&1")
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_that_has_left_does_not_keep_a_file_from_being_written(tmp_path: Path) -> None:
    file = tmp_path / "answers"
    shell = "> >(exit)"
    done = command("eval", "--data", "sums-heldout", "--limit", "1", "--output", str(file), shell=shell)
    assert done.returncode == 141
    assert file.read_text().count("\n") == 1


def test_standard_output_that_is_closed_is_found_before_the_launch() -> None:
    for arguments in (GENERATE, ("eval", "--data", "sums-heldout")):
        done = command(*arguments, shell=">&-")
        assert done.returncode == 2
        assert done.stderr.startswith(b"ConfigError standard output = 'closed': must be open")


@pytest.mark.parametrize("shell", ["2> /dev/full", "2>&-"])
def test_a_launch_that_nobody_can_watch_answers_all_the_same(shell: str) -> None:
    done = command("generate", "--prompt", "A", shell=shell)
    assert (done.returncode, done.stdout) == (0, "A é 😀\n".encode())


def test_one_prompt_that_is_refused_costs_no_other_its_answer(tmp_path: Path) -> None:
    prompts = [option for text in ("A\n\tB\\", "refused 1", "C", "refused 2") for option in ("--prompt", text)]
    done = command("generate", "--no-report", *prompts)
    assert done.returncode == 3
    assert done.stdout.decode() == "A\\n\\tB\\\\\tA\\n\\tB\\\\ é 😀\nC\tC é 😀\n"
    why = "RequestError prompt 2: the prompt is too long (1 more of 4 prompts have no answer)\n"
    assert done.stderr.decode().endswith(why)
    questions, file = tmp_path / "questions.jsonl", tmp_path / "answers"
    asked = ({"prompt": prompt, "answer": "B"} for prompt in ("A", "refused", "C"))
    questions.write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    done = command("eval", "--data", str(questions), "--output", str(file))
    assert (done.returncode, done.stdout) == (3, b""), "no score: it would be that of other questions"
    assert done.stderr.endswith(b"RequestError prompt 2: the prompt is too long\n")
    assert [json.loads(line)["prompt"] for line in file.read_text().splitlines()] == ["A", "C"]


def test_what_else_goes_wrong_is_not_laid_on_standard_output() -> None:
    done = command("generate", "--prompt", "A", "--set", "name=denied")
    assert done.returncode == 1
    assert done.stderr.endswith(b"PermissionError: [Errno 13] Permission denied: '/somewhere'\n")
    assert b"standard output" not in done.stderr


@pytest.mark.parametrize("arguments", [("chat",), ("generate", "--prompt-file", "-")])
def test_standard_input_that_is_closed_is_found_before_the_launch(arguments: tuple[str, ...]) -> None:
    done = command(*arguments, shell="<&-")
    assert done.returncode == 2
    assert done.stderr.startswith(b"ConfigError standard input = 'closed': must be open")


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("serve", "--help")])
def test_help_that_cannot_be_printed(arguments: tuple[str, ...]) -> None:
    done = command(*arguments, shell="> >(exit)")
    assert (done.returncode, done.stderr) == (141, b"")
    done = command(*arguments, shell="> /dev/full")
    assert (done.returncode, done.stderr) == (1, b"standard output cannot be written: No space left on device\n")


def test_say_without_an_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\ud83d", end="")
    assert capsys.readouterr().out == "a?"
