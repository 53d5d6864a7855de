"""Two ranks in two processes, with the shared-memory all-reduce: the same tokens as transformers on one."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.graphs import ops
from raylaunch_actors.graphs.context import Mode
from raylaunch_actors.reference.channel import FollowerSocket, RankZeroSockets
from raylaunch_actors.reference.scheduler import Scheduler
from raylaunch_actors.reference.worker import FollowerWorker, RankZeroWorker, Worker

from raylaunch.wire import Sampling, SequencePart, StepPlan
from tests.models import save
from tests.reference.engines import compile_and_capture, make_runner, prompts, submits, tokens
from tests.reference.test_parity import reference

WORLD = 2
LENGTHS = (1025, 128)
NEW = 8  # every step waits for the other rank, which a busy machine may not run
Exchange = Callable[[Any], list[Any]]


def rank_main(rank: int, folder: str, names: Sequence[str], to_parent: Any, from_parent: Any) -> None:
    """A rank's process: reports ("done" or "failed", what)."""

    def exchange(value: object) -> list[Any]:
        to_parent.put(("exchange", rank, value))
        return list(from_parent.get(timeout=60))

    torch.set_num_threads(1)
    try:
        results = {name: one_model(rank, Path(folder) / name, exchange) for name in names}
        to_parent.put(("done", rank, results))
    except BaseException:
        to_parent.put(("failed", rank, traceback.format_exc()))


def one_model(rank: int, path: Path, exchange: Exchange) -> dict[str, Any]:
    communicator = SharedMemoryAllReduce(rank, WORLD, 1 << 20, 64 << 20, 60.0)
    communicator.attach(exchange(communicator.offer()))
    ops.bind_group("tp", communicator)
    sockets = RankZeroSockets("127.0.0.1", WORLD)
    follower = None
    try:
        runner = make_runner(path, rank, WORLD, communicator)
        offer = exchange(sockets.open() if rank == 0 else None)[0]
        worker: Worker
        if rank == 0:
            worker = RankZeroWorker(runner, Scheduler(runner.limits), sockets)
        else:
            follower = FollowerSocket(rank, offer)
            follower.open()
            worker = FollowerWorker(runner, follower)
        eager = answer(worker)
        compile_and_capture(runner, communicator)
        registered = communicator.register(exchange(communicator.pending()))
        replayed = answer(worker)
        step = StepPlan("prefill", 128, list(range(100)), list(range(100)), [SequencePart(0, 100, 7, 0, True)])
        one, two = runner.hidden(step, Mode.EAGER).clone(), runner.hidden(step, Mode.REPLAY).clone()
        # The serve loop: rank 0 is told to stop, the other rank hears of it from rank 0.
        stop = threading.Event()
        if rank == 0:
            threading.Timer(0.3, stop.set).start()
        worker.serve(stop)
        return {
            "eager": eager,
            "replayed": replayed,
            "bitwise": torch.equal(one, two),
            "hidden": one.sum().item(),
            "registered": registered,
            "sharded": runner.loaded.facts.lm_head_sharded,
            "steps": worker.counters.steps,
        }
    finally:
        sockets.close()
        if follower is not None:
            follower.close()
        ops.unbind_group("tp")
        communicator.close()


def answer(worker: Worker) -> list[list[int]]:
    if isinstance(worker, RankZeroWorker):
        for request in submits(prompts(*LENGTHS), Sampling(max_new_tokens=NEW)):
            assert worker.submit(request) == []
    outputs = worker.run_until_idle()
    return [tokens(outputs, number) for number in range(len(LENGTHS))]


def run_ranks(folder: Path, names: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
    """Runs both ranks, carries what they exchange, and returns each one's results."""
    spawn = multiprocessing.get_context("spawn")
    to_parent = spawn.Queue()
    to_ranks = [spawn.Queue() for _ in range(WORLD)]
    processes = [
        spawn.Process(target=rank_main, args=(rank, str(folder), names, to_parent, to_ranks[rank]))
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    try:
        done: dict[int, Any] = {}
        waiting: dict[int, Any] = {}
        while len(done) < WORLD:
            try:
                kind, rank, value = to_parent.get(timeout=90)
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


@pytest.mark.parametrize(
    "names",
    [("qwen3_untied",), pytest.param(("qwen3_tied", "qwen3_moe", "qwen2_5_vl"), marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_two_ranks_answer_as_generate_does(names: Sequence[str], models: Path) -> None:
    expected = {name: [answer[:NEW] for answer in reference(save(name, models), prompts(*LENGTHS))] for name in names}
    zero, one = run_ranks(models, names)
    for name in names:
        assert zero[name]["eager"] == expected[name], name
        assert zero[name]["replayed"] == expected[name], name
        assert zero[name]["bitwise"], name
        assert one[name]["bitwise"], name
        assert zero[name]["hidden"] == one[name]["hidden"], name
        assert zero[name]["registered"] == one[name]["registered"] == 8 * 4, name  # sums a pass, shapes
        assert zero[name]["sharded"] == (name != "qwen3_tied"), name
        assert zero[name]["steps"] == one[name]["steps"], name
