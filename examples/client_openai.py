"""Talk to ``raylaunch serve`` with the ``openai`` package: a completion, a stream, and several at once.

    raylaunch serve configs/tiny-cpu.yaml &
    python examples/client_openai.py [http://127.0.0.1:30000]

The key is the server's ``--api-key``, here from ``RAYLAUNCH_API_KEY``; a server without one takes any.
"""

from __future__ import annotations

import asyncio
import os
import sys

from openai import AsyncOpenAI, OpenAI

URL = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000") + "/v1"
KEY = os.environ.get("RAYLAUNCH_API_KEY", "none")


async def add_many(model: str) -> list[str]:
    async with AsyncOpenAI(base_url=URL, api_key=KEY) as client:
        asked = [client.completions.create(model=model, prompt=f"{n}+{n}=", max_tokens=8) for n in range(8)]
        return [answer.choices[0].text for answer in await asyncio.gather(*asked)]


def main() -> None:
    client = OpenAI(base_url=URL, api_key=KEY)
    model = client.models.list().data[0].id
    answer = client.completions.create(model=model, prompt="12+30=", max_tokens=8, logprobs=1)
    print(model, repr(answer.choices[0].text), answer.choices[0].finish_reason, answer.usage)
    print("streamed:", end=" ")
    for chunk in client.completions.create(model=model, prompt="99+99=", max_tokens=8, stream=True):
        print(repr(chunk.choices[0].text), end=" ", flush=True)
    print()
    print(asyncio.run(add_many(model)))


if __name__ == "__main__":
    main()
