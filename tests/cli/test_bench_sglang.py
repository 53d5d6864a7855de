"""``bench sglang``'s client against a server of a few lines, and the table it prints."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from raylaunch_actors.sglang_engine.environment import caches

from raylaunch import model_check
from raylaunch.benchmarks import sglang, timed_server
from raylaunch.benchmarks.processors import confine, deals, family
from raylaunch.benchmarks.sglang import (
    JOINED,
    READY,
    commands,
    groups,
    require_comparable,
    segments_removed,
    show,
    standard_error,
)
from raylaunch.benchmarks.timed_server import DECODE_PROMPT, Served, Work, measure, plan
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.model.shape import ModelShape
from raylaunch.resolved import launch_of
from raylaunch.sglang.arguments import IMPLEMENTATION, LONGER_CONTEXT
from raylaunch.terminal.machine import describe_machine
from raylaunch.values.api_key import VARIABLE
from tests.cli.runner import run

SERVER = """
import http.server, json, os, sys, time
print(os.getpgrp(), flush=True)
early = [503] * 3 if "early" in sys.argv else [401] if "RAYLAUNCH_API_KEY" in os.environ or "locked" in sys.argv else []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if early:
            self.send_response(early.pop(0) if early[0] == 503 else early[0])
            self.end_headers()
            return
        if f"dies-at-{len(asked['input_ids'])}" in sys.argv:
            print("CUDA error", flush=True)
            os._exit(7)
        time.sleep(len(asked["input_ids"]) / (3_333 if "slow" in sys.argv else 10_000))
        body = json.dumps({"meta_info": {"completion_tokens": asked["sampling_params"]["max_new_tokens"]}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
THREADS = """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("up", flush=True)
time.sleep(60)
"""
WORK = Work(lengths=(100, 400), repeat=3, concurrent=2, new_tokens=5, vocabulary=1000)


def server(*options):
    return lambda port: [sys.executable, "-c", SERVER, str(port), *options]


def test_servers_are_started_measured_in_turn_and_ended(tmp_path):
    measured = measure({"one": server(), "slow": server("slow")}, tmp_path, WORK)
    for factor, name in ((1, "one"), (3, "slow")):
        assert 0 < measured[name].ready_s < 30
        assert [min(ms) >= length / 10 * factor for length, ms in measured[name].prefill_ms.items()] == [True, True]
        assert {len(each) for each in (*measured[name].prefill_ms.values(), measured[name].decode_tokens_per_s)} == {2}
        assert min(measured[name].decode_tokens_per_s) > 0
        group = int((tmp_path / f"{name}.log").read_text().split()[0])
        assert group != os.getpgrp()
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)


def test_a_server_that_ends_is_an_error_with_its_last_words(tmp_path):
    with pytest.raises(LaunchError, match="ended with code 3") as caught:
        measure({"one": lambda port: [sys.executable, "-c", "print('no memory'); exit(3)"]}, tmp_path, WORK)
    assert "no memory" in str(caught.value)


@pytest.mark.parametrize(("tokens", "servers"), [(100, 1), (400, 2), (DECODE_PROMPT, 1)])
def test_a_server_that_dies_while_it_is_measured_is_an_error_with_its_last_words(tokens, servers, tmp_path):
    up = {"dying": server(f"dies-at-{tokens}"), "other": server()}
    with pytest.raises(LaunchError, match="the server dying ended with code 7; ") as caught:
        measure(dict(list(up.items())[:servers]), tmp_path, WORK)
    assert str(caught.value).endswith("CUDA error")


def test_a_server_is_waited_for_while_it_says_that_it_is_not_ready(tmp_path):
    assert measure({"one": server("early")}, tmp_path, WORK)["one"].decode_tokens_per_s


def test_a_server_that_refuses_a_request_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(timed_server, "ENDED_S", 0.1)
    with pytest.raises(LaunchError, match="the server one still runs; /generate answered 401"):
        measure({"one": server("locked")}, tmp_path, WORK)


def test_servers_that_are_measured_ask_for_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "a key")
    assert measure({"one": server()}, tmp_path, WORK)["one"].decode_tokens_per_s


