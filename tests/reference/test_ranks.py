"""Two ranks in two processes, with the shared-memory all-reduce: the same tokens as transformers on one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from raylaunch_actors.communicator.base import pending_inputs, register_inputs
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.graphs import ops
from raylaunch_actors.graphs.context import Mode
from raylaunch_actors.reference.channel import FollowerSocket, RankZeroSockets
from raylaunch_actors.reference.scheduler import Scheduler
from raylaunch_actors.reference.worker import FollowerWorker, RankZeroWorker, Worker

from raylaunch.wire import Sampling, SequencePart, StepPlan, Submit
from tests.models import save
from tests.reference.engines import compile_and_capture, make_runner, prompt_scores, prompts, submits, tokens
from tests.reference.ranks import WORLD, Exchange, run_ranks
from tests.reference.test_parity import reference

LENGTHS = (1025, 128)
SCORED = 1200
NEW = 8  # every step waits for the other rank, which a busy machine may not run


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
        registered = register_inputs(communicator, exchange(pending_inputs(communicator)))
        replayed = answer(worker)
        scored = score(worker)
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
            "scored": scored,
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


def score(worker: Worker) -> list[float]:
    """Log probabilities of a prompt that is computed in two chunks."""
    if isinstance(worker, RankZeroWorker):
        worker.submit(Submit("scored", prompts(SCORED)[0], Sampling(max_new_tokens=0, prompt_logprobs=1)))
    outputs = worker.run_until_idle()
    return [one.logprob for output in outputs for one in output.prompt_logprobs or ()]


@pytest.mark.parametrize(
    "names",
    [("qwen3_untied",), pytest.param(("qwen3_tied", "qwen3_moe", "qwen2_5_vl"), marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_two_ranks_answer_as_generate_does(names: Sequence[str], models: Path) -> None:
    expected = {name: [answer[:NEW] for answer in reference(save(name, models), prompts(*LENGTHS))] for name in names}
    zero, one = run_ranks(models, names, one_model)
    for name in names:
        assert zero[name]["eager"] == expected[name], name
        assert zero[name]["replayed"] == expected[name], name
        wanted = prompt_scores(save(name, models), prompts(SCORED)[0]) if name.startswith("qwen3") else None
        assert wanted is None or zero[name]["scored"] == pytest.approx(wanted, abs=1e-3), name
        assert zero[name]["bitwise"], name
        assert one[name]["bitwise"], name
        assert zero[name]["hidden"] == one[name]["hidden"], name
        assert zero[name]["registered"] == one[name]["registered"] == 8 * 4, name  # sums a pass, shapes
        assert zero[name]["sharded"] == (name != "qwen3_tied"), name
        assert zero[name]["steps"] == one[name]["steps"], name
