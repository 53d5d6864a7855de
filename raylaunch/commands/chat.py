"""``raylaunch chat``: a conversation in the terminal, with a model that is launched for it or with a server."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.commands.generate import sampling_of
from raylaunch.errors import ConfigError, RequestError, RequestFailed
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.outcome import reported
from raylaunch.terminal.printed import require_stdin, require_stdout, say
from raylaunch.values.encodable import problem_of

if TYPE_CHECKING:
    from raylaunch.commands.chat_partners import Messages, Partner

HELP = "/reset begins anew, Ctrl-C ends an answer, /exit or Ctrl-D the chat"
PROMPT = "> "


def chat(
    launch: Launch,
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told first.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer.", show_default="1024, or the server's")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token.", show_default="the model's, or 1")
    ] = None,
) -> None:
    """Chat with a model in the terminal.

    MODEL may also be the address of a server, such as http://127.0.0.1:30000, whose key is in RAYLAUNCH_API_KEY. Lines
    that are piped in are answered one after another.
    """
    with reported():
        require_stdout()
        require_stdin()
        params = sampling_of({"max_new_tokens": max_new_tokens, "temperature": temperature})
        if launch.model is not None and launch.model.startswith(("http://", "https://")):
            if launch.changes() or launch.sglang:
                raise ConfigError("MODEL", launch.model, "is a server: leave out what is of a launch")
            from raylaunch.commands.chat_partners import Server

            converse(Server.at(launch.model, params), system)
        else:
            from raylaunch.commands.chat_partners import OwnEngine
            from raylaunch.model.tokenizer import require_chat_template
            from raylaunch.terminal.session import launched

            config = launch.config()
            require_chat_template(config)
            with launched(config, show_report=False) as engine:
                converse(OwnEngine(engine, params), system)


def converse(partner: Partner, system: str | None, read: Callable[[], str] | None = None) -> None:
    """Reads lines and answers them until there are no more.

    Args:
        read: the next line; raises EOFError at their end. None reads standard input.
    Raises:
        RequestFailed: the server or the group is gone for good.
    """
    read = _reader() if read is None else read
    first: Messages = [] if system is None else [{"role": "system", "content": system}]
    messages = list(first)
    _note(f"{partner.name}: {HELP}")
    with _interrupts_are_exceptions():
        while True:
            try:
                line = read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                _note("Ctrl-D ends the chat")
                continue
            if line == "/exit":
                return
            if problem := problem_of(line):
                _note(f"this line is not sent: {problem}")
                continue
            if line == "/reset":
                messages = list(first)
                _note("a new conversation")
            elif line.startswith("/"):
                _note(HELP)
            elif line:
                messages = _exchange(partner, [*messages, {"role": "user", "content": line}])


def _exchange(partner: Partner, messages: Messages) -> Messages:
    """Prints the answer. Returns the conversation with it, also with a part of one, or without what was refused."""
    said: list[str] = []
    try:
        with contextlib.closing(partner.answer(messages)) as pieces:
            for piece in pieces:
                said.append(piece)
                say(piece, end="")
    except KeyboardInterrupt:
        say("")
        _note("ended")
    except (RequestError, RequestFailed) as error:
        if said:
            say("")
        _note(f"{type(error).__name__} {error}")
        partner.require_alive()
        return messages[:-1]
    else:
        say("")
    return [*messages, {"role": "assistant", "content": "".join(said)}] if said else messages[:-1]


def _reader() -> Callable[[], str]:
    """Reads a line; on a terminal with a prompt, and with what readline does: editing, and earlier lines."""
    if not sys.stdin.isatty():
        return _piped
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() uses it

    return lambda: input(PROMPT)


def _piped() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "surrogateescape")  # what is no UTF-8 is refused as what a terminal says


@contextlib.contextmanager
def _interrupts_are_exceptions() -> Iterator[None]:
    """Ctrl-C ends an answer and not the command; what other signals do stays."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _note(text: str) -> None:
    typer.secho(text, err=True, dim=True)
