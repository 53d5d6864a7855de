"""GSM8K, grade school mathematics: a few worked examples before each question, and the number that ends an answer."""

from __future__ import annotations

import re
from decimal import Decimal

from raylaunch.commands.questions import Question, read_lines
from raylaunch.errors import ConfigError

NEW_TOKENS = 512
STOPS = ("Question", "Assistant:", "<|separator|>")
"""As SGLang's own script has it: what models write when they go on with a question of their own."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def read_gsm8k(path: str, shots: int, limit: int | None = None) -> list[Question]:
    """The questions of a file of JSON lines, each ``{"question": ..., "answer": "... #### 72"}``.

    Args:
        shots: how many of the first lines are the examples; they are not asked.
        limit: how many are asked, at most.
    Raises:
        ConfigError: the file cannot be read, a line is malformed, or none is left to ask.
    """
    lines = read_lines(path, {"question": "How many are 12 and 30?", "answer": "12 + 30 = 42 #### 42"}, strict=False)
    for number, line in lines:
        if last_number(line["answer"]) is None:
            raise ConfigError("--data", path, f"line {number} has no number in its answer")
    texts = [line for _, line in lines]
    if shots >= len(texts):
        raise ConfigError("--shots", shots, f"must be less than the {len(texts)} lines of {path}")
    examples = "".join(f"{_asked(line)} {line['answer']}\n\n" for line in texts[:shots])
    asked = texts[shots:][:limit]
    return [Question(f"{examples}{_asked(line)}", line["answer"], last_number) for line in asked]


def last_number(text: str, finish: str = "stop") -> str | None:
    """The last number in a text, without commas or zeros that say nothing; None if there is none."""
    found = _NUMBER.findall(text.replace(",", ""))
    return str(Decimal(found[-1]).normalize()) if found else None


def _asked(line: dict[str, str]) -> str:
    return f"Question: {line['question']}\nAnswer:"