@pytest.mark.parametrize(
    ("together", "order"), [(False, [["a"], ["b"], ["a"], ["b"]]), (True, [["a", "b"], ["b", "a"]])]
)
def test_the_order_of_starts(together, order):
    assert [list(group) for group in groups({"a": server(), "b": server()}, 2, together)] == order


def test_a_ratio_above_one_is_for_raylaunch():
    results = {
        "sglang": [Served(50.0, {256: [9.0, 11.0]}, [3000.0]), Served(60.0, {256: [12.0, 12.0]}, [3000.0])],
        "raylaunch": [Served(44.0, {256: [10.0, 10.0]}, [3300.0])],
    }
    lines = show(describe_machine(), results)
    shown = [line.split()[-3:] for line in lines[-3:]]
    assert shown == [["1.250", "-", "0.833"], ["1.100", "-", "0.833"], ["1.100", "-", "1.000"]]


@pytest.mark.parametrize(
    ("theirs", "ours", "error"),
    [
        ([[10.0, 30.0, 20.0, 20.0]], [[30.0, 10.0, 20.0, 20.0]], 0.0),  # it was the processors
        ([[10.0, 10.0], [10.0, 10.0]], [[11.0, 11.0], [9.0, 9.0]], 0.1),
    ],
)
def test_the_error_of_a_ratio(theirs, ours, error):
    assert standard_error(theirs, ours) == pytest.approx(error)


@pytest.mark.parametrize(
    ("count", "servers", "planned"), [(15, 1, (1, 15)), (1, 2, (2, 3)), (12, 2, (4, 3)), (13, 2, (6, 3))]
)
def test_how_often_processors_are_dealt_out(count, servers, planned):
    assert plan(count, servers) == planned


def test_both_launchers_get_the_same_implementation_variables_and_caches(tmp_path):
    config = LaunchConfig.default(
        ["engine.kind=sglang", "communicator.kind=sgl_kernel", "environment={NCCL_DEBUG: WARN}"]
    )
    made = commands(config, tmp_path)
    told = json.loads(Path(made["sglang"](1)[-2]).read_text())
    assert told["variables"] == {**caches(None), **LONGER_CONTEXT, IMPLEMENTATION: "0", "NCCL_DEBUG": "WARN"}
    written = LaunchConfig.from_yaml(made["raylaunch"](1)[4])
    assert (written.communicator.kind, written.environment) == ("sgl_kernel", {"NCCL_DEBUG": "WARN"})
    joins = commands(config, tmp_path, "10.0.0.4:6379")
    assert joins[JOINED](1) == [*joins["raylaunch"](1), "--set", "placement.address=10.0.0.4:6379"]


def test_a_cluster_that_was_started_before_has_a_row_of_its_own():
    results = {name: [Served(s, {}, [1.0])] for name, s in (("sglang", 30.0), ("raylaunch", 24.0), (JOINED, 20.0))}
    assert [line.split()[-5:-2] for line in show(describe_machine(), results)[-3::2]] == [
        ["30.00", "24.00", "1.250"],
        ["30.00", "20.00", "1.500"],
    ]


@pytest.fixture
def fitting(monkeypatch):
    """A model of 512 positions, which is decided without SGLang."""
    shape = ModelShape("none", max_positions=512, vocab_size=1000, heads=1, kv_heads=1)
    monkeypatch.setattr(model_check, "resolve", lambda config: launch_of(config, shape))


