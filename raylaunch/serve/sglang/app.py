"""SGLang's own HTTP application for the engine ``sglang``, behind this package's health, limits and key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch import __version__
from raylaunch.engine.health import Condition
from raylaunch.engine.replicas import Replicas, replicas_of
from raylaunch.errors import ConfigError
from raylaunch.serve import errors, metrics, status
from raylaunch.serve.cors import HideOrigin, with_cors
from raylaunch.serve.errors import ApiError, unavailable
from raylaunch.serve.limits import LimitBody, LimitConcurrency, RequireKey, max_concurrent
from raylaunch.serve.reference.health import require_answer, require_ready
from raylaunch.serve.sglang.every_rank import OfEveryRank
from raylaunch.serve.sglang.first_event import FirstEvent
from raylaunch.serve.sglang.known_fields import KnownFields, dropped, request_kinds
from raylaunch.serve.sglang.replicas import Dispatch, OfReplica
from raylaunch.serve.sglang.surrogates import RefuseLoneSurrogates
from raylaunch.serve.watched import Watched
from raylaunch.sglang.frontend import SglangFrontend
from raylaunch.sglang.manager import TokenizerSide
from raylaunch.sglang.versions import prepare_application

if TYPE_CHECKING:
    from raylaunch.config import ServeConfig
    from raylaunch.engine import EngineBase

OURS = ("/", "/status.json", "/ready", "/health", "/health_generate", "/raylaunch/metrics", *status.OPEN_PATHS)
OPEN_PATHS = ("/health", "/health_generate", "/metrics", "/ready", *status.OPEN_PATHS)
"""Need no key: SGLang's server too leaves its health and metrics to probes that have none."""
OPEN_METHODS = ("OPTIONS",)
"""Neither do a browser's preflights, which cannot carry one."""
LIMITED_PATHS = (
    "/generate", "/encode", "/classify", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages",
    "/v1/embeddings", "/v1/score", "/v1/rerank",
)  # fmt: skip
HEALTH_PATHS = ("/ping",)
UNMARKED = ("/load_lora_adapter_from_tensors", "/set_trace_level", "/open_session", "/close_session")
"""Endpoints that change the server and that SGLang does not mark as an operator's."""


def build_app(engine: EngineBase, settings: ServeConfig, *, exposed: bool) -> ASGIApp:
    """SGLang's application, with this package's status page at ``/`` and metrics at ``/raylaunch/metrics``.

    It must run on the loop of the engine's frontend, and its lifespan must be run.

    Args:
        exposed: other machines can reach it without a key: an operator's endpoints are refused then.
    Raises:
        ConfigError: the frontend is not SGLang's, or is not up.
    """
    sides = [_side_of(one) for one in replicas_of(engine)]
    theirs = sglang_application(sides)
    app: ASGIApp = FirstEvent(HideOrigin(_operators_only(theirs) if exposed else theirs))
    if sides[0].settled.enable_metrics:
        app = OfEveryRank(engine.kept_metrics, app)
    app = KnownFields(app, request_kinds(), dropped(sides[0].settled.completion_template))
    app = RefuseLoneSurrogates(app)
    guards = [Guard(one, side, app) for one, side in zip(replicas_of(engine), sides, strict=True)]
    app = guards[0]
    if isinstance(engine, Replicas):
        reads = LIMITED_PATHS if engine.config.parallel.routing == "prefix" else ()
        app = Dispatch(engine.engines, guards, engine.best, _of_operators(theirs), reads)
    app = LimitConcurrency(app, limit=max_concurrent(engine.config, settings), paths=LIMITED_PATHS)
    app = LimitBody(app, max_bytes=settings.max_body_bytes)
    routes, counters = metrics.build(engine, settings, paths=(metrics.OWN,))
    app = OwnPagesFirst(own_application(engine, settings, sides, routes, counters), app)
    if settings.api_key is not None:
        app = RequireKey(app, key=settings.api_key, open_paths=OPEN_PATHS, open_methods=OPEN_METHODS)
    app = app if settings.api_key is None and not exposed else _without_websockets(app)
    return with_cors(Watched(app, engine, counters, LIMITED_PATHS), settings.cors_origins)


def _side_of(engine: EngineBase) -> TokenizerSide:
    frontend = engine.frontend
    if not isinstance(frontend, SglangFrontend) or frontend.side is None:
        raise ConfigError("engine.kind", engine.config.engine.kind, "SGLang's interface needs the engine sglang")
    return frontend.side


def sglang_application(sides: Sequence[TokenizerSide]) -> FastAPI:
    """SGLang's application over the tokenizer manager of each replica; its own warm-up finds nothing to do."""
    from sglang.srt.entrypoints import http_server

    side = sides[0]
    manager = side.manager if len(sides) == 1 else OfReplica([one.manager for one in sides])
    state = http_server._GlobalState(
        tokenizer_manager=manager, template_manager=side.templates, scheduler_info=side.scheduler_info
    )
    http_server.set_global_state(state)
    app: Any = http_server.app
    app.is_single_tokenizer_mode = True
    prepare_application(http_server, metrics=bool(side.settled.enable_metrics))  # /metrics is added by its lifespan
    app.server_args = side.server_args
    app.add_exception_handler(Exception, errors.unexpected)  # of SGLang's own code, which leaves it at a bare 500
    app.warmup_thread_kwargs = {"server_args": side.server_args}  # they say skip_server_warmup
    return app


