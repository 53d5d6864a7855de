"""A conversation in the terminal: what is said, what is remembered, and what ends an answer."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn

from raylaunch.commands import chat_partners
from raylaunch.commands.chat import converse
from raylaunch.commands.chat_partners import OwnEngine, Server
from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.errors import ConfigError, RequestError, RequestFailed
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model.tokenizer import require_chat_template
from raylaunch.serve import build_app
from tests.serve.answering_engine import AnsweringEngine


class Partner:
    """Answers what it is told to; ``heard`` are the conversations."""

    name = "scripted"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.heard: list[list[tuple[str, str]]] = []
        self.closed = 0

    def answer(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        self.heard.append([(message["role"], message["content"]) for message in messages])
        try:
            for piece in self.answers.pop(0):
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1

    def require_alive(self) -> None:
        if "dead" in self.answers:
            raise RequestFailed("gone for good")


def talk(partner: Any, *lines: Any, system: str | None = None) -> None:
    left = iter(lines)

    def read() -> str:
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)

    converse(partner, system, read)


def test_answers_are_printed_as_they_come_and_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    partner = Partner(["4", "2"], ["7"])
    talk(partner, "12+30", "  ", "3+4", system="add")
    assert capsys.readouterr().out == "42\n7\n"
    first = [("system", "add"), ("user", "12+30")]
    assert partner.heard == [first, [*first, ("assistant", "42"), ("user", "3+4")]]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "utf-8:surrogateescape"])
def test_a_line_that_is_no_text_is_not_sent(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codec, _, errors = encoding.partition(":")
    piped = io.BytesIO(b"caf\xe9\ncaf\xc3\xa9\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(piped, encoding=codec, errors=errors or "strict"))
    partner = Partner(["4"])
    converse(partner, None)
    assert partner.heard == [[("user", "café")]]
    assert "this line is not sent: character 3 is the byte 0xe9, which is no UTF-8" in capsys.readouterr().err
    partner = Partner(["4"])
    talk(partner, "half \ud83d", "whole")
    assert partner.heard == [[("user", "whole")]]


def test_a_reset_forgets_all_but_what_comes_first() -> None:
    partner = Partner(["1"], ["2"])
    talk(partner, "a", "/reset", "b", "/exit", "c", system="s")
    assert partner.heard[1] == [("system", "s"), ("user", "b")]
    assert len(partner.heard) == 2


@pytest.mark.parametrize("error", [RequestError("too long"), RequestFailed("rank 1 is lost")])
def test_what_is_refused_is_said_and_forgotten(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    partner = Partner(["par", error], ["2"])
    talk(partner, "a", "b")
    said = capsys.readouterr()
    assert str(error) in said.err
    assert said.out == "par\n2\n"
    assert partner.heard[1] == [("user", "b")]


def test_a_group_that_is_lost_for_good_ends_the_chat() -> None:
    with pytest.raises(RequestFailed, match="gone for good"):
        talk(Partner([RequestFailed("lost")], "dead"), "a", "b")


def test_an_interrupt_ends_the_answer_and_not_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    partner = Partner(["1", KeyboardInterrupt()], ["2"], [KeyboardInterrupt()], ["3"])
    talk(partner, "a", KeyboardInterrupt(), "b", "c", "d")
    assert capsys.readouterr().out == "1\n2\n\n3\n"
    assert partner.heard[1] == [("user", "a"), ("assistant", "1"), ("user", "b")]
    assert partner.heard[3] == [*partner.heard[1], ("assistant", "2"), ("user", "d")]  # nothing was said to c
    assert partner.closed == 4


def test_a_real_signal_ends_an_answer_that_never_comes(capsys: pytest.CaptureFixture[str]) -> None:
    class Silent(Partner):
        def answer(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
            yield "1"
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(30)

    before = signal.getsignal(signal.SIGINT)
    began = time.monotonic()
    talk(Silent(), "a")
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGINT) is before
    assert "ended" in capsys.readouterr().err


# ---- with an engine, and with a server


class Streaming(AnsweringEngine):
    """Has the API of threads too."""

    def stream(self, prompt: Any, params: SamplingParams) -> Iterator[Any]:
        self.asked_for.append((list(prompt), params))
        for token in self._answer(prompt):
            yield self._chunk("r", token, params)


def test_an_engine_is_asked_with_its_own_template() -> None:
    engine = Streaming()
    partner = OwnEngine(engine, SamplingParams(temperature=0))  # type: ignore[arg-type]
    assert "".join(partner.answer([{"role": "user", "content": "What is 12 + 30?"}])) == "42"
    assert engine.asked_for[0][1].max_new_tokens == 1024
    with pytest.raises(RequestError, match=r"the chat template refuses this: .*adds two whole numbers"):
        list(partner.answer([{"role": "user", "content": "hello"}]))


def test_a_model_without_a_template_is_refused_before_it_is_launched(tmp_path: Any) -> None:
    require_chat_template(LaunchConfig.default())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    config = LaunchConfig.default([f"model.path={tmp_path}"])
    with pytest.raises(ConfigError, match=r"has no chat template: set serve\.chat_template"):
        require_chat_template(config)
    require_chat_template(config.override("serve.chat_template='{{ messages }}'"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    require_chat_template(config)


@pytest.fixture
def url_of() -> Iterator[Callable[..., str]]:
    """Serves an engine without ranks."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(engine: AnsweringEngine, **settings: Any) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build_app(engine, ServeConfig(**settings)), log_level="error"))  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def test_an_answer_whose_end_does_not_come_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that leaves without a word, behind a proxy that ends what it passes on in order."""
    begun = b'data: {"choices": [{"delta": {"content": "4"}}]}\n\n'
    monkeypatch.setattr(chat_partners, "_asked", lambda *_: io.BytesIO(begun))
    answer, heard = Server("http://somewhere", "model", SamplingParams()).answer([]), list[str]()
    with pytest.raises(RequestFailed, match="broke off"):
        heard.extend(answer)
    assert heard == ["4"]


