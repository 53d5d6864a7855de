"""Two groups of one rank each with SGLang's scheduler, on two GPUs, or sharing one: in one driver, under Ray Serve."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import urllib.request
from pathlib import Path

import pytest

from raylaunch import Chunk, LaunchConfig, Replicas
from tests.gpu.conftest import gpus
from tests.gpu.shapes import make_model
from tests.gpu.test_sglang import config_for, gone
from tests.head import free_ports

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

PROMPT = [1 + i % 900 for i in range(1025)]


@pytest.fixture
def config(tmp_path: Path) -> LaunchConfig:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed")
    share = 1.0 if gpus() > 1 else 0.5
    more = (
        f"placement.resources_per_rank={{GPU: {share}, CPU: 1}}",
        f"engine.sglang.args.mem_fraction_static={0.6 * share}",
    )
    return config_for(make_model(tmp_path / "m", "qwen3-8b", 2), *more, ranks=1)


def test_two_groups_answer_alike_and_one_takes_over_from_the_other(config: LaunchConfig) -> None:
    with Replicas(config.override("parallel.replicas=2", "recovery.rebuilds=1")) as replicas:
        places = [engine.report.places[0] for engine in replicas.engines]
        print(*(engine.report.table(140) for engine in replicas.engines), sep="\n")
        if gpus() > 1:
            assert len({place.device for place in places}) == 2
        answers = [
            engine.generate([PROMPT], max_new_tokens=8, ignore_eos=True)[0].token_ids for engine in replicas.engines * 2
        ]
        assert answers == answers[:1] * 4
        came, begun = list[Chunk](), threading.Event()

        def ask() -> None:
            for chunk in replicas.stream(PROMPT, max_new_tokens=6000, ignore_eos=True, request_id="long"):
                came.append(chunk)
                begun.set()

        client = threading.Thread(target=ask)
        client.start()
        assert begun.wait(60)
        at = next(number for number, engine in enumerate(replicas.engines) if len(engine.frontend))
        os.kill(places[at].pid, signal.SIGKILL)
        client.join(240)
        assert sum(len(chunk.token_ids) for chunk in came) == 6000
        assert replicas.continued == 1
        assert replicas.engines[at].wait_ready(240)
        assert replicas.engines[at].generate([PROMPT], max_new_tokens=8, ignore_eos=True)[0].token_ids == answers[0]
        pids = [engine.report.places[0].pid for engine in replicas.engines]
    assert gone([*pids, *(place.pid for place in places)])


def test_replicas_of_ray_serve_have_no_gpu_and_their_ranks_do(config: LaunchConfig) -> None:
    pytest.importorskip("ray.serve.scripts", exc_type=ImportError, reason="needs the serve extra")
    from ray import serve

    from raylaunch.serve.deployment import application

    port = free_ports(1)[0]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(application(config, replicas=2), name="two")
        body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 8, "ignore_eos": True, "temperature": 0}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/generate", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        answers = [json.load(urllib.request.urlopen(request, timeout=60))["output_ids"] for _ in range(8)]
        assert answers == answers[:1] * 8
        serve.delete("two")
    finally:
        serve.shutdown()
