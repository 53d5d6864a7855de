"""``ray job submit`` with the engine ``sglang``: the head runs the drivers and has no CPU for ranks, raylaunch comes
with the job, and SGLang's real schedulers run on another host."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.busy import patient
from tests.head import HELD
from tests.nodes.clients import STREAMED
from tests.nodes.hosts import Hosts, address, can_make_hosts
from tests.sglang.test_real_ranks import can_run

__all__ = ["can_run"]  # the fixture skips where SGLang cannot run
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_make_hosts(), reason="needs the right to make network namespaces"),
]

PORT, STOP_S = 31270, 120
SETTINGS = (
    "engine.kind=sglang",
    "engine.kv_tokens=4096",
    "engine.sglang.args.attention_backend=torch_native",
    "engine.sglang.args.sampling_backend=pytorch",
    "engine.sglang.args.mem_fraction_static=0.1",
    "engine.sglang.args.random_seed=1",
    f"environment.SGLANG_CPU_OMP_THREADS_BIND='0|{min(1, len(os.sched_getaffinity(0)) - 1)}'",  # the shell takes the '
    "deadlines.connect=150",
)
SEEN = (
    "import os, socket; "
    "'SEEN' in os.environ and open(f'{os.environ[\"SEEN\"]}/{socket.gethostname()}-{os.getpid()}', 'w')"
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(workers=1, jobs=True, more={"RAY_worker_niceness": "0"}) as hosts:
        yield hosts


@pytest.fixture(autouse=True)
def nothing_is_left(hosts: Hosts) -> Iterator[None]:
    yield
    assert hosts.ask(HELD).split() == []
    left = [one for one in hosts.processes() if "raylaunch" in " ".join(one.cmdline())]
    assert (left, hosts.ranks(1)) == ([], [])


def ray_job(hosts: Hosts, *arguments: str) -> tuple[int, list[str]]:
    """``ray job ARGUMENTS`` on the head: its exit code, and the lines that it prints."""
    command = [hosts.python, "-m", "ray.scripts.scripts", "job", *arguments]
    process = hosts.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=400)
    print(out.decode()[-6000:])
    return process.returncode, out.decode().splitlines()


def submit(hosts: Hosts, name: str, *command: str, more: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    settings = [part for one in SETTINGS for part in ("--set", one)]
    raylaunch = ("python", "-m", "raylaunch", *command, "configs/tiny-cpu.yaml", *settings)
    return ray_job(hosts, "submit", "--submission-id", name, "--working-dir", ".", *more, "--", *raylaunch)


def state(hosts: Hosts, name: str) -> tuple[str, str]:
    """Ray's word for how a job is, and its driver's exit code."""
    code = f"from ray.job_submission import JobSubmissionClient; one = JobSubmissionClient().get_job_info({name!r})"
    status, code = hosts.ask(f"{code}; print(one.status.value, one.driver_exit_code)").split()
    return status, code


def client(hosts: Hosts, what: str) -> subprocess.Popen[bytes]:
    """A client on the head."""
    command = [hosts.python, "-m", "tests.nodes.clients", what, f"http://{address(0)}:{PORT}"]
    return hosts.popen(command, stdout=subprocess.PIPE)


def answer(process: subprocess.Popen[bytes]) -> Any:
    return json.loads(process.communicate(timeout=180)[0])


def wheel(folder: Path) -> Path:
    """Makes a package of which every Python that has it leaves word. Returns the folder that it lies in."""
    name, about = "seen-1.0-py3-none-any.whl", "seen-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w") as file:
        file.writestr("seen.pth", SEEN)
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: seen\nVersion: 1.0\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", f"seen.pth,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return folder


def test_generate_is_followed_to_its_answer(hosts: Hosts) -> None:
    code, lines = submit(hosts, "generate", "generate", "--prompt", "12+30=")
    assert code == 0
    assert any("VERIFY" in line for line in lines[: lines.index("42")]), "the log is followed while the launch goes on"
    assert state(hosts, "generate") == ("SUCCEEDED", "0")


def test_what_is_wrong_is_the_last_line_and_the_exit_code(hosts: Hosts) -> None:
    wrong = ("--set", "engine.sglang.args.enable_metrix=true")
    code, lines = submit(hosts, "wrong", "generate", "--prompt", "1+1=", *wrong)
    assert (code, state(hosts, "wrong")) == (1, ("FAILED", "2")), "Ray's own command knows one code for every failure"
    assert any(line.startswith("ConfigError ") and "enable_metrix" in line for line in lines)
    fault = ("--set", "faults=[{action: kill, rank: 1, at: load}]")
    code, lines = submit(hosts, "killed", "generate", "--prompt", "1+1=", *fault)
    assert (code, state(hosts, "killed")) == (1, ("FAILED", "1"))
    assert any(line.startswith("LaunchError F06 [LOAD]") for line in lines)


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_server_on_the_head_with_a_package_of_its_own_is_stopped_and_drains(
    installer: str, hosts: Hosts, tmp_path: Path
) -> None:
    """The package is on both hosts; the answer that runs ends first."""
    if importlib.util.find_spec(installer) is None:
        pytest.skip(f"needs {installer}")
    job, options = f"serve-{installer}", {"pip": "pip_install_options", "uv": "uv_pip_install_options"}[installer]
    environment = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), "SEEN": str(tmp_path)},
        installer: {"packages": ["seen"], options: ["--no-index", f"--find-links={wheel(tmp_path)}"]},
    }
    more = ("--runtime-env-json", json.dumps(environment), "--no-wait")
    drain = ("--set", f"serve.drain={STOP_S - 10}")
    code, _ = submit(hosts, job, "serve", "--host", address(0), "--port", str(PORT), *drain, more=more)
    assert code == 0
    end = time.monotonic() + patient(200)
    while f"at http://{address(0)}:{PORT}" not in "\n".join(ray_job(hosts, "logs", job)[1]):
        assert time.monotonic() < end
        assert state(hosts, job)[0] in ("PENDING", "RUNNING")
        time.sleep(2)
    ranks, seen = hosts.ranks(1), {one.name for one in tmp_path.iterdir()}
    assert len(ranks) == 2
    assert {f"{address(1)}-{rank}" for rank in ranks} <= seen
    assert any(one.startswith(address(0)) for one in seen)
    answers = answer(client(hosts, "ask"))
    assert (answers["text"], answers["streamed"]) == ("42", "42")
    streaming = client(hosts, "stream")
    assert streaming.stdout is not None
    assert streaming.stdout.readline() == b"begun\n"
    ray_job(hosts, "stop", job)
    assert answer(streaming) == {"tokens": STREAMED, "reason": "length", "done": "[DONE]"}
    assert state(hosts, job)[0] == "STOPPED"
    assert "SIGTERM: no new requests" in "\n".join(ray_job(hosts, "logs", job)[1])