def own_application(
    engine: EngineBase,
    settings: ServeConfig,
    sides: Sequence[TokenizerSide],
    routes: APIRouter,
    counters: metrics.Metrics,
) -> FastAPI:
    """The pages that are this package's own. Health is: SGLang's would wait for ranks that are lost, and leave its
    question to them to nobody."""
    app = FastAPI(title="raylaunch", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(routes)
    app.include_router(status.build(engine, settings, counters))

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """200 if requests are answered now, 503 with the reason if not."""
        require_ready(engine)
        return {"status": "ready"}

    @app.get("/health")
    @app.get("/health_generate")
    async def health(request: Request) -> dict[str, str]:
        """200 when the ranks have given out anything since the question; 503 with the reason if they do not."""
        # SGLang's own may go on with 200 after its ranks have died: https://github.com/sgl-project/sglang/issues/6624
        if request.url.path == "/health" and not sides[0].health_generates():
            return await ready()
        at = engine.best("") if isinstance(engine, Replicas) else 0
        side, before = sides[at], sides[at].heard_at()
        asked = replicas_of(engine)[at]
        await require_answer(asked, side.one_token, lambda: side.heard_at() != before, side.health_seconds())
        return {"status": "ready"}

    errors.install(app)
    return app


class OwnPagesFirst:
    """Our own pages to our own application, everything else to SGLang's."""

    def __init__(self, ours: ASGIApp, theirs: ASGIApp) -> None:
        self.ours, self.theirs = ours, theirs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mine = scope["type"] == "http" and scope["path"] in OURS
        await (self.ours if mine else self.theirs)(scope, receive, send)


class Guard:
    """Answers 503 with the headline while there is no group, whatever is asked: ``/v1/models`` too (F07). While there
    is one that makes no progress, requests and questions of health get it, and an operator, who may be the one to set
    it going again, is let through. With ``recovery.while_rebuilding: wait`` a request is taken while a lost group is
    rebuilt: it waits in the tokenizer manager."""

    def __init__(self, engine: EngineBase, side: TokenizerSide, app: ASGIApp) -> None:
        self.engine, self.side, self.app = engine, side, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/metrics"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"])
        error = unavailable(refusal) if refusal else await self._answered(scope, receive, send)
        if error is not None:
            await error.response()(scope, receive, send)

    def _refusal(self, path: str) -> str:
        health = self.engine.health(ask_ranks=False)
        waits = path in LIMITED_PATHS and self.engine.config.recovery.while_rebuilding == "wait"
        for_operators = path not in LIMITED_PATHS and path not in HEALTH_PATHS
        return "" if for_operators and health.condition is Condition.READY else health.refusal(waits)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> ApiError | None:
        """Lets SGLang answer. Returns the answer that it could not give."""
        started = False
        task = asyncio.current_task()
        assert task is not None

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            self.side.callers.discard(task)  # a stream is ended by its last message
            await send(message)

        self.side.callers.add(task)
        if scope["path"] in LIMITED_PATHS:
            self.side.patient.add(task)
        try:
            await self.app(scope, receive, sent)
        except ApiError as error:  # of a limit, met while SGLang read the body
            return None if started else error
        except asyncio.CancelledError:
            if task not in self.side.given_up:
                raise
            task.uncancel()
            return None if started else unavailable(self.side.given_up[task])
        finally:
            self.side.callers.discard(task)
            self.side.patient.discard(task)
            self.side.given_up.pop(task, None)
        return None


def _operators_only(app: FastAPI) -> ASGIApp:
    """Refuses what changes or profiles the server, as SGLang marks it: without a key nobody is its operator."""
    of_operators = _of_operators(app)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and of_operators(scope):
            text = f"{scope['path']} is for operators: start the server with an API key to use it from elsewhere"
            await ApiError(403, text, code="key_required").response()(scope, receive, send)
            return
        await app(scope, receive, send)

    return guarded


def _of_operators(app: FastAPI) -> Callable[[Scope], bool]:
    """Whether a request is for what changes or profiles the server."""
    from sglang.srt.utils import auth

    def asked(scope: Scope) -> bool:
        level = auth._get_auth_level_from_app_and_scope(app, scope)
        return level is not auth.AuthLevel.NORMAL or scope["path"] in UNMARKED

    return asked


def _without_websockets(app: ASGIApp) -> ASGIApp:
    """Refuses web sockets: SGLang's (0.5.17, 0.5.23) asks for no key."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await app(scope, receive, send)

    return guarded
