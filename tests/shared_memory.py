"""What processes have left in /dev/shm."""

from __future__ import annotations

import os

LOCKS = "sem.mp-"
"""Locks of multiprocessing, of other tests too: each is there for a moment."""


def in_dev_shm() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if not name.startswith(LOCKS)}
