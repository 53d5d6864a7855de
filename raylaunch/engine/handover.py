"""From ranks that are ready to ranks that answer: the frontend takes a group over, which is watched meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from raylaunch.background import Background
from raylaunch.errors import LaunchError, shut_down
from raylaunch.frontends.base import Frontend
from raylaunch.group.launch import Launched, span
from raylaunch.group.serving import explained
from raylaunch.protocol import Phase

WATCH_S = 0.1


def hand_over(
    launched: Launched, frontend: Frontend, cancelled: Callable[[], bool], lost: Callable[[LaunchError], None]
) -> None:
    """Lets the frontend take the group. If that fails the group is torn down.

    Args:
        cancelled: asked all the time whether the launch is wanted no more.
        lost: told why ranks have ended, before that is raised: requests that wait for them need not wait longer.
    Raises:
        LaunchError: ranks have ended meanwhile, or the launch was cancelled; and whatever the frontend raises.
    """
    group, report = launched.group, launched.report
    try:
        with span(report, "first request", Phase.VERIFY):
            handing = Background(lambda: frontend.up(launched.offer, launched.resolved))
            while not handing.done(WATCH_S):
                if cancelled():
                    raise shut_down(Phase.VERIFY.name)
                outcome = group.ended(0)
                if not outcome.complete:
                    error = explained(group, outcome, Phase.VERIFY)
                    lost(error)
                    raise error
            handing.raise_if_failed()
        report.ready = time.time()
    except BaseException as error:
        teardown = group.close(launched.resolved.config.deadlines.shutdown)
        if isinstance(error, LaunchError):
            error.teardown = str(teardown)
        raise
