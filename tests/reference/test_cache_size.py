"""How large the KV cache is: the same on every rank, from what all of them have free."""

from __future__ import annotations

import pytest
import torch
from raylaunch_actors.reference.cache_size import (
    CPU_TOKENS,
    GIB,
    GRAPH_BYTES,
    LOGIT_COPIES,
    CacheRequirements,
    FreeMemory,
    agree_on_kv_tokens,
    reserve_bytes,
)
from raylaunch_actors.reference.memory import free_memory, limits_of
from raylaunch_actors.reference.model import ModelFacts

from raylaunch.config import LaunchConfig
from raylaunch.errors import RankFault
from raylaunch.model.shape import ModelShape
from raylaunch.resolved import launch_of

TOKEN = 1 << 10
LARGE = CacheRequirements(TOKEN, reserve=0, max_context=100, max_running=1 << 40)


def free(*gibibytes: float, device: str = "GPU-{}") -> list[FreeMemory]:
    return [FreeMemory(device.format(number), int(one * GIB)) for number, one in enumerate(gibibytes)]


@pytest.mark.parametrize(
    ("offers", "fraction", "required", "tokens"),
    [
        (free(1), 0.5, LARGE, GIB // 2 // TOKEN),
        (free(4, 1, 2), 0.5, LARGE, GIB // 2 // TOKEN),  # the rank with the least memory decides for all
        (free(1, 1, device="GPU-0"), 0.5, LARGE, GIB // 4 // TOKEN),  # two ranks share one GPU
        (free(3, 1, device="GPU-0"), 0.5, LARGE, GIB // 4 // TOKEN),  # the first one looked before the other loaded
        (free(1), 0.5, CacheRequirements(TOKEN, GIB // 4, 100, 1 << 40), GIB // 4 // TOKEN),
        (free(1), 0.5, CacheRequirements(TOKEN, 0, 100, 3), 300),  # three requests can never use more
        (free(1), 0.5, CacheRequirements(1000, 0, 100, 1 << 40), GIB // 2 // 1000 // 64 * 64),
        (free(1), 0.5, CacheRequirements(GIB // 200, 0, 100, 1 << 40), 100),  # just one request
    ],
)
def test_the_least_that_any_rank_can_hold(offers, fraction, required, tokens):
    assert agree_on_kv_tokens(offers, fraction, required) == tokens


def test_a_shared_gpu_decides_although_another_has_less_in_all():
    offers = [FreeMemory("GPU-0", 3 * GIB), FreeMemory("GPU-0", 3 * GIB), FreeMemory("GPU-1", 2 * GIB)]
    assert agree_on_kv_tokens(offers, 0.5, LARGE) == 3 * GIB // 4 // TOKEN


@pytest.mark.parametrize("reserve", [0, 2 * GIB])
def test_no_room_for_one_request_names_the_sizes(reserve):
    required = CacheRequirements(1 << 20, reserve, max_context=4096, max_running=8)
    with pytest.raises(RankFault, match=r"4096, which take 4\.0 GiB: of 2\.0 GiB free .*lower engine\.max_context"):
        agree_on_kv_tokens(free(2), 0.85, required)


def test_the_reserve_grows_with_what_is_captured():
    sizes = {"prefill_shapes": (32, 1024), "decode_shapes": (8,), "max_running": 4, "vocab_size": 50}
    sizes |= {"layers": 10, "kept_width": 100, "working_width": 1000, "itemsize": 2}
    eager = reserve_bytes(graphs=False, **sizes)
    assert eager == 1024 * 1000 * 2 + 4 * 50 * 4 * LOGIT_COPIES
    assert reserve_bytes(graphs=True, **sizes) == eager + 1056 * 10 * 100 * 2 + (11 * 2 + 1) * GRAPH_BYTES


@pytest.fixture
def facts() -> ModelFacts:
    return ModelFacts("qwen3", 36, 32, 8, 128, 4096, 50_000, 151_936, frozenset(), torch.bfloat16, False, 1, False)


def limits(facts, offers, *settings):
    config = LaunchConfig.default(["engine.kv_tokens=auto", *settings])
    shape = ModelShape("qwen3", 40_960, facts.vocab_size, facts.heads, facts.kv_heads)
    return limits_of(launch_of(config, shape), facts, offers)


def test_an_8b_model_on_an_80_gib_gpu(facts):
    alone = limits(facts, free(62))
    assert 300_000 < alone.capacity < 62 * GIB / (36 * 8 * 128 * 4)
    assert (alone.max_context, alone.capacity % 64) == (40_960, 0)
    shared = limits(facts, free(62, 62, device="GPU-0"))
    assert alone.capacity // 3 < shared.capacity < alone.capacity // 2
    assert limits(facts, free(62), "engine.max_context=1000").capacity == 32 * 1000
    with pytest.raises(RankFault, match="40960"):
        limits(facts, free(7))
    assert limits(facts, free(7), "engine.max_context=8192").max_context == 8192


def test_what_is_asked_for_is_taken(facts):
    assert limits(facts, free(1), "engine.kv_tokens=77").capacity == 77
    assert limits(facts, [None, None]).capacity == CPU_TOKENS
    assert free_memory(torch.device("cpu")) is None
