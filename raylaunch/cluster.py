"""The Ray session a launch runs in: the caller's, a cluster to join, or a private one started for the launch."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
import ray

from raylaunch.config.address import cluster_to_join
from raylaunch.errors import LaunchError
from raylaunch.protocol import NICENESS, NICENESS_IS_OURS

AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
AGENT_GRACE_S = 1.0
CONNECT_S = 5.0
_ABANDONED = threading.Event()


@dataclass
class RaySession:
    """How this process came to its Ray session, and what must be undone.

    Attributes:
        started: whether this launch started a private cluster that ends with it.
        joined: whether this launch connected to a cluster that goes on without it.
    """

    started: bool = False
    joined: bool = False
    _token_folder: str = ""
    _head: tuple[str, int] | None = None

    def close(self) -> None:
        """Leaves or ends the session if it is ours; the caller's is left alone. May be called twice."""
        if self.broken():
            self.abandon()
        ours = _private_processes() if self.started else []
        if self.started or self.joined:
            ray.shutdown()
        _end(ours)
        self.started = self.joined = False
        if self._token_folder:
            shutil.rmtree(self._token_folder, ignore_errors=True)
            self._token_folder = ""
            if abandoned():
                return  # Ray's threads go on in this process, and end it on the spot if they find no token
            for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):  # the first is set by Ray itself
                os.environ.pop(name, None)
            _forget_token()

    def broken(self) -> bool:
        """Whether the private cluster has lost its head: a SIGTERM to a whole service is sent to Ray's processes too.

        The head may need ten seconds to end then, and answers nobody meanwhile: its port is closed at once.
        """
        if not self.started or self._head is None:
            return False
        try:
            socket.create_connection(self._head, timeout=CONNECT_S).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

    def abandon(self, pids: Iterable[int] = ()) -> None:
        """Leaves Ray without asking it: for a cluster that does not answer, which Ray would wait a minute for.

        The servers of a private cluster end with this process: Ray has the kernel see to that.

        Args:
            pids: processes of the cluster on this machine that must not stay.
        """
        self.started = self.joined = False
        atexit.unregister(ray.shutdown)
        _ABANDONED.set()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def abandoned() -> bool:
    """Whether this process has left a cluster without asking it.

    Its interpreter cannot end in order then: threads of Ray still run. Commands leave by ``os._exit``.
    """
    return _ABANDONED.is_set()


def enter(address: str | None, cpus: float, namespace: str) -> RaySession:
    """Uses the session of this process, else joins ``address`` or ``RAY_ADDRESS``, else starts a private cluster.

    Args:
        cpus: what a private cluster must offer; more than the machine has are only a number. Ray finds GPUs by itself.
    Raises:
        ConfigError: the address is one of Ray Client.
        LaunchError: no cluster answers at the address.
    """
    if ray.is_initialized():
        return RaySession()
    target = cluster_to_join(address)
    session = RaySession(joined=bool(target), started=not target)
    try:
        with _callers_sigterm():
            if target:
                _require_listener(target)
                ray.init(address=target, namespace=namespace, log_to_driver=False, logging_level="ERROR")
            else:
                _private_token(session)
                with _workers_at_nice_0():
                    ray.init(
                        address="local",
                        namespace=namespace,
                        num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level="ERROR",
                        object_store_memory=100 << 20,
                    )
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            session._head = (host.strip("[]"), int(port))
        _no_worker_lines()
    except Exception as error:  # of no class of its own where a busy machine starts Ray too slowly
        with contextlib.suppress(Exception):
            session.close()
        what = f"no Ray cluster at {target!r}" if target else "a private Ray cluster could not be started"
        raise LaunchError(f"{what}: {error}", phase="PLACE") from error
    except BaseException:  # interrupted
        session.close()
        raise
    return session


@contextlib.contextmanager
def _workers_at_nice_0() -> Iterator[None]:
    """Has Ray start its workers at nice 0, unless the user has chosen: every process may become nicer and few less so,
    and ranks choose by their device (:mod:`actors.priority`).

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


def _require_listener(address: str) -> None:
    """Raises ``OSError`` at once where nobody listens at HOST:PORT: ``ray.init`` would try for twenty minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _private_processes() -> list[psutil.Process]:
    """Ray's processes below this one: of the private cluster, as a process is the head of one cluster at most."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() in ("raylet", "gcs_server"):
                found += [child, *child.children(recursive=True)]
    return found


def _end(processes: list[psutil.Process]) -> None:
    """Ends what outlives its cluster: Ray's agents try for a minute to tell a cluster that is gone that it is gone."""
    _, alive = psutil.wait_procs(processes, timeout=AGENT_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()


@contextlib.contextmanager
def _callers_sigterm() -> Iterator[None]:
    """Keeps the process's answer to SIGTERM over ``ray.init``.

    Ray's own kills its processes on the spot, before a launch can end its ranks in order and give its placement
    group back. Where the process has no answer, it becomes a SystemExit, so that ``with`` blocks are left properly.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, _exit if before in (signal.SIG_DFL, None) else before)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _private_token(session: RaySession) -> None:
    """Gives a private cluster a token file of its own, so that none is written to the user's home folder.

    Ray turns token authentication on for new local clusters and would leave ``~/.ray/auth_token`` behind, which
    changes how clusters that are started later behave.
    """
    if any(name in os.environ for name in AUTH_VARIABLES):
        return
    session._token_folder = tempfile.mkdtemp(prefix="raylaunch-auth-")
    token = Path(session._token_folder) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    _forget_token()


def _forget_token() -> None:
    """Makes Ray read the token anew: it keeps the first one for the life of the process."""
    with contextlib.suppress(ImportError, AttributeError):  # older versions have no tokens
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()


def _no_worker_lines() -> None:
    """Keeps Ray from printing workers' and raylets' lines among ours: the report and the errors say what happened."""
    import ray._private.worker

    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = False
