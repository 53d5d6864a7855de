"""Clients of a server, on one of the hosts: no other process reaches it.

``ask URL`` prints what is answered, as JSON, ``long URL`` what is to a long prompt alone, ``stream URL`` that a long
answer has begun and then how it ended, ``failure URL`` what was lost, ``places URL`` where ranks run, ``ports PID
ADDRESS`` where a process listens. ``strangers CANARY URL...`` has peers without keys push pickles at ZeroMQ's ports,
which would make the folder ``CANARY``, and wait for what is pushed there, until standard input ends; then says how many
messages they got.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from typing import Any

SUM, LONG, STREAMED = "12+30=", 1025, 200


def ask(url: str) -> dict[str, Any]:
    import httpx
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    answer = client.completions.create(model=model, prompt=SUM, max_tokens=8, temperature=0)
    streamed = client.completions.create(model=model, prompt=SUM, max_tokens=8, temperature=0, stream=True)
    return {
        "model": model,
        "text": answer.choices[0].text,
        "streamed": "".join(chunk.choices[0].text for chunk in streamed),
        "long": long(url),
        "loads": len(httpx.get(f"{url}/v1/loads", timeout=30).json()["loads"]),
        "metrics": httpx.get(f"{url}/metrics", timeout=30).text,
    }


def long(url: str) -> list[list[int]]:
    """The tokens of two answers to 1025 of one id."""
    import httpx

    body = {"input_ids": [3] * LONG, "sampling_params": {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}}
    return [httpx.post(f"{url}/generate", json=body, timeout=60).json()["output_ids"] for _ in range(2)]


def stream(url: str) -> dict[str, Any]:
    import httpx

    body = {"text": SUM, "sampling_params": {"max_new_tokens": STREAMED, "ignore_eos": True}, "stream": True}
    with httpx.stream("POST", f"{url}/generate", json=body, timeout=120) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        next(lines)
        print("begun", flush=True)
        *_, last, done = lines
    about = json.loads(last)["meta_info"]
    return {"tokens": about["completion_tokens"], "reason": about["finish_reason"]["type"], "done": done}


def failure(url: str) -> dict[str, Any] | None:
    import httpx

    found: dict[str, Any] | None = httpx.get(f"{url}/status.json", timeout=30).json()["failure"]
    return found


def places(url: str) -> list[dict[str, Any]]:
    import httpx

    found = httpx.get(f"{url}/status.json", timeout=30).json()["launch"]["ranks"]
    return sorted(found, key=lambda one: one["rank"])


def ports(pid: int, address: str) -> list[int]:
    """Where a process and its children listen. A host's own processes alone see that."""
    import psutil

    root = psutil.Process(pid)
    found = [each for one in (root, *root.children(recursive=True)) for each in one.net_connections("tcp")]
    return sorted({one.laddr.port for one in found if one.status == psutil.CONN_LISTEN and one.laddr.ip == address})


class Canary:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def strangers(canary: str, urls: list[str]) -> int:
    """How many messages strangers were pushed."""
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pulls, pushes = [], []  # one that is forgotten is closed
    for url in urls:
        for keys in (None, zmq.curve_keypair()):
            for kind in (zmq.PUSH, zmq.PULL):
                one = context.socket(kind)
                if keys is not None:  # of nobody
                    one.curve_serverkey, one.curve_publickey, one.curve_secretkey = keys[0], *zmq.curve_keypair()
                one.connect(url)
                if kind == zmq.PULL:
                    pulls.append(one)
                else:
                    pushes.append(one)
                    one.send(pickle.dumps(Canary(canary)))
    print("there", flush=True)
    sys.stdin.read()
    got = sum(bool(one.poll(0)) for one in pulls)
    context.destroy(linger=0)
    return got


if __name__ == "__main__":
    what, first, *rest = sys.argv[1:]
    if what == "ports":
        print(json.dumps(ports(int(first), rest[0])))
    elif what == "strangers":
        print(json.dumps(strangers(first, rest)))
    else:
        asks = {"ask": ask, "long": long, "stream": stream, "failure": failure, "places": places}
        print(json.dumps(asks[what](first)))
