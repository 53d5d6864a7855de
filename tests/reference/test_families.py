"""Tiny models of many families on one rank and on two: tokens equal transformers' own, or one line says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs import ops
from raylaunch_actors.reference.channel import FollowerSocket, RankZeroSockets
from raylaunch_actors.reference.model import load_model
from raylaunch_actors.reference.scheduler import Scheduler
from raylaunch_actors.reference.worker import FollowerWorker, RankZeroWorker, Worker

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, RankFault
from raylaunch.model_check import check_model
from raylaunch.wire import Sampling
from tests.families import (
    FAMILIES,
    NO_PLAN,
    ONE_RANK,
    OWN_ATTENTION,
    REFUSED,
    UNKNOWN,
    VOCAB,
    auto_class,
    lacking,
    save_family,
)
from tests.reference.engines import CPU, compile_and_capture, make_runner, prompts, submits, tokens
from tests.reference.ranks import WORLD, Exchange, run_ranks

LENGTHS = (5, 40, 70)  # the last one is longer than the largest shape
NEW = 12
SHAPES: dict[str, Any] = {"prefill": (8, 64), "decode": (2, 4), "capacity": 1024}
BATCHES = 5  # of models: two processes and transformers are started once for each
UNDIVIDED = "its layers cannot be divided among ranks; use 1 rank"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of their own: other tests make other models of some of these names."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


def expected(path: Path) -> list[list[int]]:
    """Greedy tokens by transformers, without its cache."""
    kind = auto_class(transformers.AutoConfig.from_pretrained(path))
    model = kind.from_pretrained(path, dtype=torch.float32).eval()
    answers = []
    with torch.no_grad():
        for prompt in prompts(*LENGTHS, vocabulary=VOCAB):
            ids = list(prompt)
            for _ in range(NEW):
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            answers.append(ids[len(prompt) :])
    return answers


def answers_of(worker: Worker) -> list[list[int]]:
    if isinstance(worker, RankZeroWorker):
        for request in submits(prompts(*LENGTHS, vocabulary=VOCAB), Sampling(max_new_tokens=NEW)):
            assert worker.submit(request) == []
    outputs = worker.run_until_idle()
    return [tokens(outputs, number) for number in range(len(LENGTHS))]


def of_two(rank: int, path: Path, exchange: Exchange) -> dict[str, list[list[int]]]:
    """A rank's answers, eagerly and with graphs."""
    communicator = SharedMemoryAllReduce(rank, WORLD, 1 << 20, 32 << 20, 60.0)
    communicator.attach(exchange(communicator.offer()))
    ops.bind_group("tp", communicator)
    sockets, follower = RankZeroSockets("127.0.0.1", WORLD), None
    try:
        runner = make_runner(path, rank, WORLD, communicator, **SHAPES)
        offer = exchange(sockets.open() if rank == 0 else None)[0]
        worker: Worker
        if rank == 0:
            worker = RankZeroWorker(runner, Scheduler(runner.limits), sockets)
        else:
            follower = FollowerSocket(rank, offer)
            follower.open()
            worker = FollowerWorker(runner, follower)
        eager = answers_of(worker)
        compile_and_capture(runner, communicator)
        communicator.register(exchange(communicator.pending()))
        return {"eager": eager, "replayed": answers_of(worker)}
    finally:
        sockets.close()
        if follower is not None:
            follower.close()
        ops.unbind_group("tp")
        communicator.close()


def of_one(path: Path) -> list[list[int]]:
    runner = make_runner(path, **SHAPES)
    return answers_of(RankZeroWorker(runner, Scheduler(runner.limits), None))


@pytest.mark.parametrize("name", ["llava", "internvl_moe"])
def test_text_goes_through_a_model_that_takes_images(name: str, models: Path) -> None:
    """Also where its embeddings have as many rows as elements, which graphs of every shape must not take for one."""
    path = save_family(name, models)
    assert check_model(config_of(path, 1)).hidden_size == SHAPES["prefill"][-1]
    runner = make_runner(path, **SHAPES)
    worker = RankZeroWorker(runner, Scheduler(runner.limits), None)
    eager = answers_of(worker)
    compile_and_capture(runner, SingleRank())
    assert eager == answers_of(worker) == expected(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_one_rank_and_two_answer_as_transformers_does(batch: int, models: Path) -> None:
    names = [name for name in sorted(FAMILIES)[batch::BATCHES] if lacking(name) is None]
    right = {name: expected(save_family(name, models)) for name in names}
    assert {name: of_one(models / name) for name in names} == right
    two = run_ranks(models, names, of_two)[0]
    assert {name: answers["eager"] for name, answers in two.items()} == right
    assert {name: answers["replayed"] for name, answers in two.items()} == right


@pytest.mark.slow
def test_many_families_run_with_each_version_of_transformers() -> None:
    able = [name for name in FAMILIES if lacking(name) is None]
    assert len(able) >= 30
    assert len({FAMILIES[name][0] for name in able}) >= 15


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_not_divided_runs_on_one_rank_and_what_is_lacking_is_refused(models: Path) -> None:
    rows = {**dict.fromkeys(ONE_RANK), **{name: lacks for name in FAMILIES if (lacks := lacking(name))}}
    for name, lacks in rows.items():
        if lacks == UNKNOWN:
            continue  # as below: there is nothing to make it with
        path = save_family(name, models)
        said = refusal(path, WORLD)
        if lacks == OWN_ATTENTION:
            assert OWN_ATTENTION in said
            assert refusal(path, 1) == said
        else:
            assert NO_PLAN in said or (lacks is None and UNDIVIDED in said), said
            assert of_one(path) == expected(path)


@pytest.mark.slow
def test_a_model_that_transformers_does_not_know(models: Path) -> None:
    path, text = models / "unknown", json.loads((save_family("llama", models) / "config.json").read_text())
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**text, "model_type": "llama_of_tomorrow"}))
    (path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=f"llama_of_tomorrow: .* {UNKNOWN}; another version may"):
        check_model(config_of(path))
    with pytest.raises(RankFault, match="does not recognize this architecture") as fault:
        load_model(path, 0, 1, CPU)
    assert "\n" not in str(fault.value)


def refusal(path: Path, ranks: int) -> str:
    """What is said before ``ranks`` start, and by a rank."""
    with pytest.raises(RankFault) as fault:
        load_model(path, 0, ranks, CPU)
    with pytest.raises(ConfigError) as caught:
        check_model(config_of(path, ranks))
    assert str(fault.value) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(fault.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_one_line_before_ranks_start(name: str, models: Path) -> None:
    path, said = save_family(name, models), REFUSED[name][2]
    if name == "gpt2":  # names all sizes otherwise
        text = json.loads((path / "config.json").read_text())
        sizes = {"num_attention_heads": text["n_head"], "max_position_embeddings": text["n_positions"]}
        sizes |= {"num_hidden_layers": text["n_layer"], "hidden_size": text["n_embd"]}
        (path / "config.json").write_text(json.dumps({**text, **sizes}))
    assert refusal(path, WORLD).startswith(said)
    assert refusal(path, 1).startswith(said)


def config_of(path: Path, ranks: int = WORLD) -> LaunchConfig:
    return LaunchConfig.from_dict(
        {
            "model": {"path": str(path)},
            "parallel": {"tensor_parallel_size": ranks},
            "capture": {"prefill_tokens": [8, 64], "decode_batch_sizes": [2, 4]},
        }
    )