def test_what_was_measured_is_told_though_a_later_start_fails(fitting, tmp_path, monkeypatch):
    failing = lambda port: [sys.executable, "-c", "print('no memory'); exit(3)"]  # noqa: E731
    monkeypatch.setattr(sglang, "commands", lambda *_: {"sglang": server(), "raylaunch": failing})
    file = tmp_path / "figures.json"
    options = ("--prompts", "100", "--repeat", "1", "--concurrent", "1", "--new-tokens", "5", "--no-warm")
    ran = run("bench", "sglang", "--engine", "sglang", *options, "--json", str(file))
    assert ran.code == 1
    assert "ended with code 3" in ran.stderr
    shown = {line[:26].strip(): line[26:].split()[1:] for line in ran.stdout.splitlines()[3:]}
    assert shown == {name: ["-", "-", "-", "1.000"] for name in (READY, "prefill 100 tokens, ms", "decode, tokens/s")}
    assert [len(starts) for name, starts in json.loads(file.read_text()).items() if name != "machine"] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompts", "256,512"), "--prompts = 512: a prompt and one token may have 512 together"),
        (("--prompts", "511", "--new-tokens", "481"), "--new-tokens = 481: with 32 tokens of a prompt"),
    ],
)
def test_what_is_longer_than_the_context_is_refused_before_a_launch(fitting, options, message):
    ran = run("bench", "sglang", "--engine", "sglang", *options)
    assert ran.code == 2
    assert message in ran.stderr


def test_what_a_launcher_leaves_in_shared_memory_is_removed(tmp_path):
    def segment(name):
        (tmp_path / name).write_bytes(bytes(4096))
        return tmp_path / name

    earlier = segment("sglang_loads_1.shm")
    with segments_removed(tmp_path):
        left, used, other = segment("sgl_shm_mq_7_a"), segment("sglang_loads_2.shm"), segment("psm_3")
        with used.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 4096)
    assert [one.exists() for one in (earlier, left, used, other)] == [True, False, True, True]
    mapped.close()


@pytest.mark.skipif(os.getuid() != 0, reason="files are given to another user")
def test_what_others_have_in_shared_memory_is_left_alone(tmp_path):
    with segments_removed(tmp_path):
        others = tmp_path / "sgl_shm_mq_7_a"
        others.touch()
        os.chown(others, 12345, -1)
    assert others.exists()


def test_what_cannot_be_removed_from_shared_memory_hides_no_result(tmp_path):
    with segments_removed(tmp_path):
        (tmp_path / "sgl_shm_mq_7_a").mkdir()  # which nobody can unlink


def test_every_hand_gets_every_part_of_a_deal():
    dealing = deals(range(7), 3, random.Random(0))
    for _ in range(5):
        turns = [next(dealing) for _ in range(3)]
        assert all(len(part) == 2 for turn in turns for part in turn)
        assert len(set().union(*turns[0])) == 6
        assert all(sorted(map(sorted, hand)) == sorted(map(sorted, turns[0])) for hand in zip(*turns, strict=True))
    with pytest.raises(ValueError, match="2 processors"):
        next(deals(range(2), 3, random.Random(0)))


def test_a_whole_family_is_confined():
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {THREADS!r}])"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        pids = family(process.pid)
        assert len(pids) == 2
        one = {max(os.sched_getaffinity(0))}
        confine([*pids, ended_pid()], one)
        threads = [int(thread.name) for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) >= 3
        assert all(os.sched_getaffinity(thread) == one for thread in threads)
    finally:
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def ended_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_together_needs_a_ray_that_raylaunch_starts(monkeypatch):
    config = LaunchConfig.default(["engine.kind=sglang"])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    require_comparable(config, together=False)
    with pytest.raises(ConfigError, match="--joined"):
        require_comparable(config, together=False, joined=True)
    with pytest.raises(ConfigError, match="--together"):
        require_comparable(config, together=True)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    with pytest.raises(ConfigError, match=r"--together .* this process may use one"):
        require_comparable(config, together=True)
    with pytest.raises(ConfigError, match=r"engine\.kind = 'reference': must be sglang.* give a CONFIG with it"):
        require_comparable(LaunchConfig.default(), together=False)
