"""What communicators have in common: being inside the capture context, and having nothing to register."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class CaptureContext:
    """The capture context of every communicator. Leaving it never communicates, in any outcome."""

    _capturing = False

    @property
    def capturing(self) -> bool:
        """Whether this rank is inside `capture()`."""
        return self._capturing

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """The capture context; see :meth:`Communicator.capture`."""
        if self._capturing:
            raise RuntimeError("the capture context is not re-entrant")
        self._capturing = True
        try:
            yield
        except BaseException:
            self._drop_pending()  # what failed is never exchanged
            raise
        finally:
            self._capturing = False

    def _drop_pending(self) -> None:
        """Forgets what was recorded and not registered."""


class NothingToRegister(CaptureContext):
    """For communicators whose recorded calls need no address of a peer."""

    registration = None

    def inputs_for(self, nbytes: int) -> int:
        """None."""
        return 0
