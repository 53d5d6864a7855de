"""The Ray session a launch runs in: the caller's, a cluster to join, or a private one started for the launch."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import FrameType

import psutil
import ray

from raylaunch import ray_private
from raylaunch.background import outlast
from raylaunch.cluster import private_cluster
from raylaunch.cluster.head_probe import head_of
from raylaunch.cluster.ray_thread import RayThread
from raylaunch.cluster.raylets import raylets_of
from raylaunch.config.address import cluster_to_join
from raylaunch.errors import LaunchError, shut_down
from raylaunch.startup.signals import of_a_command

CONNECT_S = 5.0
LOOK_S = 1.0
RELEASE_PATIENCE_S = 2.0
START_S, START_LOOK_S = 300.0, 0.2  # Ray's own start gives up before
# How long a start that nobody wants any more is waited for: half started, Ray can only be left, with its process.
LEAVE_START_S, LEAVE_START_OF_A_COMMAND_S = 60.0, 3.0
END_S = 60.0
_ABANDONED = threading.Event()
_NONE_IS_LATE = threading.Event()  # unless a start of Ray goes on that nobody waits for
_NONE_IS_LATE.set()
_LOCK = threading.Lock()
_OPEN: list[RaySession] = []

log = logging.getLogger(__name__)


@dataclass(eq=False)
class RaySession:
    """How this process came to its Ray session, and what must be undone.

    Attributes:
        started: whether this launch started a private cluster that ends with it.
        joined: whether this launch connected to a cluster that goes on without it.
    """

    started: bool = False
    joined: bool = False
    _token_folder: str = ""
    _thread: RayThread | None = None
    _answers_sigterm: bool = False
    _head: tuple[str, int] | None = None
    _raylet: tuple[str, int] | None = None  # of this process's own node
    _worker: bytes = b""  # Ray's id of this process, another one after every ray.init
    _refused_since: float | None = None
    _ending: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def close(self) -> None:
        """Leaves or ends the session if it is ours; the caller's is left alone. May be called twice.

        Another engine of this process that uses the session too goes on, and inherits what is to be undone.
        """
        with _LOCK:
            if self in _OPEN:
                _OPEN.remove(self)
            heir = next((one for one in _OPEN if one._worker == self._worker), None)
            if heir is not None:
                if self.started or self.joined:
                    heir.started, heir.joined, heir._token_folder = self.started, self.joined, self._token_folder
                    heir._thread, heir._answers_sigterm = self._thread, self._answers_sigterm
                self._forget()
                return
        with self._ending:  # a second one waits: the process may end once this has returned
            try:
                if (self.started or self.joined) and self.current() and self._refuses():
                    self.abandon()
                elif (thread := self._thread) is not None:
                    try:
                        outlast(thread.over, END_S)
                    finally:
                        if not thread.over(0):
                            self.abandon(process.pid for process in self._processes())
            finally:
                self._give_back()

    def _forget(self) -> None:
        self.started = self.joined = self._answers_sigterm = False
        self._token_folder, self._thread = "", None

    def _give_back(self) -> None:
        """What this process has changed of itself: it needs no answer of Ray's."""
        token_folder = self._token_folder
        _hold_sigterm()
        if self._answers_sigterm and _on_main_thread() and signal.getsignal(signal.SIGTERM) is _exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._forget()
        if token_folder:
            private_cluster.remove_token(token_folder, in_use=abandoned())

    def _start(self, init: Callable[[], object], stopped: Callable[[], bool]) -> None:
        """Has Ray started. Raises what it raises, and :class:`LaunchError` if ``stopped`` said so."""
        self._thread = RayThread(init, functools.partial(self._end, self.started))
        try:
            end = time.monotonic() + START_S
            while not self._thread.up(START_LOOK_S):
                if stopped():
                    raise shut_down("PLACE")
                if time.monotonic() > end:
                    raise LaunchError(f"Ray has not started within {START_S:g} s", phase="PLACE", retryable=True)
        except BaseException:
            with contextlib.suppress(BaseException):  # of a second signal
                outlast(self._thread.up, LEAVE_START_OF_A_COMMAND_S if of_a_command() else LEAVE_START_S)
            if not self._thread.up(0):
                self._leave_start()
            raise
        _hold_sigterm()
        error = self._thread.error
        if error is not None:
            raise error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")

    def _leave_start(self) -> None:
        """Goes on without a start of Ray that has not come to its end.

        A command leaves with its process. Any other process must outlive it: Ray's core ends a process whose head is
        killed before it has connected, a minute later (https://github.com/ray-project/ray/issues/45570). So the start
        may go on, and what it started ends at once after.
        """
        if of_a_command():
            self.abandon(process.pid for process in self._processes())
            return
        late = replace(self)
        self._forget()
        _NONE_IS_LATE.clear()
        threading.Thread(target=_close_late, args=(late,), name="raylaunch-ray-late", daemon=True).start()

    def _answer_sigterm(self) -> None:
        """Where the process has no answer to SIGTERM, it becomes a SystemExit while the session lasts, so that
        ``with`` blocks are left properly; a process that has one keeps it."""
        if _on_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _exit)
            self._answers_sigterm = True

    def _end(self, started: bool) -> None:
        if self.current():
            ours = private_cluster.processes() if started else []
            ray.shutdown()
            private_cluster.end(ours)

    def _processes(self) -> list[psutil.Process]:
        return private_cluster.processes() if self.started else []

    def current(self) -> bool:
        """Whether this process still is in the session. Where it is not, most calls of Ray would start a new one."""
        return not self._worker or (ray.is_initialized() and ray_private.worker_id() == self._worker)

    def lost(self, patience_s: float = RELEASE_PATIENCE_S) -> str:
        """Why the session is no more; "" while it is there or nobody can tell.

        Asks nothing of Ray, which waits for its head for a minute and then ends this process
        (https://github.com/ray-project/ray/issues/45570). A head that ends, such as by a SIGTERM to a whole service,
        closes its port at once, though it may need ten seconds more.

        Args:
            patience_s: how long the head of a cluster that is not ours may refuse connections: it may be restarted.
        """
        if not self.current():
            ray_private.outlast_shutdown()
            return "Ray was shut down in this process, and with it the session that the ranks ran in"
        if not self._refuses():
            self._refused_since = None
            return ""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if not self.started and now - self._refused_since < patience_s:
            return ""
        host, port = self._head or ("", 0)
        return f"Ray's head is gone: nobody listens at {host}:{port} any more"

    def ended(self, patience_s: float = RELEASE_PATIENCE_S) -> str:
        """Why nothing can be launched or kept in the session any more: :meth:`lost`, or what it still answers from is
        not enough. Without the raylet of its node a driver can have no actors: Ray ends those that it has."""
        if why := self.lost(patience_s):
            return why
        if self._raylet is not None and _refused(self._raylet):
            host = self._raylet[0]
            return f"node {host}, which the driver runs on, is lost: its raylet, Ray's process there, has ended"
        return ""

    @property
    def address(self) -> str:
        """HOST:PORT of its head, once it was entered; "" if that is not known."""
        if self._head is None:
            return ""
        host, port = self._head
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _refuses(self) -> bool:
        return self._head is not None and _refused(self._head)

    def _entered(self) -> None:
        """Learns which session it is."""
        self._worker = ray_private.worker_id()
        with contextlib.suppress(Exception):  # not known to a process that reaches its cluster through Ray Client
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            self._head = (host.strip("[]"), int(port))
        with contextlib.suppress(Exception):
            here = ray.get_runtime_context().get_node_id()
            self._raylet = raylets_of(ray.nodes(), {here})[here]
        with _LOCK:
            _OPEN.append(self)

    def abandon(self, pids: Iterable[int] = ()) -> None:
        """Leaves Ray without asking it: for a cluster that does not answer, which Ray would wait a minute for.

        The servers of a private cluster end with this process: Ray has the kernel see to that.

        Args:
            pids: processes of the cluster on this machine that must not stay.
        """
        self.started = self.joined = False
        self._thread = None  # which would ask it, where the session is closed later
        atexit.unregister(ray.shutdown)
        _ABANDONED.set()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _refused(address: tuple[str, int]) -> bool:
    """Whether nobody listens there. One that does not answer may be busy, or out of reach."""
    try:
        socket.create_connection(address, timeout=LOOK_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def abandoned() -> bool:
    """Whether this process has left a cluster without asking it.

    Its interpreter cannot end in order then: threads of Ray still run. Commands leave by ``os._exit``.
    """
    return _ABANDONED.is_set()


def enter(address: str | None, cpus: float, namespace: str, stopped: Callable[[], bool] = lambda: False) -> RaySession:
    """Uses the session of this process, else joins ``address`` or ``RAY_ADDRESS``, else starts a private cluster; once
    more where it was not up in the 30 s that Ray gives its own processes, which a busy machine takes for them.

    Args:
        cpus: what a private cluster must offer; more than the machine has are only a number. Ray finds GPUs by itself.
        stopped: asked all the time whether nobody wants the session any more.
    Raises:
        ConfigError: the address is one of Ray Client.
        LaunchError: no cluster answers at the address, or ``stopped`` said so.
    """
    try:
        return _enter(address, cpus, namespace, stopped)
    except LaunchError as error:
        if cluster_to_join(address) or "timed out" not in str(error.__cause__).lower():
            raise
        log.warning("Ray is started once more: %s", error.__cause__)
    return _enter(address, cpus, namespace, stopped)


def _enter(address: str | None, cpus: float, namespace: str, stopped: Callable[[], bool]) -> RaySession:
    _await_late_start(stopped)
    if ray.is_initialized():
        session = RaySession()
        session._entered()
        return session
    target = cluster_to_join(address)
    session = RaySession(joined=bool(target), started=not target)
    try:
        session._answer_sigterm()
        if of_a_command():
            ray_private.start_no_other_session()
        if target:
            _require_listener(target)
            session._start(functools.partial(_join, head_of(target, stopped), namespace), stopped)
        else:
            session._token_folder = private_cluster.make_token()
            with private_cluster.workers_at_nice_0(), ray_private.workers_without_uv():
                session._start(functools.partial(private_cluster.start, cpus, namespace), stopped)
        session._entered()
        ray_private.print_no_worker_lines()
    except LaunchError:  # stopped
        session.close()
        raise
    except Exception as error:  # of no class of its own where a busy machine starts Ray too slowly
        with contextlib.suppress(Exception):
            session.close()
        private = f"a private Ray cluster could not be started: {error}"
        raise LaunchError(_joining_failed(target, error) if target else private, phase="PLACE") from error
    except BaseException:  # interrupted
        session.close()
        raise
    return session


def _join(head: str, namespace: str) -> None:
    ray.init(address=head, namespace=namespace, log_to_driver=False, logging_level="ERROR")


def _joining_failed(target: str, error: Exception) -> str:
    if isinstance(error, RuntimeError) and "uv run" in str(error):
        remedy = f"; where every node has this environment at the same path, {ray_private.UV}=0 has workers use it"
        return f"the Ray cluster at {target!r} cannot be joined from here: {error}{remedy}"
    return f"no Ray cluster at {target!r}: {error}"


def _require_listener(address: str) -> None:
    """Raises ``OSError`` at once where nobody listens at HOST:PORT: ``ray.init`` (2.60) would try for 20 minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _await_late_start(stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + START_S
    while not _NONE_IS_LATE.wait(START_LOOK_S):
        if stopped():
            raise shut_down("PLACE")
        if time.monotonic() > end:
            text = f"an earlier start of Ray in this process has not come to its end within {START_S:g} s"
            raise LaunchError(text, phase="PLACE", retryable=True)


def _close_late(session: RaySession) -> None:
    """Ends what a start that nobody waited for has brought up; until then nobody in this process may start another."""
    try:
        if session._thread is not None:
            outlast(session._thread.up, START_S)
        session.close()
    finally:
        _NONE_IS_LATE.set()


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _hold_sigterm() -> None:
    """Makes the process's answer to SIGTERM the one that the system knows, in case that Ray (2.60) has taken it."""
    if _on_main_thread() and (answer := signal.getsignal(signal.SIGTERM)) is not None:
        signal.signal(signal.SIGTERM, answer)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
