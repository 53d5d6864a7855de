"""The HTTP application of an engine: wires routes, limits and errors together, and does nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi import FastAPI

from raylaunch import __version__
from raylaunch.serve import errors, metrics, status
from raylaunch.serve.cors import OpenToPages
from raylaunch.serve.limits import LimitBody, LimitConcurrency, RequireKey, max_concurrent
from raylaunch.serve.reference import generate, health, openai, tokens
from raylaunch.serve.request_ids import RequestIds
from raylaunch.serve.running import Serving
from raylaunch.serve.watched import Watched

if TYPE_CHECKING:
    from raylaunch.config import ServeConfig
    from raylaunch.engine import EngineBase

OPEN_PATHS = (health.HEALTH, health.READY, *status.OPEN_PATHS)
LIMITED_PATHS = (generate.GENERATE, openai.COMPLETIONS, openai.CHAT)


def build_app(engine: EngineBase, settings: ServeConfig, *, title: str = "raylaunch") -> FastAPI:
    """The application: SGLang's and OpenAI's endpoints, health, metrics and the status page of ``engine``.

    It neither starts nor shuts the engine down.

    Raises:
        ConfigError: the chat template cannot be read.
    """
    app = OpenToPages(
        origins=settings.cors_origins,
        title=title,
        version=__version__,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        responses={"4XX": {"model": errors.ErrorAnswer}, "5XX": {"model": errors.ErrorAnswer}},
    )
    operator_routes, counters = metrics.build(engine, settings)
    serving = Serving(engine, settings, counters.observe, int(time.time()))
    app.state.serving = serving
    app.include_router(health.build(serving))
    app.include_router(generate.build(serving))
    app.include_router(openai.build(serving))
    app.include_router(tokens.build(serving))
    app.include_router(operator_routes)
    app.include_router(status.build(engine, settings, counters))
    errors.install(app)
    # The last one added is asked first: nothing is read of a request without a key.
    app.add_middleware(LimitConcurrency, limit=max_concurrent(engine.config, settings), paths=LIMITED_PATHS)
    app.add_middleware(LimitBody, max_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(RequireKey, key=settings.api_key, open_paths=OPEN_PATHS)
    app.add_middleware(RequestIds)
    app.add_middleware(Watched, engine=engine, metrics=counters, paths=LIMITED_PATHS)
    return app
