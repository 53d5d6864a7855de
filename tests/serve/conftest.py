"""A client of the application in front of an engine without ranks; and a real server in front of real ranks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from raylaunch.cluster.session import enter
from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.engine import Engine
from raylaunch.serve import bind, build_app
from raylaunch.serve.run import url_of
from tests.serve.answering_engine import AnsweringEngine

TEMPLATE = "{{ messages[-1]['content'] }}"


@pytest.fixture
def engine() -> AnsweringEngine:
    return AnsweringEngine()


@pytest.fixture
def client_with(engine: AnsweringEngine) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of an application with these settings."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            app = build_app(engine, ServeConfig(**{"chat_template": TEMPLATE, **settings}))  # type: ignore[arg-type]
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture
def client(client_with: Callable[..., TestClient]) -> TestClient:
    return client_with()


def events_of(text: str) -> list[Any]:
    """The data of a stream of server-sent events, whose end it checks."""
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@dataclass(frozen=True)
class Live:
    """A launched engine behind a real server. ``url`` has no slash at its end."""

    engine: Engine
    settings: ServeConfig
    url: str

    def running(self) -> int:
        """Requests that rank 0 works on now, by its own count."""
        counters = self.engine.health().ranks[0].counters
        return counters["running"] + counters["waiting"]


@contextmanager
def served(engine: Engine, settings: ServeConfig) -> Iterator[Live]:
    """The engine behind uvicorn on a thread."""
    listener = bind(settings)
    server = uvicorn.Server(uvicorn.Config(build_app(engine, settings), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Live(engine, settings, url_of(listener))
    server.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="package")
def live() -> Iterator[Live]:
    """The embedded default on real ranks, behind a real server that limits and asks for nothing unusual.

    One for all tests of this folder, which leave it as they find it. Without graphs, which no client sees: that saves
    each rank a compile.
    """
    shapes = ["capture.prefill_tokens=[8,32]", "capture.decode_batch_sizes=[2,8]"]
    changes = [*shapes, "capture.enabled=false", "deadlines.health=20"]
    config = LaunchConfig.default(changes)
    settings = ServeConfig(port=0, chat_template=TEMPLATE)
    session = enter(None, 8, "raylaunch")  # room for tests that launch engines of their own beside it
    try:
        with Engine(config) as engine, served(engine, settings) as found:
            yield found
    finally:
        session.close()
