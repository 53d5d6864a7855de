"""A Ray cluster of this process's own: its start, its token, its processes and their end."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray

from raylaunch import ray_private
from raylaunch.protocol import NICENESS, NICENESS_IS_OURS
from raylaunch.startup.preflight import OBJECT_STORE_BYTES

AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
AGENT_GRACE_S = 1.0


def start(cpus: float, namespace: str) -> None:
    """Starts it, with as many CPUs at least."""
    ray.init(
        address="local",
        namespace=namespace,
        num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=OBJECT_STORE_BYTES,
    )


@contextlib.contextmanager
def workers_at_nice_0() -> Iterator[None]:
    """Has Ray start its workers at nice 0, unless the user has chosen: its own choice is 15
    (https://github.com/ray-project/ray/pull/24928). Every process may become nicer and few less so;
    ranks choose by their device (:mod:`raylaunch_actors.priority`).

    By variables, which workers inherit: a version of Ray without this one ignores it, and would end over an entry of
    ``_system_config`` that it does not know.
    """
    ours = {} if NICENESS in os.environ else {NICENESS: "0", NICENESS_IS_OURS: "1"}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def make_token() -> str:
    """Gives the cluster a token file of its own, so that none is written to the user's home folder; the file's folder,
    or "" where the user has chosen.

    Ray turns token authentication on for new local clusters (https://github.com/ray-project/ray/pull/64755) and would
    leave ``~/.ray/auth_token`` behind, which changes how clusters that are started later behave.
    """
    if any(name in os.environ for name in AUTH_VARIABLES):
        return ""
    folder = tempfile.mkdtemp(prefix="raylaunch-auth-")
    try:
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    ray_private.forget_token()
    return folder


def remove_token(folder: str, *, in_use: bool) -> None:
    """Removes the file and forgets it, unless it is ``in_use``: where Ray's threads go on in this process, they end it
    on the spot if they find no token."""
    shutil.rmtree(folder, ignore_errors=True)
    if in_use:
        return
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):  # the first is set by Ray itself
        os.environ.pop(name, None)
    ray_private.forget_token()


def processes() -> list[psutil.Process]:
    """Ray's processes below this one: of the private cluster, as a process is the head of one cluster at most."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() in ("raylet", "gcs_server"):
                found += [child, *child.children(recursive=True)]
    return found


def end(ours: list[psutil.Process]) -> None:
    """Ends what outlives its cluster: Ray's agents (2.60) try for a minute to tell one that is gone that it is gone."""
    _, alive = psutil.wait_procs(ours, timeout=AGENT_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=AGENT_GRACE_S)
