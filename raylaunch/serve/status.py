"""The status page at ``/``: plain HTML and a script of our own, which draws what ``/status.json`` says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from raylaunch import __version__
from raylaunch.config import ServeConfig
from raylaunch.engine import EngineBase
from raylaunch.engine.health import Condition, Health
from raylaunch.engine.replicas import replicas_of
from raylaunch.protocol import Gate, LoadFacts, Phase, ReadyFacts, RegisterFacts
from raylaunch.report import LaunchReport, StepRecord
from raylaunch.serve.limits import max_concurrent
from raylaunch.serve.metrics import Metrics, running_and_waiting

ASSETS = {
    "status.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
OPEN_PATHS = ("/", *(f"/status/{name}" for name in ASSETS))  # they hold no data: no key is needed to read them
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
DATA_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def build(engine: EngineBase, settings: ServeConfig, metrics: Metrics) -> APIRouter:
    """Routes of the page, its assets, and ``/status.json``.

    The page and its assets hold no data and are served to anybody; the data needs the API key, if there is one.
    """
    folder = Path(__file__).with_name("status")
    page = (folder / "index.html").read_bytes()
    assets = {name: (folder / name).read_bytes() for name in ASSETS}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    @router.get("/status.json")
    async def status(launch: str = "", replica: int = 0) -> Response:
        data = await metrics.watch.run(lambda: describe(engine, settings, metrics, have=launch, replica=replica))
        return JSONResponse(data, headers=DATA_HEADERS)

    for name, content in assets.items():
        router.add_api_route(f"/status/{name}", _serves(content, ASSETS[name]), methods=["GET"])
    return router


def describe(
    engine: EngineBase, settings: ServeConfig, metrics: Metrics, have: str = "", replica: int = 0
) -> dict[str, Any]:
    """Everything the page shows, as plain data. Asks the ranks: blocks up to a second.

    Args:
        have: revision of the launch that the page has drawn already; that launch is left out.
        replica: whose launch and ranks are shown, where there are several.
    """
    health, engines = metrics.watch.health(), replicas_of(engine)
    shown = min(max(replica, 0), len(engines) - 1)
    own, its_health = engines[shown], health.replicas[shown] if health.replicas else health
    report = own.report
    revision = f"{shown}-{_revision(report)}"
    running, waiting = running_and_waiting(health, metrics.in_flight)
    return {
        "name": engine.config.name,
        "model": engine.model_name,
        "version": __version__,
        "now": time.time(),
        "ready": health.ready,
        "condition": health.condition,
        "reason": health.reason,
        "restarts": {"done": engine.restarts, "left": health.restarts_left},
        "requests": {
            "running": running,
            "waiting": waiting,
            "limit": max_concurrent(engine.config, settings),
            "tokens_per_second": metrics.recent.tokens_per_second(),
            "first_token_p50": metrics.recent.first_token_p50(),
        },
        "replica": shown,
        "replicas": [
            {
                "ready": one.ready,
                "condition": one.condition,
                "reason": one.reason,
                "restarts": {"done": of.restarts, "left": one.restarts_left},
                "requests": one.requests,
            }
            for one, of in zip(health.replicas, engines, strict=len(engines) > 1)
        ],
        "ranks": _ranks(its_health, engine.config.parallel.tensor_parallel_size),
        "step": _step_in_progress(report, its_health),
        "failure": _failure(engine),
        "revision": revision,
        "launch": None if have == revision else _launch(report),
    }


def _ranks(health: Health, size: int) -> list[dict[str, Any]]:
    """Each rank as it is now. A group that is not there has ranks that are starting, or gone."""
    absent = {"answers": False, "counters": {}}
    states = {Condition.NEW: "not started", Condition.READY: "does not answer"}
    state = "starting" if health.condition.starting else states.get(health.condition, "gone")
    seen = {
        rank.rank: {"answers": rank.answers, "activity": rank.activity, "counters": rank.counters}
        for rank in health.ranks
    }
    return [{"rank": rank, **seen.get(rank, {**absent, "activity": state})} for rank in range(size)]


def _step_in_progress(report: LaunchReport, health: Health) -> dict[str, Any] | None:
    """What a launch works towards, and since when; None where no launch goes on."""
    due = report.due
    if not health.condition.starting or report.ready or due is None:
        return None
    return {"phase": due.phase.name, "text": due.what, "done": due.done, "of": due.of, "since": due.since}


def _failure(engine: EngineBase) -> dict[str, Any] | None:
    error = engine.last_error
    if error is None:
        return None
    when = next((when for when, other in reversed(engine.failures) if other is error), None)
    return {
        "when": when,
        "headline": error.headline(),
        "code": error.code,
        "rank": error.rank,
        "text": str(error),
        "count": len(engine.failures),
    }


# ---- the launch, as the timeline draws it


def _launch(report: LaunchReport) -> dict[str, Any]:
    """The report with times in seconds since the start of the launch; all of it JSON."""
    records = [one for one in list(report.steps) if one.step.phase is not Phase.SERVE]
    return {
        "started": report.started,
        "seconds": report.seconds if report.ready else None,
        "total": max(0.0, (report.ready or _last_moment(report)) - report.started),
        "attempts": report.attempts,
        "shapes": {"verified": len(report.verdicts), "left": len(report.unverified)},
        "phases": [
            {
                "name": phase.name,
                "seconds": report.elapsed(phase),
                "busy": [report.busy(place.rank, phase) for place in report.places],
                "what": report.describe(phase) if _was_reached(report, phase) else "",
            }
            for phase in Phase
            if phase is not Phase.SERVE
        ],
        "ranks": [
            {
                "rank": place.rank,
                "node": place.node,
                "pid": place.pid,
                "device": place.device,
                **_rank_facts(records, place.rank),
            }
            for place in report.places
        ],
        "driver": [
            _bar("PLACE", "work", f"PLACE {span.name}", span.start, span.end, report.started)
            for span in list(report.driver)
        ],
        "bars": [_bars(records, place.rank, report.started) for place in report.places],
    }


def _rank_facts(records: list[StepRecord], rank: int) -> dict[str, Any]:
    """Memory in bytes, graphs, and registered inputs of a rank; None where it has not said so yet."""
    said: dict[str, Any] = {"memory": None, "graphs": None, "registered": None}
    for record in records:
        for arrival in record.arrivals:
            facts = arrival.facts
            if arrival.rank != rank:
                continue
            if isinstance(facts, LoadFacts):
                said["memory"] = facts.nbytes
            elif isinstance(facts, RegisterFacts):
                said["registered"] = facts.registered
            elif isinstance(facts, ReadyFacts):
                said["graphs"] = facts.graphs
                said["memory"] = facts.memory or said["memory"]
    return said


def _bars(records: list[StepRecord], rank: int, zero: float) -> list[dict[str, Any]]:
    """What a rank did, step by step: its work, then its wait for the slowest peer and the driver."""
    bars = []
    for record in records:
        for arrival in record.arrivals:
            if arrival.rank == rank:
                phase, text = record.step.phase.name, str(record.step)
                bars.append(_bar(phase, "work", text, arrival.started, arrival.arrived, zero))
                bars.append(_bar(phase, "wait", text, arrival.arrived, record.released, zero))
    return bars


def _bar(phase: str, kind: str, text: str, start: float, end: float, zero: float) -> dict[str, Any]:
    # Ranks have their nodes' clocks: a bar never starts before the launch, nor ends before it starts.
    first = max(0.0, start - zero)
    return {
        "phase": phase,
        "kind": kind,
        "text": text,
        "start": round(first, 6),
        "end": round(max(first, end - zero), 6),
    }


def _was_reached(report: LaunchReport, phase: Phase) -> bool:
    if phase is Phase.PLACE:
        return bool(report.places)
    if phase in (Phase.CAPTURE, Phase.REGISTER) and any(r.step.gate is Gate.VERIFIED for r in list(report.steps)):
        return True  # without graphs these phases have no step of their own, and are over all the same
    return any(record.step.phase is phase for record in list(report.steps))


def _last_moment(report: LaunchReport) -> float:
    """When the last thing that the report knows of was over."""
    moments = [report.started]
    moments += [span.end for span in report.driver[-1:]] + [record.released for record in report.steps[-1:]]
    return max(moments)


def _revision(report: LaunchReport) -> str:
    """Changes with everything that :func:`_launch` shows."""
    sizes = (len(report.driver), len(report.places), len(report.steps))
    return f"{report.started:.3f}-{report.attempts}-{'-'.join(map(str, sizes))}-{report.ready:.3f}"


def _serves(content: bytes, media_type: str) -> Callable[[], Any]:
    async def serve() -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return serve
