"""The loop that several frontends share."""

from __future__ import annotations

import asyncio

from raylaunch.sglang.loop import Loop, LoopThread


def test_it_runs_from_the_first_start_to_the_last_close():
    loop = LoopThread(asyncio.new_event_loop, "test")
    loop.start()
    loop.start()
    assert loop.submit(asyncio.sleep(0, "here")).result(10) == "here"
    loop.close()
    waits = loop.submit(asyncio.sleep(60))
    loop.close()
    assert waits.cancelled()
    assert loop.loop.is_closed()
    loop.soon(print, "nobody runs this")


def test_one_of_others_is_left_to_them():
    async def scene():
        loop = Loop(asyncio.get_running_loop())
        loop.start()
        assert await asyncio.to_thread(lambda: loop.submit(asyncio.sleep(0, "here")).result(10)) == "here"
        loop.close()
        assert not loop.loop.is_closed()

    asyncio.run(scene())
