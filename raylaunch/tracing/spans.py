"""What the spans of a launch and of a request say: plain data, made when it is over, of what was noted meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from raylaunch.errors import LaunchError
from raylaunch.protocol import Phase
from raylaunch.report import LaunchReport

GONE = "gone"  # the client has left before the answer began


@dataclass(frozen=True)
class SpanFacts:
    """One span and those inside it. Times are seconds since the epoch.

    Attributes:
        error: what it failed with, in a line; "" if it did not.
        events: moments by name.
        served: whether it answered somebody else's request.
    """

    name: str
    start: float
    end: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    events: Mapping[str, float] = field(default_factory=dict)
    inside: tuple[SpanFacts, ...] = ()
    served: bool = False


def launch_span(
    report: LaunchReport, ended: float, error: LaunchError | None = None, about: Mapping[str, Any] | None = None
) -> SpanFacts:
    """A launch: inside it a span for each phase that was reached, with what the driver and each rank did in it.

    Args:
        ended: when it was ready, or had failed.
        error: why it failed.
        about: attributes of the whole.
    """
    phases = list(_phases(report, ended, error))
    attributes = {"raylaunch.launch": report.group, "raylaunch.attempt": report.attempts, **(about or {})}
    if error is not None:
        attributes |= {"error.type": error.code or "LaunchError", "raylaunch.phase": error.phase}
        attributes |= {} if error.rank is None else {"raylaunch.rank": error.rank}
    return SpanFacts(
        "launch", report.started, ended, attributes, "" if error is None else error.headline(), inside=tuple(phases)
    )


def _phases(report: LaunchReport, ended: float, error: LaunchError | None) -> Iterator[SpanFacts]:
    """Phases overlap where a round of captures follows the registration of another."""
    failed = None if error is None else error.phase or (report.due.phase.name if report.due else Phase.PLACE.name)
    last = max((one.end for one in report.driver if one.phase is Phase.PLACE), default=report.started)
    steps: dict[Phase, list[tuple[float, float]]] = {}
    for record in report.steps:
        steps.setdefault(record.step.phase, []).append((last, record.released))
        last = record.released
    for phase in Phase:
        own = [one for one in report.driver if one.phase is phase]
        times = [(one.start, one.end) for one in own] + steps.get(phase, [])
        here = phase.name == failed
        if here:
            times.append((times[-1][0] if times else last, ended))
        if not times:
            continue
        inside = [SpanFacts(f"{phase.name} {one.name}", one.start, one.end) for one in own]
        inside += _ranks(report, phase)
        start, end = min(start for start, _ in times), max(end for _, end in times)
        yield SpanFacts(phase.name, start, end, error=error.headline() if error and here else "", inside=tuple(inside))


def _ranks(report: LaunchReport, phase: Phase) -> Iterator[SpanFacts]:
    """From where a rank began to work towards the first gate of a phase, to its arrival at the last."""
    for place in report.places:
        steps = [record.arrivals for record in report.steps if record.step.phase is phase]
        mine = [one for arrivals in steps for one in arrivals if one.rank == place.rank]
        if mine:
            about = {"raylaunch.rank": place.rank, "host.name": place.node, "process.pid": place.pid}
            about |= {"raylaunch.device": place.device, "raylaunch.busy_s": report.busy(place.rank, phase)}
            name = f"{phase.name} rank {place.rank}"
            yield SpanFacts(name, min(one.started for one in mine), max(one.arrived for one in mine), about)


@dataclass
class RequestFacts:
    """What is noted of an HTTP request while it is answered.

    Attributes:
        status: of the answer; 0 before it begins.
        first_token: when the ranks' first token for it came; 0.0 before.
        reasons: why its choices have ended.
        tokens: of each choice, by a name of its own: of its prompt and of its output.
    """

    method: str
    path: str
    received: float = field(default_factory=time.time)
    status: int = 0
    request_id: str = ""
    first_token: float = 0.0
    reasons: list[str] = field(default_factory=list)
    tokens: dict[object, tuple[int, int]] = field(default_factory=dict)

    def output(self, choice: object, prompt: int, output: int, *, first_token: bool = True) -> None:
        """So many tokens of a choice there are by now.

        Args:
            first_token: whether that is said at its first token too.
        """
        if output and first_token and not self.first_token:
            self.first_token = time.time()
        self.tokens[choice] = (prompt, output)


of_request: ContextVar[RequestFacts | None] = ContextVar("of_request", default=None)
"""The request that is being answered, where its span is wanted."""


def request_span(facts: RequestFacts, ended: float, model: str) -> SpanFacts:
    """A request, by OpenTelemetry's names. Nothing of what was asked or answered is in it."""
    attributes: dict[str, Any] = {
        "http.request.method": facts.method,
        "http.route": facts.path,
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": sum(prompt for prompt, _ in facts.tokens.values()),
        "gen_ai.usage.output_tokens": sum(output for _, output in facts.tokens.values()),
        "gen_ai.response.finish_reasons": tuple(facts.reasons),
    }
    if facts.status:
        attributes["http.response.status_code"] = facts.status
    if facts.request_id:
        attributes["raylaunch.request_id"] = facts.request_id
    error = f"HTTP {facts.status}" if facts.status >= 500 else "" if facts.status else GONE
    if not error and "error" in facts.reasons:
        error = "the answer broke off"
    if error:
        attributes["error.type"] = str(facts.status or GONE)
    events = {"first token": facts.first_token} if facts.first_token else {}
    return SpanFacts(f"{facts.method} {facts.path}", facts.received, ended, attributes, error, events, served=True)
