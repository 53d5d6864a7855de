"""Keeps SGLang's detokenizer while groups of ranks come and go: when it dies, another takes its place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from raylaunch.errors import LaunchError
from raylaunch.protocol import Phase

RESTARTS = 3


class Process(Protocol):
    """What :class:`raylaunch.sglang.detokenizer_process.DetokenizerProcess` is to its keeper."""

    @property
    def pid(self) -> int: ...

    def start(self) -> None: ...

    def configure(self, *arguments: Any) -> None: ...

    def wait(self, timeout_s: float) -> bool: ...

    def close(self) -> None: ...


class DetokenizerKeeper:
    """One detokenizer after the other. All methods may be called from any thread.

    A detokenizer keeps nothing but what the running requests have said so far: those end when it dies, and another is
    started. Before the first request was answered its death is a failed launch.

    Args:
        new: makes a process that tells its death, in words, to the function it is given.
        on_death: told in one line that it has died: every request that runs must end.
        probe: has a request answered through one that was started again. Raises :class:`LaunchError`.
        start_s: seconds that one may take to start.

    Attributes:
        trouble: why requests cannot be answered, in one line; "" if they can.
        failure: why they cannot any more; None if they can, or will be.
    """

    def __init__(
        self,
        new: Callable[[Callable[[str], None]], Process],
        on_death: Callable[[str], None],
        probe: Callable[[], None],
        start_s: float,
    ) -> None:
        self._new, self._on_death, self._probe, self._start_s = new, on_death, probe, start_s
        self._process: Process | None = None
        self._arguments: tuple[Any, ...] | None = None
        self._restarts_left = RESTARTS
        self._has_worked = self._closed = False
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self.trouble = ""
        self.failure: LaunchError | None = None

    @property
    def pid(self) -> int:
        """Process id of the present one."""
        return self._present().pid

    def start(self, *, anew: bool = False) -> None:
        """Starts the first one: it imports SGLang, and then waits for :meth:`configure`. Later calls do nothing.

        Args:
            anew: in the place of one that was not configured yet, as it would be started in another way now.
        """
        if anew and self._process is not None and self._arguments is None:
            self._process.close()
            self._process = None
        if self._process is None:
            self._process = self._new(self._died)
            self._process.start()

    def configure(self, *arguments: Any) -> None:
        """Gives it its arguments, and the same to those that follow."""
        self._arguments = arguments
        self._present().configure(*arguments)

    def answer(self, probe: Callable[[], None]) -> None:
        """Waits until it works and ``probe`` has had a request answered. If it dies meanwhile, goes on with the next.

        Raises:
            LaunchError: it does not start, it has failed, or ``probe`` has.
        """
        with self._asking:
            while not self._answered(probe):
                continue

    def close(self) -> None:
        """Ends it and waits until it is gone. May be called at any time, more than once."""
        with self._lock:
            self._closed = True
        if self._process is not None:
            self._process.close()

    # ---- inside

    def _present(self) -> Process:
        assert self._process is not None
        return self._process

    def _answered(self, probe: Callable[[], None]) -> bool:
        process = self._present()
        if not process.wait(self._start_s):
            raise LaunchError(f"SGLang's detokenizer was not there within {self._start_s:g} s", None, Phase.VERIFY.name)
        self._raise_if_failed()
        if process is not self._process:
            return False
        try:
            probe()
        except LaunchError:
            self._raise_if_failed()  # the cause, if it has died
            if process is self._process:
                raise
        with self._lock:
            if process is not self._process:
                return False
            self._has_worked, self.trouble = True, ""
        return True

    def _raise_if_failed(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _died(self, text: str) -> None:
        with self._lock:
            if self._closed:
                return
            self.trouble = trouble = text.splitlines()[0].rstrip(":")
            if not self._has_worked:
                self.failure = LaunchError(text, None, Phase.VERIFY.name)
            elif self._restarts_left == 0:
                often = f"{trouble}, after it was started again {RESTARTS} times"
                self.failure = LaunchError(often, None, Phase.SERVE.name)
            else:
                self._restarts_left -= 1
                self._start_again()
        self._on_death(trouble)
        if self.failure is None:
            threading.Thread(target=self._ask_again, name="raylaunch-detokenizer-again", daemon=True).start()

    def _start_again(self) -> None:
        assert self._arguments is not None
        self._process = self._new(self._died)
        try:
            self._process.start()
        except OSError as error:
            text = f"{self.trouble}, and cannot be started again: {error}"
            self.failure = LaunchError(text, None, Phase.SERVE.name)
            return
        self._process.configure(*self._arguments)

    def _ask_again(self) -> None:
        try:
            self.answer(self._probe)
        except LaunchError as error:
            with self._lock:
                if self.failure is None:
                    self.trouble, self.failure = error.headline(), error
