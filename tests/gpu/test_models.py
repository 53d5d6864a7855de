"""Models in their real shapes, with dummy weights: they launch, agree, and answer the same request twice alike.

``RAYLAUNCH_MODEL_SHAPES`` names a folder with ``qwen3-8b/config.json`` and so on; nothing else of a model is needed.
Two ranks have a GPU each, or share one where there is only one. ``-s`` shows the reports and, for ranks that do not
share a GPU, how fast they are.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from raylaunch import Engine, LaunchConfig
from raylaunch.benchmarks.decode import time_decode
from raylaunch.benchmarks.prefill import time_prefill
from raylaunch.protocol import Gate
from tests.gpu.conftest import gpus
from tests.gpu.shapes import shapes_folder

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

NAMES = ("qwen3-8b", "qwen3-coder-30b-a3b", "qwen2.5-vl-7b")
PREFILL, DECODE = (32, 128, 512, 1032), (2, 8, 32)
SUMS_PER_LAYER = 2  # of attention's output, and of the MLP's or the experts'


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    """A folder with a model's ``config.json``."""
    path = shapes_folder().resolve() / request.param
    if not (path / "config.json").is_file():
        pytest.skip(f"there is no {path}/config.json")
    return path


def config_of(folder: Path, ranks: int, **capture: Any) -> LaunchConfig:
    data: dict[str, Any] = {
        "name": folder.name,
        "model": {"path": str(folder), "load_format": "dummy", "dtype": "bfloat16"},
        "parallel": {"tensor_parallel_size": ranks},
        "engine": {"device": "cuda", "max_context": 8192},
        "capture": {"prefill_tokens": PREFILL, "decode_batch_sizes": DECODE, "granularity": "shape", **capture},
        "communicator": {"max_bytes": 16 << 20},  # no sum is larger, so that each is one input
        "deadlines": {"load": 120, "capture": 120},
    }
    if gpus() < ranks:
        data["placement"] = {"resources_per_rank": {"GPU": gpus() / ranks, "CPU": 1}}
    return LaunchConfig.from_dict(data)


def answer_twice(engine: Engine, length: int) -> tuple[int, ...]:
    """Tokens of a request, which must be the same when it is sent again (F20)."""
    draw_token = random.Random(length)
    prompt = [draw_token.randrange(engine.shape.vocab_size) for _ in range(length)]
    first, second = (engine.generate([prompt], max_new_tokens=6, ignore_eos=True)[0] for _ in range(2))
    assert first.token_ids == second.token_ids
    assert (len(first.token_ids), first.finish_reason) == (6, "length")
    return first.token_ids


def digests(engine: Engine) -> list[dict[str, str]]:
    """For each rank: the digest of every shape's output."""
    (_, arrivals), *_ = engine.report.facts(Gate.VERIFIED)
    return [{name: one.digest for name, one in arrival.facts.shapes.items()} for arrival in arrivals]


def show_speed(engine: Engine) -> None:
    for length in (128, 512, 1024):
        print(f"prefill of {length} tokens: {time_prefill(engine, length, 5).median * 1e3:.1f} ms")
    for requests in (1, 8, 32):
        result = time_decode(engine, requests, 32, 1)
        print(f"decode of {requests}: {result.tokens_per_second:.0f} tokens/s, {result.step * 1e3:.2f} ms a step")


def test_one_rank(folder: Path) -> None:
    with Engine(config_of(folder, 1)) as engine:
        print(f"\n{engine.report.table(150)}")
        answer_twice(engine, 1025)
        answer_twice(engine, 2300)  # in chunks, the later ones after a cached prefix
        assert engine.kv_tokens >= 8192
        assert all(memory[0] >= 0 for memory in engine.report.capture_memory.values())
        show_speed(engine)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_agree(folder: Path, ranks: int) -> None:
    if ranks > max(2, gpus()):
        pytest.skip(f"needs {ranks} GPUs")
    if importlib.util.find_spec("sgl_kernel") is None:
        pytest.skip("sgl_kernel (the package sglang-kernel) is not installed")
    data = json.loads((folder / "config.json").read_text())
    layers = data["num_hidden_layers"]
    with Engine(config_of(folder, ranks)) as engine:
        print(f"\n{engine.report.table(150)}")
        answer_twice(engine, 1025)
        each = digests(engine)
        assert each == each[:1] * ranks
        assert len(each[0]) == len(PREFILL) + len(DECODE)
        registered = [arrival.facts.registered for arrival in engine.report.facts(Gate.REGISTERED)[-1][1]]
        expected = SUMS_PER_LAYER * layers * (len(PREFILL) + len(DECODE))
        assert registered == [expected] * ranks
        if gpus() > 1:
            show_speed(engine)


@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_pieces(folder: Path, ranks: int) -> None:
    if folder.name != NAMES[0]:
        pytest.skip("one model is enough for the compiler")
    shapes = {"prefill_tokens": (128, 1032), "decode_batch_sizes": (2, 8)}
    with Engine(config_of(folder, ranks, compiler="inductor", **shapes)) as e:
        print(f"\n{e.report.table(150)}")
        answer_twice(e, 1025)
        show_speed(e)
