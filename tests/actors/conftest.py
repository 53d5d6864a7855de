"""What tests in this folder must leave alone: the process that runs them all."""

from __future__ import annotations

import pytest
from raylaunch_actors import priority


@pytest.fixture(autouse=True)
def _stays_as_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that is made in this process would have all later tests, and what they launch, run behind all others."""
    monkeypatch.setattr(priority, "set_niceness", lambda device: None)
