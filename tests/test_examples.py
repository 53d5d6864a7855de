"""Every example runs and says what it should. Each starts a cluster of its own, or is given one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.alone import alone
from tests.head import ROOT, Head, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with alone() as variables:
        yield variables


def run(environment: dict[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("name", "needs", "expected"),
    [
        ("generate.py", "ray", ["12+30=42", "7+8=15", "99+99=198"]),
        ("stream_async.py", "ray", ["99+1= starts with 1"]),
        ("inside_ray_task.py", "ray", ["[31, 42, 99]"]),
        ("inside_placement_group.py", "ray", ["['42', '15', '198']", "the group is still there: True"]),
        ("batch_dataset.py", "pyarrow", ["400 of 400 are right"]),
        ("serve/run.py", "grpc_reflection", ["'text': '42'"]),
    ],
)
def test_example(environment: dict[str, str], name: str, needs: str, expected: list[str]) -> None:
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"needs {needs}")
    arguments = [str(free_ports(1)[0])] if name == "serve/run.py" else []
    said = run(environment, sys.executable, EXAMPLES / name, *arguments)
    assert [text for text in expected if text not in said] == [], said


def test_clients_of_raylaunch_serve(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("openai")
    environment["RAYLAUNCH_API_KEY"] = "sesame"
    log = tmp_path / "log"
    command = [sys.executable, "-m", "raylaunch", "serve", "configs/tiny-cpu.yaml", "--port", "0", "--no-report"]
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)
    try:
        while "serving tiny-adder at " not in (text := log.read_text()):
            assert server.poll() is None, text
            time.sleep(0.2)
        url = text.rsplit("serving tiny-adder at ", 1)[1].split()[0]
        said = run(environment, sys.executable, EXAMPLES / "client_openai.py", url)
        assert "tiny-adder '42' stop" in said
        assert "['0', '2', '4', '6', '8', '10', '12', '14']" in said
        said = run(environment, "sh", EXAMPLES / "client_curl.sh", url)
        assert [
            text for text in ('"text":"42"', '"text":"198"', "data: [DONE]", "tokens_total") if text not in said
        ] == []
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_submitting_a_job() -> None:
    head = Head().start()
    try:
        done = head.run(str(head.python), str(EXAMPLES / "submit_job.py"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("12+30=\t42\n99+99=\t198\nSUCCEEDED, exit code 0\n")
        wrong = "python -m raylaunch generate nowhere.yaml --prompt 1+1="
        done = head.run(str(head.python), str(EXAMPLES / "submit_job.py"), wrong)
        assert done.returncode == 2
        assert done.stdout.splitlines()[-2].startswith("ConfigError MODEL = 'nowhere.yaml': no such file")
        assert head.held() == set()
    finally:
        head.stop()
