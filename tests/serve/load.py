"""Clients that stream sums from a server and check every answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx


@dataclass
class Tally:
    """What the clients saw. Times in seconds since the start of the load."""

    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    answers_at: list[float] = field(default_factory=list)


def middle(values: list[float], share: float = 0.5) -> float:
    return sorted(values)[int(len(values) * share)] if values else float("nan")


async def pieces(client: httpx.AsyncClient, prompt: str) -> AsyncIterator[str]:
    """Text of a streamed completion, piece by piece. Raises on anything but a whole answer."""
    body = {"model": "tiny-adder", "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"status {answer.status_code}: {(await answer.aread())[:200]!r}")
        ended = False
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                if "error" in data:
                    raise RuntimeError(str(data["error"]))
                if data["choices"] and data["choices"][0]["text"]:
                    yield data["choices"][0]["text"]
        if not ended:
            raise RuntimeError("the stream broke off")


async def one_client(
    url: str, number: int, began: float, seconds: float, tally: Tally, goes_on: bool, patience_s: float = 60
) -> None:
    draw = random.Random(number)
    async with httpx.AsyncClient(base_url=url, timeout=patience_s) as client:
        while time.monotonic() - began < seconds:
            a, b = draw.randrange(100), draw.randrange(100)
            sent, last, text = time.monotonic(), None, ""
            try:
                async for piece in pieces(client, f"{a}+{b}="):
                    now = time.monotonic()
                    if last is None:
                        tally.first.append(now - sent)
                    else:
                        tally.gaps.append(now - last)
                    last, text = now, text + piece
                    tally.tokens += len(piece)  # the tokenizer works by the character
            except (RuntimeError, httpx.HTTPError):
                if not goes_on:
                    raise
                tally.failed.append(time.monotonic() - began)
                await asyncio.sleep(0.2)
                continue
            tally.answered += 1
            tally.answers_at.append(time.monotonic() - began)
            if text != str(a + b):
                tally.wrong.append(f"{a}+{b}={text}")


async def load(url: str, clients: int, seconds: float, goes_on: bool = False) -> Tally:
    tally, began = Tally(), time.monotonic()
    await asyncio.gather(*(one_client(url, n, began, seconds, tally, goes_on) for n in range(clients)))
    return tally
