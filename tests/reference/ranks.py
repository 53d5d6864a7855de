"""Two ranks in two processes, without Ray: this process carries what they exchange."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

WORLD = 2
Exchange = Callable[[Any], list[Any]]
Job = Callable[[int, Path, Exchange], Any]
"""What a rank does with the model in a folder: (rank, folder, exchange) to a result that can be pickled."""


def rank_main(rank: int, folder: str, names: Sequence[str], job: Job, to_parent: Any, from_parent: Any) -> None:
    """A rank's process: reports ("done" or "failed", what)."""

    def exchange(value: object) -> list[Any]:
        to_parent.put(("exchange", rank, value))
        return list(from_parent.get(timeout=180))

    torch.set_num_threads(1)
    try:
        results = {}
        for name in names:
            torch._dynamo.reset()  # a rank has one model: many of the same code would be too many for Dynamo
            results[name] = job(rank, Path(folder) / name, exchange)
        to_parent.put(("done", rank, results))
    except BaseException:
        to_parent.put(("failed", rank, traceback.format_exc()))


def run_ranks(folder: Path, names: Sequence[str], job: Job) -> list[dict[str, Any]]:
    """Runs both ranks, carries what they exchange, and returns each one's results."""
    spawn = multiprocessing.get_context("spawn")
    to_parent = spawn.Queue()
    to_ranks = [spawn.Queue() for _ in range(WORLD)]
    processes = [
        spawn.Process(target=rank_main, args=(rank, str(folder), names, job, to_parent, to_ranks[rank]))
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    try:
        done: dict[int, Any] = {}
        waiting: dict[int, Any] = {}
        while len(done) < WORLD:
            try:
                kind, rank, value = to_parent.get(timeout=180)
            except queue.Empty:
                raise AssertionError(f"no word from the ranks; {sorted(waiting)} wait for the others") from None
            assert kind != "failed", f"rank {rank}:\n{value}"
            (done if kind == "done" else waiting)[rank] = value
            if len(waiting) == WORLD:
                for own in to_ranks:
                    own.put([waiting[r] for r in range(WORLD)])
                waiting.clear()
        return [done[rank] for rank in range(WORLD)]
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
