"""The commands as a user runs them, each with a launch of its own."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.cli.runner import command, finish


def test_generate_ends_with_the_answer_after_the_table(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    few = ("--set", "capture.prefill_tokens=[8]", "--set", "capture.decode_batch_sizes=[2]")
    ran = finish(command("generate", "--prompt", "12+30=", "--trace", str(trace), *few))
    assert (ran.code, ran.stdout) == (0, "42\n"), ran.stderr
    assert re.search(r"VERIFY .*replay equals eager", ran.stderr)
    assert len(json.loads(trace.read_text())["traceEvents"]) > 50


@pytest.mark.slow
def test_eval_of_the_shipped_sums(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    ran = finish(command("eval", "--data", "sums-heldout", "--limit", "50", "--eager", "--output", str(output)))
    assert ran.code == 0, ran.stderr
    results = re.fullmatch(
        r"Accuracy: (\S+)\nInvalid: (\S+)\nLatency: \S+ s\nOutput throughput: \S+ token/s\n", ran.stdout
    )
    assert results is not None, ran.stdout
    assert results.groups() == ("1.000", "0.000")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 50
    assert all(line["text"] == line["expected"] and len(line["token_ids"]) == len(line["text"]) for line in lines)


@pytest.mark.slow
def test_a_bare_environment() -> None:
    """A home that cannot be written, files for their owner alone, a locale of ASCII, hardly more files than needed."""
    variables = {"HOME": "/proc", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    few = ("prlimit", "--nofile=84:84")
    ran = finish(command("generate", "--prompt", "12+30=", "--no-report", before=few, umask=0o077, **variables))
    assert (ran.code, ran.stdout) == (0, "42\n"), ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_sigterm_ends_everything() -> None:
    process = command("generate", "--prompt", "12+30=")
    try:
        assert process.stderr is not None
        while "CONNECT" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        below = psutil.Process(process.pid).children(recursive=True)
        assert below
        process.send_signal(signal.SIGTERM)
        ran = finish(process)
    finally:
        process.kill()
    assert (ran.code, ran.stdout) == (130, "")
    assert ran.stderr == "interrupted; everything that was started has been given back\n"
    assert psutil.wait_procs(below, timeout=2)[1] == []
