"""A model on the Hub is fetched once on every node, by the node's agent, before its ranks begin."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError, shut_down
from raylaunch.model import hub
from raylaunch.model.load_formats import FORMATS, is_checkpoint, reads_files
from raylaunch.protocol import Phase
from raylaunch.protocol.rules.common import human_bytes
from raylaunch.report import LaunchReport
from raylaunch.resolved import ResolvedLaunch

if TYPE_CHECKING:
    from raylaunch_actors.fetch import Wanted

LOOK_S = 0.5


def wanted_of(resolved: ResolvedLaunch) -> Wanted | None:
    """What the ranks of an engine will read of a model on the Hub; None where there is nothing to fetch."""
    from raylaunch_actors.fetch import Wanted

    model = resolved.config.model
    if Path(model.path).is_absolute() or not reads_files(model.load_format):
        return None
    code = ("*.py",) if model.trust_remote_code else ()
    whole = is_checkpoint(model.load_format)
    weights = (hub.WEIGHTS,) if whole else FORMATS[model.load_format].files
    return Wanted(model.path, model.revision, resolved.revision, (*hub.SETTINGS, *weights, *code), whole)


def fetch(
    agents: Mapping[str, Any], wanted: Wanted, config: LaunchConfig, report: LaunchReport, stopped: Callable[[], bool]
) -> None:
    """Has every node fetch it, and waits for as long as anything arrives.

    Args:
        agents: of the nodes, by their ids.
        report: says how far it is meanwhile.
        stopped: whether the launch is wanted no more.
    Raises:
        LaunchError: a node cannot have it, nothing has arrived on one for ``deadlines.load``, or it was stopped.
    """
    calls = {agent.fetch.remote(wanted, config.environment): node for node, agent in agents.items()}
    waiting, seen = list(calls), dict.fromkeys(agents, (0, 0))
    changed = time.monotonic()
    try:
        while waiting:
            if stopped():
                raise shut_down(Phase.PLACE.name)
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
            for call in done:
                if problem := ray.get(call):
                    raise LaunchError(
                        f"{wanted.path} cannot be had on node {calls[call][:8]}: {problem}", phase="PLACE"
                    )
            now = _looked(agents, [calls[call] for call in waiting], seen)
            if now != seen or done:
                seen, changed = now, time.monotonic()
            elif time.monotonic() - changed > config.deadlines.load:
                text = (
                    f"nothing of {wanted.path} has arrived for {config.deadlines.load:g} s; deadlines.load allows more"
                )
                raise LaunchError(text, "F08", "PLACE", retryable=True)
            report.fetching = _said(wanted.path, list(seen.values())) if waiting else ""
    finally:
        report.fetching = ""


def _looked(
    agents: Mapping[str, Any], nodes: list[str], before: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """What has arrived on each node; of one that does not answer now, what had before."""
    found = dict(before)
    calls = {agents[node].fetched.remote(): node for node in nodes}
    done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=LOOK_S) if calls else ([], [])
    for call in done:
        try:
            found[calls[call]] = ray.get(call)
        except RayError:
            continue  # its fetch fails too, and says so
    return found


def _said(path: str, nodes: list[tuple[int, int]]) -> str:
    """How far the node is that has the least."""
    there, total = min(nodes, key=lambda one: one[0] / (one[1] or 1))
    of = f" of {human_bytes(total)}" if total else ""
    where = f", slowest of {len(nodes)} nodes" if len(nodes) > 1 else ""
    return f"fetching {path}: {human_bytes(there)}{of}{where}"
