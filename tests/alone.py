"""An environment without a cluster to join, for commands that start one of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from tests.head import ROOT


@contextlib.contextmanager
def alone() -> Iterator[dict[str, str]]:
    """A home, which is the folder for Ray's files too, and no cluster to join."""
    folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    try:
        yield {**kept, "HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