def test_a_server_is_asked_over_openais_interface(
    url_of: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = AnsweringEngine()
    partner = Server.at(f"{url_of(engine)}/v1/", SamplingParams(max_new_tokens=7, temperature=0.5))
    assert partner.name == "tiny-adder"
    talk(partner, "12+30", "hello", "7+8")
    said = capsys.readouterr()
    assert said.out == "42\n15\n"
    assert "400 the chat template refuses these messages: this model adds" in said.err
    params = engine.asked_for[0][1]
    assert (params.max_new_tokens, params.temperature) == (7, 0.5)


def test_an_answer_that_breaks_off_is_an_error(url_of: Callable[..., str]) -> None:
    engine = AnsweringEngine()
    engine.failure, engine.fails_at = RequestFailed("rank 1 is lost"), 1
    partner = Server.at(url_of(engine), SamplingParams())
    with pytest.raises(RequestFailed, match="rank 1 is lost"):
        list(partner.answer([{"role": "user", "content": "12+30"}]))


def test_a_server_with_a_key(url_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(AnsweringEngine(), api_key="geheim")
    monkeypatch.delenv("RAYLAUNCH_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="no model can be asked there: 401"):
        Server.at(url, SamplingParams())
    monkeypatch.setenv("RAYLAUNCH_API_KEY", "geheim")
    assert "".join(Server.at(url, SamplingParams()).answer([{"role": "user", "content": "1+1"}])) == "2"


def test_no_server_at_all() -> None:
    with pytest.raises(ConfigError, match=r"MODEL = 'http://127.0.0.1:1': no model can be asked there: .*refused"):
        Server.at("http://127.0.0.1:1", SamplingParams())


MODELS = b'{"data": [{"id": "m"}]}'


@contextmanager
def answering(models: bytes, events: Sequence[bytes] = (), length: int | None = None) -> Iterator[str]:
    """The address of a server that has one answer for everybody.

    Args:
        length: of the list of its models, as it says.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(models) if length is None else length))
            self.end_headers()
            self.wfile.write(models)

        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"".join(b"data: " + event + b"\n\n" for event in events))

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_breaks_off_before_it_has_said_which_model() -> None:
    with answering(MODELS, length=1000) as url, pytest.raises(ConfigError, match="no model can be asked there: "):
        Server.at(url, SamplingParams())


def test_a_key_is_for_the_server_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLAUNCH_API_KEY", "sesame")
    heard: list[tuple[str, str | None]] = []

    class Redirects(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers.get("Authorization")))
            self.send_response(302 if self.path == "/v1/models" else 200)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/other")
            self.send_header("Content-Length", str(len(MODELS)))
            self.end_headers()
            self.wfile.write(MODELS)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        Server.at(f"http://127.0.0.1:{server.server_port}", SamplingParams())
        server.shutdown()
    assert heard == [("/v1/models", "Bearer sesame"), ("/other", None)]


def test_what_other_servers_say_is_null() -> None:
    events = [
        b'{"choices": null}',
        b'{"choices": [{"delta": null}]}',
        b'{"choices": [{"delta": {"content": "4"}}]}',
        b"[DONE]",
    ]
    with answering(MODELS, events) as url:
        assert list(Server.at(url, SamplingParams()).answer([])) == ["", "", "4"]


@pytest.mark.parametrize("event", [b"5", b'{"choices": 5}', b'{"choices": ["a"]}'])
def test_an_event_of_another_kind_is_an_error(event: bytes) -> None:
    with (
        answering(MODELS, [event]) as url,
        pytest.raises(RequestFailed, match="an event that is none of OpenAI's: "),
    ):
        list(Server.at(url, SamplingParams()).answer([]))
