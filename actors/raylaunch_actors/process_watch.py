"""Watches processes from outside: which are dying, gone or stopped, and by which signal, as the kernel knows it.

A killed process needs seconds to die while its GPU's driver gives memory back; meanwhile it looks like one that hangs,
and its peers fail first. The kernel marks it at once, and keeps in ``/proc`` how it ends until its parent, the raylet,
has taken note; newer kernels (6.15) tell whoever holds a descriptor of the process afterwards, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

LOOK_S = 0.02  # a look takes 0.03 ms
NEWS_S = 0.2
EXITING = 0x4  # PF_EXITING of the kernel's task flags
GET_INFO, INFO_EXIT, INFO_BYTES = 0xC040FF0B, 0x8, 64  # PIDFD_GET_INFO, whose answer has the exit status last
STATE, FLAGS, STATUS = 0, 6, 49  # fields of /proc/PID/stat after the name


@dataclass(frozen=True)
class Sighting:
    """A process that was seen to end, or to be stopped.

    Attributes:
        ended: it is dying or gone; else it is stopped now.
        status: how it ends, as ``waitpid`` reports it; of a stopped one the number of the signal, 0 where a debugger
            holds it. None if that could not be seen.
        when: seconds since the epoch at which that was seen first.
        for_s: seconds since then, by a clock that nobody sets.
    """

    ended: bool
    status: int | None
    when: float
    for_s: float = field(default=0.0, compare=False)


class Followed:
    """One process that is watched. Raises ``ProcessLookupError`` if there is none."""

    def __init__(self, pid: int) -> None:
        self.seen: Sighting | None = None
        self.since = 0.0  # monotonic
        self.pidfd = -1
        with contextlib.suppress(AttributeError, NotImplementedError):  # not on every system
            try:
                self.pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                raise
            except OSError:  # an old kernel, or a sandbox: /proc says nearly as much
                pass
        try:
            self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        except OSError as error:
            self.close()
            if isinstance(error, FileNotFoundError):
                raise ProcessLookupError(pid) from error
            raise

    def poll(self, now: float) -> None:
        """Takes note of what the kernel says. What has ended stays so; what was stopped may go on."""
        if self._stat < 0:
            return
        try:
            fields = os.pread(self._stat, 4096, 0).rsplit(b")", 1)[1].split()
        except OSError:  # its parent has taken note of its end
            self._ended(self._last_word(), now)
            self.close()
            return
        state, status = fields[STATE], int(fields[STATUS])
        if int(fields[FLAGS]) & EXITING or state in b"ZX":
            self._ended(status, now)
            if status:  # else it may follow in a moment: the kernel marks a process before it says why
                self.close()
        elif state in b"Tt":
            if self.seen is None:
                self.since = time.monotonic()
            first = now if self.seen is None else self.seen.when
            self.seen = Sighting(False, status if state == b"T" else 0, first)
        else:
            self.seen = None

    def close(self) -> None:
        for name in ("pidfd", "_stat"):
            if (descriptor := getattr(self, name, -1)) >= 0:
                setattr(self, name, -1)
                os.close(descriptor)

    def _ended(self, status: int | None, now: float) -> None:
        before = self.seen if self.seen is not None and self.seen.ended else None
        if before is not None:  # dying, as far as known with status 0
            now, status = before.when, before.status if status is None else status
        self.seen = Sighting(True, status, now)

    def _last_word(self) -> int | None:
        """How it has ended, from a kernel that tells others than its parent."""
        answer = bytearray(INFO_BYTES)
        struct.pack_into("Q", answer, 0, INFO_EXIT)
        try:
            fcntl.ioctl(self.pidfd, GET_INFO, answer)
        except (OSError, ValueError):  # the second where there is no descriptor
            return None
        told, status = struct.unpack_from("Q", answer)[0], struct.unpack_from("i", answer, INFO_BYTES - 4)[0]
        return int(status) if told & INFO_EXIT else None


class ProcessWatch:
    """Watches processes of this host on a thread of its own, for as long as this process lives."""

    def __init__(self) -> None:
        self._followed: dict[int, Followed] = {}
        self._lost: dict[int, Sighting] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended = 0

    def follow(self, pids: Iterable[int]) -> None:
        """Watches these processes, too. One that is gone already is seen to have ended, nobody knows how."""
        if not os.path.exists("/proc/self/stat"):
            return  # a system whose processes cannot be watched: nothing is seen of any
        with self._changed:
            for pid in set(pids) - set(self._followed):
                try:
                    self._followed[pid] = Followed(pid)
                except ProcessLookupError:
                    self._lost[pid] = Sighting(True, None, time.time())
                except PermissionError:  # /proc shows it to its own user alone, who is another
                    continue
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="process-watch", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def seen(self) -> dict[int, Sighting]:
        """The processes that have ended or are stopped now."""
        with self._changed:
            self._poll()
            return self._seen()

    def news(self, patience_s: float) -> dict[int, Sighting]:
        """Waits until a process has ended, or has been stopped for ``patience_s``; returns all that was seen."""
        with self._changed:
            while not any(one.ended or one.for_s >= patience_s for one in self._seen().values()):
                self._changed.wait(NEWS_S)
            return self._seen()

    def _seen(self) -> dict[int, Sighting]:
        now, found = time.monotonic(), {pid: (one, one.seen) for pid, one in self._followed.items()}
        seen = {pid: replace(what, for_s=now - one.since) for pid, (one, what) in found.items() if what is not None}
        return self._lost | seen

    def _poll(self) -> None:
        now = time.time()  # the same for all: of what one look finds, nothing is known to have been first
        for one in self._followed.values():
            one.poll(now)

    def _watch(self) -> None:
        while True:
            with self._changed:
                self._poll()
                if self._news_of_ends():
                    self._changed.notify_all()
                poll = select.poll()
                for one in self._followed.values():
                    if one.pidfd >= 0 and not (one.seen is not None and one.seen.ended):
                        poll.register(one.pidfd, select.POLLIN)
            poll.poll(LOOK_S * 1000)  # ends sooner when a process does

    def _news_of_ends(self) -> bool:
        before, self._ended = self._ended, sum(one.ended for one in self._seen().values())
        return self._ended != before
