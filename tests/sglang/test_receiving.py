"""What happens where an output of the ranks cannot be taken in; with a tokenizer manager that only fails."""

from __future__ import annotations

import asyncio

import pytest
import zmq

from raylaunch.config import LaunchConfig
from raylaunch.sglang.manager import TokenizerSide


class Manager:
    """Fails once, then waits."""

    def __init__(self, error: Exception) -> None:
        self.errors, self.waits = [error], asyncio.Event()

    async def handle_loop(self) -> None:
        for error in self.errors:
            self.errors = []
            raise error
        self.waits.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (zmq.Again(), []),  # the end of a connection between nodes wakes a socket up that has nothing
        (ValueError("no such output"), ["an output could not be delivered: ValueError: no such output"]),
    ],
)
def test_only_an_output_that_was_lost_ends_requests(error, failed, monkeypatch):
    told = []

    async def run() -> None:
        side = TokenizerSide(None, None, LaunchConfig.default().recovery)
        side.manager = Manager(error)
        monkeypatch.setattr(side, "_fail_all", lambda reason, ranks_go_on: told.append(reason))
        receiving = asyncio.create_task(side._receive())
        await asyncio.wait_for(side.manager.waits.wait(), 5)
        receiving.cancel()

    asyncio.run(run())
    assert told == failed
