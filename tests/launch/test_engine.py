"""The Python API on a real group of two ranks."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from raylaunch_actors.priority import BEHIND

from raylaunch import Engine, LaunchConfig, LaunchError, RequestError, RequestFailed
from raylaunch.group.late_verify import QUIET_S
from raylaunch.group.launch import launch
from raylaunch.model_check import resolve
from raylaunch.protocol import Gate, Phase
from raylaunch.report import LaunchReport
from tests.busy import patient
from tests.launch.test_equality import held_out


@pytest.fixture(scope="module")
def engine(session: None) -> Iterator[Engine]:
    shapes = ["capture.prefill_tokens=[8,48,88,128]", "capture.verify_first=0"]
    with Engine(LaunchConfig.default([*shapes, "recovery.rebuilds=1"])) as engine:
        yield engine


def test_one_prompt_and_many(engine: Engine) -> None:
    assert engine.generate("12+30=", max_new_tokens=8).text == "42"
    sums = [(a, b) for a in range(3, 99, 13) for b in range(5, 99, 17)]
    answers = engine.generate([f"{a}+{b}=" for a, b in sums], max_new_tokens=8)
    assert [answer.text for answer in answers] == [str(a + b) for a, b in sums]
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_the_held_out_sums(engine: Engine) -> None:
    rows = held_out()
    answers = engine.generate([row["prompt"] for row in rows], max_new_tokens=8)
    assert [answer.text for answer in answers] == [row["answer"] for row in rows]


def test_token_ids_in_and_out(engine: Engine) -> None:
    ids = engine.tokenizer("7+8=")["input_ids"]
    (answer,) = engine.generate([ids], max_new_tokens=8)
    assert engine.tokenizer.decode(answer.token_ids) == "15"
    assert answer.prompt_tokens == len(ids)


def test_streaming_gives_the_same_text(engine: Engine) -> None:
    chunks = list(engine.stream("99+99=", max_new_tokens=8))
    assert "".join(chunk.text for chunk in chunks) == "198"
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "stop"


def test_length_stop_string_and_stop_token(engine: Engine) -> None:
    assert engine.generate("99+99=", max_new_tokens=2).finish_reason == "length"
    stopped = engine.generate("99+99=", max_new_tokens=8, stop="8")
    assert (stopped.text, stopped.finish_reason) == ("19", "stop")
    nine = engine.tokenizer("9")["input_ids"][0]
    by_token = engine.generate("99+99=", max_new_tokens=8, stop_token_ids=(nine,))
    assert (by_token.text, by_token.finish_reason) == ("1", "stop")
    assert len(engine.generate("1+1=", max_new_tokens=20, ignore_eos=True).token_ids) == 20


def test_seeded_sampling_repeats_whatever_runs_beside_it(engine: Engine) -> None:
    def draw() -> tuple[int, ...]:
        return engine.generate("1+", temperature=5.0, seed=7, max_new_tokens=30, ignore_eos=True).token_ids

    alone = draw()
    others = threading.Thread(target=lambda: engine.generate(["9+9="] * 20, max_new_tokens=40, ignore_eos=True))
    others.start()
    assert draw() == alone
    others.join()


def test_logprobs(engine: Engine) -> None:
    answer = engine.generate("12+30=", max_new_tokens=8, logprobs=3)
    assert answer.logprobs is not None
    assert [one.token_id for one in answer.logprobs] == list(answer.token_ids)
    for one in answer.logprobs:
        assert one.top[0][0] == one.token_id
        assert one.top[0][1] == pytest.approx(one.logprob)
        assert one.top[0][1] >= one.top[1][1] >= one.top[2][1]
        assert one.logprob > -0.1  # the model is sure
    assert engine.generate("12+30=", max_new_tokens=8).logprobs is None


def test_async_and_many_at_once(engine: Engine) -> None:
    async def ask() -> list[str]:
        answers = await asyncio.gather(*(engine.agenerate(f"{n}+{n}=", max_new_tokens=8) for n in range(50)))
        return [answer.text for answer in answers]

    assert asyncio.run(ask()) == [str(2 * n) for n in range(50)]


def test_abort_ends_a_request(engine: Engine) -> None:
    stream = engine.stream("1+1=", max_new_tokens=1500, ignore_eos=True, request_id="long")
    next(stream)
    assert engine.abort("long")
    assert list(stream)[-1].finish_reason == "abort"
    assert not engine.abort("long")


def test_an_id_may_be_used_again_as_soon_as_its_caller_has_the_end(engine: Engine) -> None:
    """Rank 0 may still run a request that a stop string has ended here: its tokens are not the next one's."""
    for _ in range(30):
        (*_, end) = engine.stream("12+30=", max_new_tokens=200, ignore_eos=True, stop="4", request_id="again")
        assert end.finish_reason == "stop"
        assert "".join(chunk.text for chunk in engine.stream("7+8=", max_new_tokens=8, request_id="again")) == "15"


