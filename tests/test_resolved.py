"""What is decided of a launch: once, before anything starts, and what follows is said in copies."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from raylaunch_actors.spec import RankSpec

from raylaunch import model_check
from raylaunch.config import LaunchConfig
from raylaunch.engine import Engine
from raylaunch.engine.supervisor import Supervisor
from raylaunch.errors import ConfigError
from raylaunch.model.shape import ModelShape
from raylaunch.model_check import on_device, resolve
from raylaunch.protocol import LaunchPlan, RoundPlan
from raylaunch.resolved import BundleRequest, launch_of

SHAPE = ModelShape("tiny", 2048, 16, 4, 4)
SHAPES = ["capture.prefill_tokens=[8,32]", "capture.decode_batch_sizes=[2]"]
ROUNDS = (RoundPlan("prefill", (8, 32)), RoundPlan("decode", (2,)))


def config(*settings: str) -> LaunchConfig:
    return LaunchConfig.default([*SHAPES, *settings])


def test_before_anything_starts() -> None:
    one = resolve(config())
    assert (one.program, one.device, one.world_size) == ("reference", "cpu", 2)
    assert one.request == BundleRequest(({"CPU": 1.0}, {"CPU": 1.0}), "STRICT_PACK")
    assert one.plan == LaunchPlan(2, ROUNDS)
    assert (one.shape.vocab_size, one.shape.layers > 0, one.shape.hidden_size > 0) == (16, True, True)
    assert (one.kv_tokens, one.max_context) == (0, one.shape.max_positions)
    with pytest.raises(FrozenInstanceError):
        one.device = "cuda"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        (["engine=sglang"], LaunchPlan(2, rounds_from_ranks=True)),
        (["capture.enabled=false"], LaunchPlan(2)),
        (["communicator=auto"], LaunchPlan(2, ROUNDS, measures=True)),
        (["communicator=auto", "parallel.tensor_parallel_size=1"], LaunchPlan(1, ROUNDS)),
        (["capture.granularity=shape"], LaunchPlan(2, ROUNDS, "shape")),
        (["capture.verify_first=3"], LaunchPlan(2, ROUNDS, verify_first=3)),
        (["capture.verify_first=0", "engine=sglang"], LaunchPlan(2, rounds_from_ranks=True, verify_first=0)),
    ],
)
def test_the_gates(settings: list[str], plan: LaunchPlan) -> None:
    assert launch_of(config(*settings), SHAPE).plan == plan


@pytest.mark.parametrize(
    ("settings", "kv_tokens", "longest"),
    [
        ([], 0, 2048),
        ([], 100, 100),
        (["engine.max_context=512"], 4096, 512),
        (["engine=sglang", "engine.sglang.args.context_length=256", "engine.max_context=512"], 0, 256),
    ],
)
def test_the_longest_context(settings: list[str], kv_tokens: int, longest: int) -> None:
    assert replace(launch_of(config(*settings), SHAPE), kv_tokens=kv_tokens).max_context == longest


@pytest.mark.parametrize(
    ("settings", "device", "key"),
    [
        (["communicator=sgl_kernel"], "cpu", "communicator.kind"),
        (["communicator=symmetric_memory"], "cpu", "communicator.kind"),
        (["engine=sglang", "communicator=jit"], "cpu", "communicator.kind"),
        (["faults=[{action: illegal_access}]"], "cpu", "faults.0.action"),
        (["placement.resources_per_rank={CPU: 1}"], "cuda", "placement.resources_per_rank"),
    ],
)
def test_a_device_that_cannot_do_what_is_asked_is_refused_by_the_driver(
    settings: list[str], device: str, key: str
) -> None:
    """It is known only once Ray is joined; no rank asks again."""
    before = launch_of(config("engine.device=auto", *settings), SHAPE)
    with pytest.raises(ConfigError) as caught:
        on_device(before, device)
    assert caught.value.key == key


def test_the_device_decides_what_is_asked_of_ray() -> None:
    before = launch_of(config("engine.device=auto"), SHAPE)
    after = on_device(before, "cuda")
    assert (before.device, before.request.bundles[0]) == ("auto", {"CPU": 1.0})
    assert (after.device, after.request.bundles[0]) == ("cuda", {"CPU": 1.0, "GPU": 1.0})
    assert replace(after, device="auto", request=before.request) == before


def test_an_engine_hands_down_what_was_decided_and_decides_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decided = resolve(config("recovery.rebuilds=1"))
    monkeypatch.setattr(model_check, "read_model_config", None)  # nobody may read it again
    handed: list[Any] = []
    monkeypatch.setattr(Supervisor, "start", lambda _, resolved: handed.append(resolved))
    engine = Engine(decided)
    assert engine.kv_tokens == 0
    assert engine.start().shape is decided.shape
    engine.shutdown()
    assert handed == [decided]
    assert handed[0].config is decided.config


def test_a_rank_is_told_all_of_it() -> None:
    decided = launch_of(config(), SHAPE)
    spec = RankSpec(**vars(decided), rank=1, local_rank=1, group="g", bind_host="127.0.0.1")
    told = pickle.loads(pickle.dumps(spec))
    assert told == spec
    assert (told.config, told.shape, told.plan, told.world_size) == (config(), SHAPE, decided.plan, 2)
