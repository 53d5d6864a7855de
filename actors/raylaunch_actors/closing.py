"""Closing several things of which one may fail to close.

``contextlib.ExitStack`` closes them too, and loses every error but the last: which of them, nobody would learn.
"""

from __future__ import annotations

import logging
from typing import Protocol

log = logging.getLogger(__name__)


class Closes(Protocol):
    """What holds something."""

    def close(self) -> None:
        """Gives it back."""


def close_all(*held: Closes | None) -> None:
    """Closes each in turn, also after one has failed to; then raises what the first such one raised. Logs every one."""
    first: Exception | None = None
    for one in held:
        if one is None:
            continue
        try:
            one.close()
        except Exception as error:
            log.warning("%s did not close: %s", type(one).__name__, error)
            first = error if first is None else first
    if first is not None:
        raise first
