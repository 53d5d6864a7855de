"""What a rank does when it is asked to end: it ends, at once, so that the kernel can say by which signal."""

from __future__ import annotations

import signal


def restore_signals() -> None:
    """Takes back what Ray's worker does on a signal; only its main thread may.

    Its handler of SIGTERM (https://github.com/ray-project/ray/pull/40210) ends the threads that answer for the rank,
    and leaves the rank's own thread serving for ten seconds more. Ray itself sends SIGTERM only to workers that it
    wants to end. A Ctrl-C goes to every process of a terminal and is the driver's to answer: Ray holds it back from
    most of its workers, here it is from all.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
