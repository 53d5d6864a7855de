"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# No time limit for one example: on a shared machine it measures the neighbours.
settings.register_profile("raylaunch", deadline=None)
settings.load_profile("raylaunch")
