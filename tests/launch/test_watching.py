"""A server as an operator watches it: its spans, metrics and log lines, over the loss of a rank."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runner import command, finish
from tests.tracing.collector import attributes, collecting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
QUICK = ("--set", "capture.prefill_tokens=[8]", "--set", "capture.decode_batch_sizes=[2]", "--log-format", "json")
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def folder() -> Iterator[str]:
    """For Ray's files, whose sockets need a short path."""
    made = tempfile.mkdtemp(prefix="rl-", dir="/tmp")
    yield made
    shutil.rmtree(made, ignore_errors=True)


def asked(url: str, body: dict[str, Any] | None = None, **headers: str) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def lines(text: str) -> list[dict[str, Any]]:
    """All of them: one that is no JSON is an error here."""
    return [json.loads(line) for line in text.splitlines()]


def test_a_server_over_the_loss_of_a_rank(folder: str) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "RAY_TMPDIR": folder}
        server = command("serve", "tiny-cpu", "--port", "0", *QUICK, **environment)
        assert server.stderr is not None
        try:
            seen = []
            for line in server.stderr:
                seen.append(line)
                if " at http" in line:
                    break
            assert " at http" in seen[-1], "".join(seen)
            url = json.loads(seen[-1])["message"].rsplit(" at ", 1)[1]
            answer = asked(f"{url}/generate", {"text": "12+30="}, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
            assert json.loads(answer)["text"] == "42"
            victim = json.loads(asked(f"{url}/status.json"))["launch"]["ranks"][1]["pid"]
            os.kill(victim, signal.SIGKILL)
            end = time.monotonic() + 120
            while "raylaunch_restarts_total 1.0" not in (page := asked(f"{url}/metrics")) or "ready 0.0" in page:
                assert time.monotonic() < end, page
                time.sleep(0.5)
            assert json.loads(asked(f"{url}/generate", {"text": "7+8="}))["text"] == "15"
        finally:
            server.terminate()
            ended = finish(server)
    assert ended.code == 0, ended.stderr
    assert 'raylaunch_losses_total{fault="F07",rank="1"} 1.0' in page

    said = lines("".join(seen) + ended.stderr)
    (report,) = [one for one in said if "report" in one]
    assert report["report"]["phases"]["CAPTURE"]["seconds"] > 0
    (lost,) = [one for one in said if "launched again" in one["message"]]
    assert (lost["level"], lost["fault"], lost["rank"], lost["phase"]) == ("warning", "F07", 1, "SERVE")
    assert lost["launch"] == report["launch"]
    (again,) = [one for one in said if one["message"].startswith("ready again")]
    assert again["launch"] != lost["launch"]
    assert "no new requests" in said[-1]["message"] or "SIGTERM" in "".join(one["message"] for one in said)

    first, second = [one for one in collector.spans if one.name == "launch"]
    about = attributes(first)
    assert about["raylaunch.launch"] == lost["launch"]
    assert (about["raylaunch.engine"], about["raylaunch.ranks"], about["raylaunch.rebuilds"]) == ("reference", 2, 0)
    assert (attributes(second)["raylaunch.launch"], attributes(second)["raylaunch.rebuilds"]) == (again["launch"], 1)
    phases = {one.name: one for one in collector.inside(first)}
    assert set(phases) == {"PLACE", "CONNECT", "LOAD", "WARMUP", "CAPTURE", "REGISTER", "VERIFY"}
    assert [one.name for one in collector.inside(phases["LOAD"])] == ["LOAD rank 0", "LOAD rank 1"]
    first_request, _ = [one for one in collector.spans if one.name == "POST /generate"]
    assert first_request.trace_id.hex() == TRACE
    assert attributes(first_request)["gen_ai.usage.output_tokens"] >= 2


def test_a_launch_that_fails(folder: str) -> None:
    """The command's last line and the rank's own log are objects with the fault's number."""
    fault = "faults=[{action: raise, rank: 1, at: capture prefill 8 1}]"
    ran = finish(command("generate", "--prompt", "1+1=", *QUICK, "--set", fault, RAY_TMPDIR=folder))
    assert ran.code == 1
    last = lines(ran.stderr)[-1]
    assert (last["level"], last["exit_code"], last["fault"], last["rank"], last["phase"]) == (
        "error", 1, "F05", 1, "CAPTURE",
    )  # fmt: skip
    assert last["message"].startswith("LaunchError F05 [CAPTURE prefill, 8 tokens")
    files = re.search(r"the ranks' logs: (.*)", last["details"])
    assert files is not None
    logs = [Path(one).read_text() for one in files[1].split(", ")]
    (record,) = [record for text in logs for line in text.splitlines() if "this rank ends" in line
                 for record in [json.loads(line)] if record["rank"] == 1]  # fmt: skip
    assert record["launch"].startswith("tiny")
    assert "Traceback" in record["traceback"]
