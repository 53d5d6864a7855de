"""The file of a sweep's results."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raylaunch.benchmarks.sweep.lines import NAME, ResultsFile, read_lines
from raylaunch.errors import ConfigError

LINE = {"cell": "a", "start": 1, "error": None}


def test_lines_are_appended(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for start in (1, 2):
        results = ResultsFile(folder)
        assert len(results.lines) == start - 1
        results.append({**LINE, "start": start})
        results.close()
    assert [line["start"] for line in read_lines(folder / NAME)] == [1, 2]


@pytest.mark.parametrize("torn", [b'{"cell": "b", "sta', b"{", b"\xc3", b'{"cell": "b", "start": 1, "error": null}'])
def test_a_torn_last_line_is_none_and_is_taken_away_before_the_next(torn: bytes, tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.write_bytes(json.dumps(LINE).encode() + b"\n" + torn)
    assert read_lines(file) == [LINE]
    assert file.read_bytes().endswith(torn)  # whoever only reads changes nothing
    results = ResultsFile(tmp_path)
    assert results.lines == [LINE]
    results.append({**LINE, "cell": "c"})
    results.close()
    assert [line["cell"] for line in read_lines(file)] == ["a", "c"]


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "{}",
        "[1]",
        '{"cell": "a"}',
        '{"cell": "a", "start": "1", "error": null}',
        pytest.param("[" * 100_000, id="nested deep"),
    ],
)
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.write_text(f"{json.dumps(LINE)}\n{text}\n{text}")
    with pytest.raises(ConfigError, match="line 2 is no result of a sweep"):
        ResultsFile(tmp_path)
    assert file.read_text() == f"{json.dumps(LINE)}\n{text}\n{text}"


def test_one_sweep_at_a_time_writes_and_one_that_was_killed_none(tmp_path: Path) -> None:
    program = "import sys, time; from pathlib import Path; from raylaunch.benchmarks.sweep.lines import ResultsFile; "
    program += "one = ResultsFile(Path(sys.argv[1])); print('there', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        with pytest.raises(ConfigError, match="another sweep is writing its results there"):
            ResultsFile(tmp_path)
    finally:
        other.kill()
        other.wait()
    ResultsFile(tmp_path).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output = .*cannot be written"):
        ResultsFile(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_a_filesystem_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:  # as some over a network; none can be mounted here
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=r"output = .*cannot be locked or written: No locks available"):
        ResultsFile(tmp_path)


def test_results_that_are_no_file_or_in_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output = .*/file': cannot be read: Not a directory"):
        read_lines(tmp_path / "file" / NAME)
    (tmp_path / NAME).mkdir()
    with pytest.raises(ConfigError, match=r"output = .*cannot be read: Is a directory"):
        read_lines(tmp_path / NAME)


def test_a_line_that_cannot_be_written_whole_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from raylaunch.benchmarks.sweep.lines import ResultsFile\n"
    )
    program += (
        "one = ResultsFile(Path(sys.argv[1])); line = {'cell': 'a', 'start': 1, 'error': None}; one.append(line)\n"
    )
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60)); one.append(line | {'start': 2})"
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert "Unwritten: output = " in done.stderr
    assert (tmp_path / NAME).read_text() == json.dumps(LINE) + "\n"
