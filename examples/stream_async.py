"""Stream several answers at once in one event loop, and leave one of them early."""

from __future__ import annotations

import asyncio

from raylaunch import Engine, LaunchConfig


async def follow(engine: Engine, prompt: str) -> None:
    """Prints an answer as it comes."""
    async for chunk in engine.astream(prompt, max_new_tokens=8):
        print(f"{prompt:<8} {chunk.text!r}{' ' + chunk.finish_reason if chunk.finish_reason else ''}")


async def first_token(engine: Engine, prompt: str) -> str:
    """Leaves after the first chunk: closing the stream aborts the request on the ranks."""
    stream = engine.astream(prompt, max_new_tokens=8)
    try:
        return (await anext(stream)).text
    finally:
        await stream.aclose()


async def main() -> None:
    engine = await asyncio.to_thread(Engine(LaunchConfig.default()).start)  # the loop stays free while it launches
    try:
        await asyncio.gather(*(follow(engine, prompt) for prompt in ("12+30=", "7+8=", "99+99=")))
        print("99+1= starts with", await first_token(engine, "99+1="))
    finally:
        await asyncio.to_thread(engine.shutdown)


if __name__ == "__main__":
    asyncio.run(main())
