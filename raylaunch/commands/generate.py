"""``raylaunch generate``: launch, answer prompts, shut down."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.commands.ask import ask_all, require_answers
from raylaunch.commands.prompts import prompts_of
from raylaunch.errors import ConfigError, RequestError
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.options import MaxNewTokens, require_writable
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.printed import require_stdout, say
from raylaunch.terminal.session import launched

ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase
    from raylaunch.frontends.sampling import SamplingParams


def generate(
    launch: Launch,
    *,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue. Repeatable.")] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='A prompt on each line; of a .jsonl each {"prompt": ...}. - is standard input.',
            show_default="what is piped to standard input",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token.", show_default="the model's, or 0")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Sample among the k likeliest tokens.", show_default="the model's, or all")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample among the likeliest that hold this probability.", show_default="the model's, or 1"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer. Repeatable.")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Print the table of phases.")] = True,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome trace of the launch.")] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print as it comes.", show_default="on a terminal")
    ] = None,
) -> None:
    """Launch a model, answer prompts, shut down.

    Answers go to standard output, everything else to standard error. One prompt: its answer and nothing else.
    Several: a line each, prompt and answer with a tab between, their own line ends, tabs and backslashes escaped; of a
    .jsonl as JSON. A prompt that is refused has no line, and costs no other its answer.
    """
    with reported():
        given = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "stop": stop or None,
        }
        require_stdout()
        params = sampling_of(given)
        prompts, as_json = prompts_of(prompt, prompt_file)
        if stream and len(prompts) > 1:
            raise ConfigError("--stream", f"{len(prompts)} prompts", "only a single prompt can be streamed")
        require_writable("--trace", trace)
        with launched(launch.config(), show_report=report, trace=trace) as engine:
            if as_json or len(prompts) > 1:
                answers = ask_all(engine, prompts, params)
                pairs = zip(prompts, answers, strict=True)
                lines = [line_of(a, b.text, as_json) for a, b in pairs if not isinstance(b, Exception)]
                if lines:
                    say("\n".join(lines))
                require_answers(answers)
            elif stream if stream is not None else sys.stdout.isatty():
                _print_stream(engine, prompts[0], params)
            else:
                say(engine.generate(prompts[0], params).text)


def sampling_of(given: dict[str, Any]) -> SamplingParams:
    """Sampling parameters from the options that were given. Raises :class:`ConfigError`: nothing was launched yet."""
    from raylaunch.frontends.sampling import SamplingParams

    try:
        return SamplingParams.of(None, {name: value for name, value in given.items() if value is not None})
    except RequestError as error:
        key, _, rest = str(error).partition(" = ")
        value, _, expected = rest.partition(": ")
        raise ConfigError("--" + key.replace("_", "-"), value, expected) from None


def line_of(prompt: str, text: str, as_json: bool) -> str:
    """A prompt and its answer on one line."""
    if as_json:
        return json.dumps({"prompt": prompt, "text": text})
    return f"{prompt.translate(ESCAPED)}\t{text.translate(ESCAPED)}"


def _print_stream(engine: EngineBase, prompt: str, params: SamplingParams) -> None:
    for chunk in engine.stream(prompt, params):
        say(chunk.text, end="")
    say("")
