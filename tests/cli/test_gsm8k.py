"""GSM8K: the prompt with its examples, and the number that is taken from an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raylaunch.commands.gsm8k import last_number, read_gsm8k
from raylaunch.commands.questions import Reply, score
from raylaunch.errors import ConfigError

LINES = [{"question": f"How many are {n} and 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(8)]


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps({**line, "id": "x"}) + "\n" for line in LINES))
    return str(file)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("The answer is 72.", "72"),
        ("It costs $1,200 in all", "1.2E+3"),
        ("18.50 dollars", "18.5"),
        ("so -3", "-3"),
        ("5 of 7", "7"),
        ("3.0", "3"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_examples_come_first_and_are_not_asked(data: str) -> None:
    questions = read_gsm8k(data, 2, 3)
    assert len(questions) == 3
    assert questions[0].prompt == (
        "Question: How many are 0 and 1?\nAnswer: 0 + 1 = 1\n#### 1\n\n"
        "Question: How many are 1 and 1?\nAnswer: 1 + 1 = 2\n#### 2\n\n"
        "Question: How many are 2 and 1?\nAnswer:"
    )
    assert len(read_gsm8k(data, 0)) == 8


@pytest.mark.parametrize(
    ("text", "finish", "valid", "correct"),
    [
        (" 2 + 1 = 3\n#### 3", "stop", True, True),
        (" The answer is 3.00", "length", True, True),
        (" 4", "stop", True, False),
        (" I do not know", "stop", False, False),
    ],
)
def test_marks(data: str, text: str, finish: str, valid: bool, correct: bool) -> None:
    reply = Reply(read_gsm8k(data, 2)[0], text, (1, 2), finish)
    assert (reply.valid, reply.correct) == (valid, correct)
    results = score([reply], 2.0)
    assert (results.accuracy, results.invalid, results.throughput) == (correct, not valid, 1.0)


@pytest.mark.parametrize(
    ("line", "shots", "said"),
    [
        ({"question": "How many?", "answer": "many"}, 2, "line 9 has no number in its answer"),
        ({"prompt": "1+1=", "answer": "2"}, 2, "line 9 has no 'question'; must be .*How many are 12 and 30"),
        (LINES[0], 9, "--shots = 9: must be less than the 9 lines"),
    ],
)
def test_what_cannot_be_asked(data: str, line: dict[str, str], shots: int, said: str) -> None:
    with open(data, "a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=said):
        read_gsm8k(data, shots)


@pytest.mark.parametrize("file", ["~nobody-of-this-name/a.jsonl", "x" * 300])
def test_a_file_that_cannot_be_there(file: str) -> None:
    with pytest.raises(ConfigError, match=rf"--data = '{file}': no such file; data that ships"):
        read_gsm8k(file, 2)