def test_leaving_a_stream_frees_its_rows(engine: Engine) -> None:
    for chunk in engine.stream("1+1=", max_new_tokens=1500, ignore_eos=True):
        assert chunk.request_id
        break
    end = time.monotonic() + 5
    while engine.health().ranks[0].counters["running"] and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.health().ranks[0].counters["running"] == 0


@pytest.mark.parametrize(
    ("prompt", "changes", "text"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        ([3, 99999], {}, "token 1 of the prompt is 99999"),
        ([True], {}, "integers from 0 to"),
        ("1+1=", {"max_new_tokens": 5000}, "together at most 2048"),
        ("1+1=", {"max_new_tokens": -1}, "max_new_tokens = -1"),
        ("1+1=", {"temperature": -1}, "temperature = -1"),
        ("1+1=", {"temprature": 1}, "did you mean 'temperature'"),
        ("1+1=", {"top_p": 0}, "top_p = 0"),
    ],
)
def test_wrong_requests_are_refused(engine: Engine, prompt: object, changes: dict[str, object], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        engine.generate(prompt if isinstance(prompt, str) else [prompt], **changes)  # type: ignore[arg-type, list-item]
    assert engine.generate("2+2=", max_new_tokens=8).text == "4"


def test_report_and_health(engine: Engine) -> None:
    table = engine.report.table()
    for phase in ("PLACE", "CONNECT", "LOAD", "WARMUP", "CAPTURE", "REGISTER", "VERIFY"):
        assert phase in table
    assert "shared-memory" in table
    assert "28 all-reduce inputs per rank, none pending" in table
    health = engine.health()
    assert health.ready
    assert [rank.answers for rank in health.ranks] == [True, True]


def test_shapes_that_are_left_are_verified_between_requests(engine: Engine) -> None:
    end = time.monotonic() + patient(10)
    while engine.report.unverified and time.monotonic() < end:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        time.sleep(2 * QUIET_S)
    assert [step.shape for step, _ in engine.report.facts(Gate.LATER)] == [88, 48]
    assert re.search(
        r"7 shapes, \d+ graphs: replay equals eager \(bitwise\), ranks agree$", engine.report.describe(Phase.VERIFY)
    )
    assert engine.report.unverified == ()


def test_ranks_on_cpus_and_no_other_workers_of_a_private_cluster_are_behind(engine: Engine) -> None:
    workers = psutil.Process().children(recursive=True)
    agent = next(one.pid for one in workers if "NodeAgent" in " ".join(one.cmdline()))
    nice = [psutil.Process(pid).nice() for pid in (agent, *(place.pid for place in engine.report.places))]
    own = os.nice(0)
    assert nice == [own, max(own, BEHIND), max(own, BEHIND)]


def test_f07_running_requests_go_on_in_the_next_group(engine: Engine) -> None:
    """The last test of this engine."""
    stream = engine.stream("1+1=", max_new_tokens=600, ignore_eos=True)
    tokens = len(next(stream).token_ids)
    os.kill(engine.report.places[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    while engine.health(ask_ranks=False).ready:
        assert time.monotonic() - killed < patient(3)
        time.sleep(0.01)
    assert tokens + sum(len(chunk.token_ids) for chunk in stream) == 600
    assert engine.restarts == 1
    assert engine.generate("12+30=", max_new_tokens=8).text == "42"
    assert engine.health().restarts_left == 0


@pytest.mark.slow
def test_works_inside_a_ray_actor(session: None) -> None:
    @ray.remote(num_cpus=0)
    class Caller:
        def ask(self) -> str:
            config = LaunchConfig.default(["capture.enabled=false", "placement.resources_per_rank={CPU: 1}"])
            with Engine(config) as engine:
                return engine.generate("20+22=", max_new_tokens=8).text

    caller = Caller.remote()
    assert ray.get(caller.ask.remote(), timeout=60) == "42"
    ray.kill(caller)


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_f07_running_requests_of_a_group_that_may_not_be_rebuilt(tiny: LaunchConfig) -> None:
    """Unready at once, and an error for each."""
    with Engine(tiny.replace({"recovery.rebuilds": 0})) as engine:
        stream = engine.stream("1+1=", max_new_tokens=1500, ignore_eos=True)
        next(stream)
        os.kill(engine.report.places[1].pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(RequestFailed, match="F07"):
            for _ in stream:
                pass
        assert time.monotonic() - killed < patient(3)
        assert not engine.health(ask_ranks=False).ready
        end = time.monotonic() + 10
        while engine.health().condition != "failed" and time.monotonic() < end:
            time.sleep(0.05)
        assert "rank 1 died" in engine.health().reason
        with pytest.raises(RequestFailed, match="not ready"):
            engine.generate("1+1=")


@pytest.mark.usefixtures("clean")
def test_a_launch_that_is_wanted_no_more_gives_back_what_it_has_made(tiny: LaunchConfig) -> None:
    """Stopped while its actors start: long before they are there."""
    asked: list[float] = []

    def stopped() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 2

    with pytest.raises(LaunchError, match="shut down") as caught:
        launch(resolve(tiny), LaunchReport("x"), stopped=stopped)
    assert "2 actors, 1 placement group released" in caught.value.teardown


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_a_rebuild_ends_when_the_engine_is_shut_down(tiny: LaunchConfig) -> None:
    engine = Engine(tiny.replace({"recovery.rebuilds": 1})).start()
    os.kill(engine.report.places[1].pid, signal.SIGKILL)
    first, end = engine.report, time.monotonic() + 60
    while (engine.report is first or len(engine.report.steps) < 2) and time.monotonic() < end:
        time.sleep(0.01)
    began = time.monotonic()
    engine.shutdown()
    assert time.monotonic() - began < patient(5)
    assert engine.health().condition == "stopped"


ONE_RANK = ["parallel.tensor_parallel_size=1", "capture.enabled=false"]
SHARED = f"""
from raylaunch import Engine, LaunchConfig, RequestFailed

config = LaunchConfig.default({ONE_RANK!r})
if __name__ == "__main__":
    first, second = Engine(config).start(), Engine(config).start()
    first.shutdown()
    print(second.generate("12+30=", max_new_tokens=8).text)

    import ray

    ray.shutdown()
    try:
        second.generate("1+1=", max_new_tokens=1900, ignore_eos=True)
    except RequestFailed as error:
        print(error)
    print(second.health().ready)
    second.shutdown()
    print(ray.is_initialized())
"""


@pytest.mark.slow
def test_a_private_cluster_is_kept_for_the_next_engine_and_missed_by_it(tmp_path: Path) -> None:
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    answer, error, ready, ray_runs = ran.stdout.splitlines()
    assert (answer, ready, ray_runs) == ("42", "False", "False")
    assert "Ray was shut down in this process" in error
