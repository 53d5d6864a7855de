"""Questions with known answers: read from JSON lines, and scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import ConfigError
from raylaunch.values.encodable import problem_of


@dataclass(frozen=True)
class Question:
    """A prompt and the text that answers it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Reply:
    """What a model said to a question."""

    question: Question
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str

    @property
    def valid(self) -> bool:
        """Whether it is an answer of the expected kind at all: it ended by itself, says something, and is a number
        where a number is expected."""
        said = self.text.strip()
        kind = not _is_number(self.question.answer) or _is_number(said)
        return self.finish_reason == "stop" and bool(said) and kind

    @property
    def correct(self) -> bool:
        """Whether it is valid and, but for white space around it, equal to the expected answer."""
        return self.valid and self.text.strip() == self.question.answer.strip()


@dataclass(frozen=True)
class Score:
    """Results of an evaluation.

    Attributes:
        accuracy: part of the questions that were answered correctly, 0 to 1.
        invalid: part whose answers were not of the expected kind, 0 to 1.
        latency: seconds from the first request to the last answer.
        throughput: tokens generated per second.
    """

    questions: int
    accuracy: float
    invalid: float
    latency: float
    throughput: float


def score(replies: Sequence[Reply], seconds: float) -> Score:
    """The results of at least one reply, all given within ``seconds``."""
    tokens = sum(len(reply.token_ids) for reply in replies)
    return Score(
        questions=len(replies),
        accuracy=sum(reply.correct for reply in replies) / len(replies),
        invalid=sum(not reply.valid for reply in replies) / len(replies),
        latency=seconds,
        throughput=tokens / seconds if seconds > 0 else 0.0,
    )


def find_data(path: str) -> Path:
    """``path`` if it is a file, else the shipped data file of that name. Raises :class:`ConfigError`."""
    from raylaunch.config import shipped_configs

    given, folder = Path(path).expanduser(), shipped_configs() / "data"
    candidates = [given]
    if given.parent in (Path(), Path("configs/data")):
        candidates += [folder / given.name, folder / f"{given.name}.jsonl"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(file.name for file in folder.glob("*.jsonl")))
    raise ConfigError("--data", path, f"no such file; data that ships: {names}")


def read_questions(path: str, limit: int | None = None) -> list[Question]:
    """The questions of a file of JSON lines, each ``{"prompt": ..., "answer": ...}``; at most ``limit`` of them.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line is malformed; every line is looked at.
    """
    try:
        lines = find_data(path).read_text(encoding="utf-8-sig").split("\n")  # other ends of lines may be in texts
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--data", path, f"cannot be read: {error}") from None
    questions = [_question(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise ConfigError("--data", path, "holds no line; each line is a question and its answer")
    return questions[:limit]


def _question(path: str, number: int, line: str) -> Question:
    def wrong(what: str) -> ConfigError:
        return ConfigError("--data", path, f'line {number} {what}; must be {{"prompt": "12+30=", "answer": "42"}}')

    try:
        data = json.loads(line)
    except ValueError as error:
        raise wrong(f"is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise wrong(f"is {type(data).__name__}, not an object")
    for key in ("prompt", "answer"):
        if key not in data:
            raise wrong(f"has no {key!r}")
        if not isinstance(data[key], str):
            raise wrong(f"has {key} = {data[key]!r}, which is no text")
        if problem := problem_of(data[key]):
            raise wrong(f"has {key} = {data[key]!r}: {problem}")
    for key in data:
        if key not in ("prompt", "answer"):  # such as a limit of its own, which nothing would keep to
            raise wrong(f"has {key!r}, which nothing would look at")
    if not data["prompt"]:
        raise wrong("has an empty prompt")
    return Question(data["prompt"], data["answer"])


def _is_number(text: str) -> bool:
    try:
        float(text.strip().replace(",", ""))
    except ValueError:
        return False
    return True
