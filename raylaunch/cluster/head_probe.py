"""Whether a Ray cluster can be joined, asked before ``ray.init``, which nothing can interrupt and which tries for
twenty minutes wherever anything listens (Ray 2.60)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable

from raylaunch import ray_private
from raylaunch.background import Background
from raylaunch.errors import shut_down

ANSWER_S = 20.0
LOOK_S = 0.2
RIGHT = "give HOST:PORT of the cluster's head, the port of its control service, 6379 unless ray start was told another "
RIGHT += "(8265 is the dashboard, 10001 is for Ray Client)"


def head_of(address: str, stopped: Callable[[], bool] = lambda: False, deadline_s: float = ANSWER_S) -> str:
    """HOST:PORT of the head at ``address``, which may be ``auto``, once it has answered with this user's token.

    It is asked by another process, which can be ended; where it cannot connect Ray ends it.

    Raises:
        ConnectionError: nobody listens, something else does, or the token is another one.
        LaunchError: ``stopped`` said that the launch is wanted no more.
    """
    probe = subprocess.Popen(
        [sys.executable, "-c", ray_private.HEAD_PROBE, address],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    reading = Background(probe.communicate)
    try:
        end = time.monotonic() + deadline_s
        while not reading.done(LOOK_S) and time.monotonic() < end:
            if stopped():
                raise shut_down("PLACE")
    finally:
        with contextlib.suppress(ProcessLookupError):
            probe.kill()
        probe.wait()
    said, complaint = reading.result()
    # A busy machine may have ended it before it had looked: that there is no cluster it has not said.
    found, *answers = said.split() or ["" if complaint or address == "auto" else address]
    if answers:
        return found
    raise ConnectionError(_why(address, found, complaint, deadline_s))


def _why(address: str, found: str, complaint: str, deadline_s: float) -> str:
    where = f"at {found}" if found in ("", address) else f"at {found}, where {address} leads to,"
    last = (complaint.strip().splitlines() or [""])[-1].strip()
    if "AuthenticationError" in complaint:
        text = f"the Ray cluster {where} asks for another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a "
        return text + "file with that cluster's token"
    if not found or "Traceback" in complaint:
        return f"{last or 'no cluster was found'}{f' ({found})' if found else ''}; {RIGHT}"
    return f"what listens {where} does not answer as the head of a Ray cluster within {deadline_s:g} s; {RIGHT}"
