"""Questions with known answers: read from JSON lines, and scored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import ConfigError
from raylaunch.values.encodable import problem_of
from raylaunch.values.json_text import from_json, numbered_lines

Extract = Callable[[str, str], str | None]
"""The answer in a text that ended so (``stop``, ``length``); None if there is none in it."""


def whole(text: str, finish: str) -> str | None:
    """The text itself, without white space around it, if it ended by itself and says something."""
    return text.strip() or None if finish == "stop" else None


@dataclass(frozen=True)
class Question:
    """A prompt, the text that answers it, and how the answer is found in a text."""

    prompt: str
    answer: str
    extract: Extract = whole


@dataclass(frozen=True)
class Reply:
    """What a model said to a question."""

    question: Question
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str

    @property
    def valid(self) -> bool:
        """Whether there is an answer of the expected kind in it: a number where a number is expected."""
        said = self.question.extract(self.text, self.finish_reason)
        return said is not None and (_is_number(said) or not _is_number(self._expected))

    @property
    def correct(self) -> bool:
        """Whether it is valid and equal to what is found in the expected answer."""
        return self.valid and self.question.extract(self.text, self.finish_reason) == self._expected

    @property
    def _expected(self) -> str | None:
        return self.question.extract(self.question.answer, "stop")


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

    given, folder = Path(os.path.expanduser(path)), shipped_configs() / "data"
    candidates = [given]
    if given.parent in (Path(), Path("configs/data")):
        candidates += [folder / given.name, folder / f"{given.name}.jsonl"]
    for candidate in candidates:
        if os.path.isfile(candidate):  # Path's own raises where a folder above it may not be entered
            return candidate
    names = ", ".join(sorted(file.name for file in folder.glob("*.jsonl")))
    raise ConfigError("--data", path, f"no such file; data that ships: {names}")


def read_questions(path: str, limit: int | None = None) -> list[Question]:
    """The questions of a file of JSON lines, each ``{"prompt": ..., "answer": ...}``; at most ``limit`` of them.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line is malformed; every line is looked at.
    """
    lines = read_lines(path, {"prompt": "12+30=", "answer": "42"}, strict=True)
    return [Question(line["prompt"], line["answer"]) for _, line in lines][:limit]


def read_lines(path: str, example: Mapping[str, str], *, strict: bool) -> list[tuple[int, dict[str, str]]]:
    """The lines of a file of JSON lines with their numbers, blank ones left out.

    Args:
        example: a line as it must be; its fields are texts, the first of them not empty.
        strict: other fields are refused, as nothing would look at them.
    Raises:
        ConfigError: the file cannot be read, is empty, or a line is malformed.
    """
    try:
        lines = numbered_lines(find_data(path).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--data", path, f"cannot be read: {error}") from None
    if not lines:
        raise ConfigError("--data", path, "holds no line; each line is a question and its answer")
    return [(number, _line(path, number, line, example, strict)) for number, line in lines]


def _line(path: str, number: int, line: str, example: Mapping[str, str], strict: bool) -> dict[str, str]:
    def wrong(what: str) -> ConfigError:
        return ConfigError("--data", path, f"line {number} {what}; must be {json.dumps(example)}")

    try:
        data = from_json(line)
    except ValueError as error:
        raise wrong(f"is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise wrong(f"is {type(data).__name__}, not an object")
    for key in example:
        if key not in data:
            raise wrong(f"has no {key!r}")
        if not isinstance(data[key], str):
            raise wrong(f"has {key} = {data[key]!r}, which is no text")
        if problem := problem_of(data[key]):
            raise wrong(f"has {key} = {data[key]!r}: {problem}")
    for key in data:
        if strict and key not in example:  # such as a limit of its own, which nothing would keep to
            raise wrong(f"has {key!r}, which nothing would look at")
    first = next(iter(example))
    if not data[first]:
        raise wrong(f"has an empty {first}")
    return {key: data[key] for key in example}


def _is_number(text: str | None) -> bool:
    try:
        float((text or "").strip().replace(",", ""))
    except ValueError:
        return False
    return True
