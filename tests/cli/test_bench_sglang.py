"""``bench sglang``'s client against a server of a few lines, and the table it prints."""

from __future__ import annotations

import os
import sys

import pytest

from raylaunch.commands.bench.sglang import groups, show
from raylaunch.commands.bench.timed_server import Served, Work, measure
from raylaunch.commands.machine import describe_machine
from raylaunch.errors import LaunchError

SERVER = """
import http.server, json, os, sys, time
print(os.getpgrp(), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(len(asked["input_ids"]) / (3_333 if "slow" in sys.argv else 10_000))
        body = json.dumps({"meta_info": {"completion_tokens": asked["sampling_params"]["max_new_tokens"]}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
WORK = Work(lengths=(100, 400), repeat=3, concurrent=2, new_tokens=5, vocabulary=1000)


def server(*options):
    return lambda port: [sys.executable, "-c", SERVER, str(port), *options]


def test_servers_are_started_measured_in_turn_and_ended(tmp_path):
    measured = measure({"one": server(), "slow": server("slow")}, tmp_path, WORK)
    for factor, name in ((1, "one"), (3, "slow")):
        assert 0 < measured[name].ready_s < 30
        assert measured[name].prefill_ms[100] >= 10 * factor
        assert measured[name].prefill_ms[400] >= 40 * factor
        assert measured[name].decode_tokens_per_s > 0
        group = int((tmp_path / f"{name}.log").read_text().split()[0])
        assert group != os.getpgrp()
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)


def test_a_server_that_ends_is_an_error_with_its_last_words(tmp_path):
    with pytest.raises(LaunchError, match="ended with code 3") as caught:
        measure({"one": lambda port: [sys.executable, "-c", "print('no memory'); exit(3)"]}, tmp_path, WORK)
    assert "no memory" in str(caught.value)


@pytest.mark.parametrize(
    ("together", "order"), [(False, [["a"], ["b"], ["a"], ["b"]]), (True, [["a", "b"], ["b", "a"]])]
)
def test_the_order_of_starts(together, order):
    assert [list(group) for group in groups({"a": server(), "b": server()}, 2, together)] == order


def test_a_ratio_above_one_is_for_raylaunch():
    figures = {
        "sglang": [Served(50.0, {256: 10.0}, 3000.0), Served(60.0, {256: 12.0}, 3000.0)],
        "raylaunch": [Served(44.0, {256: 10.0}, 3300.0)],
    }
    lines = show(describe_machine(), figures)
    assert [line.split()[-2:] for line in lines[-3:]] == [["1.250", "0.833"], ["1.100", "0.833"], ["1.100", "1.000"]]
