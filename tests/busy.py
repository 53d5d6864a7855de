"""How long what takes its time may take on a machine that others use, too."""

from __future__ import annotations

import os


def patient(seconds: float) -> float:
    """``seconds`` where a processor is free, and more where several processes wait for each."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
