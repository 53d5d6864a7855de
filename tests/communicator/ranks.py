"""Real processes as ranks, and pipes in place of the driver."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from raylaunch_actors.communicator.gloo import GlooAllReduce
from raylaunch_actors.communicator.process_group import join, open_store
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.communicator.ranks", "torch._dynamo", "raylaunch_actors.graphs.split"])


class Channel:
    """A rank's line to the test."""

    def __init__(self, rank: int, world_size: int, pipe: Connection) -> None:
        self.rank, self.world_size, self._pipe = rank, world_size, pipe

    def exchange(self, value: Any) -> list[Any]:
        """All ranks' values; every rank has to call it."""
        _send(self._pipe, ("exchange", value))
        return pickle.loads(self._pipe.recv_bytes())


def run(world_size: int, target: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """Runs ``target(channel, *args)`` in every rank. Returns results, errors, or exit codes of the dead."""
    pipes, ranks = [], []
    for rank in range(world_size):
        ours, theirs = processes.Pipe()
        process = processes.Process(target=_main, args=(rank, world_size, theirs, target, args), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        ranks.append(process)
    results: dict[int, Any] = {}
    offered: dict[int, Any] = {}
    end = time.monotonic() + timeout
    try:
        while len(results) < world_size:
            ready = wait([p for r, p in enumerate(pipes) if r not in results], max(end - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"ranks {set(range(world_size)) - set(results)} did not end within {timeout} s")
            for pipe in ready:
                rank = pipes.index(pipe)
                try:
                    kind, value = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    ranks[rank].join()
                    results[rank] = ranks[rank].exitcode
                    continue
                (offered if kind == "exchange" else results)[rank] = value
            if len(offered) == world_size:
                for pipe in pipes:
                    _send(pipe, [offered[r] for r in range(world_size)])
                offered.clear()
    finally:
        for process in ranks:
            process.join(0 if len(results) < world_size else 10)
            if process.is_alive():
                process.kill()
    return [results[rank] for rank in range(world_size)]


def check(results: list[Any]) -> list[Any]:
    """The results, if no rank failed."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _send(pipe: Connection, value: Any) -> None:
    pipe.send_bytes(pickle.dumps(value))  # by value: multiprocessing would share a tensor's memory, and lose it


def _main(rank: int, world_size: int, pipe: Connection, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        result = target(Channel(rank, world_size, pipe), *args)
    except Exception as error:
        result = error
    _send(pipe, ("result", result))


def attached(
    channel: Channel, max_bytes: int = 1 << 16, arena_bytes: int = 1 << 20, deadline_s: float = 20
) -> SharedMemoryAllReduce:
    """A shared-memory communicator, connected."""
    communicator = SharedMemoryAllReduce(channel.rank, channel.world_size, max_bytes, arena_bytes, deadline_s)
    communicator.attach(channel.exchange(communicator.offer()))
    return communicator


@contextmanager
def over_gloo(channel: Channel, max_bytes: int = 1 << 16, deadline_s: float = 20):
    """A gloo communicator, connected; closed in the end."""
    server = open_store("127.0.0.1") if channel.rank == 0 else None
    address = channel.exchange(server.address if server else None)[0]
    joined = join(address, channel.rank, channel.world_size, 20, "127.0.0.1")
    try:
        yield GlooAllReduce(joined, max_bytes, deadline_s)
    finally:
        joined.close()
