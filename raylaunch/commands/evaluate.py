"""``raylaunch eval``: launch, ask questions whose answers are known, print how many were right."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raylaunch.commands.ask import ask_all, require_answers
from raylaunch.commands.generate import sampling_of
from raylaunch.commands.gsm8k import NEW_TOKENS, STOPS, read_gsm8k
from raylaunch.commands.questions import Reply, Score, read_questions, score
from raylaunch.errors import ConfigError
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.options import MaxNewTokens, require_writable
from raylaunch.terminal.outcome import reported, written
from raylaunch.terminal.printed import deliver, require_stdout
from raylaunch.terminal.session import launched


def evaluate(
    launch: Launch,
    *,
    data: Annotated[
        str, typer.Option(metavar="FILE.jsonl", help='Lines of {"prompt", "answer"}; a file, or one that ships.')
    ],
    task: Annotated[
        str | None,
        typer.Option(metavar="gsm8k", help='Lines of {"question", "answer"}, asked and marked as this benchmark is.'),
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="With --task: examples before each question.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first so many.", show_default="all")] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Without graphs: capture.enabled=false.")] = False,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests at a time.", show_default="engine.max_running_requests")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write prompt, expected, text and token_ids of each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Launch a model, ask questions whose answers are known, and print how many were right.

    Answers are greedy. One is invalid if it did not end by itself, is empty, or is no number where a number is
    expected; it is right if it is valid and equal to the expected text. Of --task gsm8k the last number in an answer
    counts, the first lines of the file are the examples, and an answer has 512 tokens.
    """
    with reported():
        require_stdout()
        if task not in (None, "gsm8k"):
            raise ConfigError("--task", task, "must be gsm8k, or left out")
        questions = read_gsm8k(data, shots, limit) if task else read_questions(data, limit)
        of_task = {"max_new_tokens": NEW_TOKENS, "stop": STOPS} if task else {}
        asked = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        params = sampling_of({**of_task, **asked, "temperature": 0.0})
        require_writable("--output", output)
        config = launch.config()
        with launched(config.replace({"capture.enabled": False}) if eager else config) as engine:
            began = time.monotonic()
            answers = ask_all(engine, [question.prompt for question in questions], params, concurrency)
            seconds = time.monotonic() - began
        replies = [
            Reply(question, answer.text, answer.token_ids, answer.finish_reason)
            for question, answer in zip(questions, answers, strict=True)
            if not isinstance(answer, Exception)
        ]
        files = [] if output is None else [lambda: write_replies(output, replies)]
        if len(replies) < len(answers):  # no score: it would be that of other questions
            for write in files:
                write()
            require_answers(answers)
        result = score(replies, seconds)
        deliver(json.dumps(asdict(result)) if as_json else show(result), *files)


def show(result: Score) -> str:
    """The result as SGLang's benchmarks print theirs."""
    return (
        f"Accuracy: {result.accuracy:.3f}\n"
        f"Invalid: {result.invalid:.3f}\n"
        f"Latency: {result.latency:.3f} s\n"
        f"Output throughput: {result.throughput:.3f} token/s"
    )


def write_replies(file: Path, replies: Sequence[Reply]) -> None:
    """One JSON line per question: prompt, expected, text, token_ids. Raises :class:`Unwritten`."""
    lines = [
        {"prompt": r.question.prompt, "expected": r.question.answer, "text": r.text, "token_ids": list(r.token_ids)}
        for r in replies
    ]
    with written("--output", file):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
