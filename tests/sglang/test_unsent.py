"""Messages that wait for a peer: taken back, they reach nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from raylaunch.errors import RequestFailed
from raylaunch.sglang.unsent import Recallable


def test_what_is_taken_back_does_not_reach_who_connects_next(tmp_path: Path) -> None:
    async def ask() -> list[bytes]:
        context = zmq.asyncio.Context()
        sending, taking = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        try:
            sending.bind(f"ipc://{tmp_path / 'socket'}")
            socket = Recallable(sending)
            for message in (b"one", b"two"):
                socket.send(message)
            socket.send_pyobj("three")
            awaited = asyncio.ensure_future(socket.send(b"awaited"))
            socket.take_back(RequestFailed("they are gone"))
            with pytest.raises(RequestFailed, match="they are gone"):
                await awaited
            last = socket.send(b"four")
            taking.connect(f"ipc://{tmp_path / 'socket'}")
            heard = [await asyncio.wait_for(taking.recv(), 5)]
            await last
            return heard + ([await taking.recv()] if await taking.poll(100) else [])
        finally:
            for one in (sending, taking):
                one.close(linger=0)
            context.term()

    assert asyncio.run(ask()) == [b"four"]
