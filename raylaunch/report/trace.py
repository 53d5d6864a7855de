"""A launch as a trace in Chrome's JSON format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylaunch.report.launch_report import LaunchReport


def chrome_trace(report: LaunchReport) -> dict[str, Any]:
    """A trace in Chrome's JSON format, which Perfetto opens: a track for the driver, one for what its frontend does
    meanwhile, one for each rank."""
    ranks = len(report.places)
    events: list[dict[str, Any]] = [_named_track(0, "driver")]
    if report.beside:
        events.append(_named_track(ranks + 1, "frontend"))
    if report.command:
        events.append(_slice(0, "the command begins", report.command, report.started, "place"))
    events += [_slice(0, span.name, span.start, span.end, "place") for span in report.driver]
    events += [_slice(ranks + 1, span.name, span.start, span.end, "frontend") for span in report.beside]
    firsts = {one.rank: one.started for one in report.steps[0].arrivals} if report.steps else {}
    for place in report.places:
        events.append(_named_track(place.rank + 1, f"rank {place.rank} ({place.node}, pid {place.pid})"))
        if place.since and place.rank in firsts:
            events.append(_slice(place.rank + 1, "its process begins", place.since, firsts[place.rank], "place"))
    for record in report.steps:
        last = max((arrival.arrived for arrival in record.arrivals), default=record.released)
        events.append(_slice(0, f"barrier {record.step}", last, record.released, "barrier"))
        for arrival in record.arrivals:
            track, category = arrival.rank + 1, record.step.phase.name.lower()
            events.append(_slice(track, str(record.step), arrival.started, arrival.arrived, category))
            ends = [since for _, since in arrival.did[1:]] + [arrival.arrived]
            for (what, since), end in zip(arrival.did, ends, strict=False):
                events.append(_slice(track, what, max(since, arrival.started), end, category))
            events.append(_slice(track, "waits for its peers", arrival.arrived, record.released, "wait"))
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"group": report.name}}


def _named_track(track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}}


def _slice(track: int, name: str, start: float, end: float, category: str) -> dict[str, Any]:
    times = {"ts": start * 1e6, "dur": max(0.0, end - start) * 1e6}
    return {"ph": "X", "name": name, "cat": category, "pid": 1, "tid": track, **times}
