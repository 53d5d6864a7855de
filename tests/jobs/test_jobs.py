"""``ray job submit -- python -m raylaunch ...`` against a head without raylaunch: the job brings it along."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.busy import patient
from tests.head import ROOT, Head

pytestmark = pytest.mark.timeout(600)
QUICK = ("--set", "capture.prefill_tokens=[8]", "--set", "capture.decode_batch_sizes=[2]", "--no-report")


@pytest.fixture(scope="module")
def client(head: Head) -> JobSubmissionClient:
    # The token is given by hand: Ray reads RAY_AUTH_MODE once, when it is imported.
    return JobSubmissionClient(head.url, headers={"Authorization": f"Bearer {head.token}"})


@pytest.fixture
def clean(head: Head) -> Iterator[None]:
    """Fails if a job leaves an actor, a placement group or a rank's process in the cluster."""
    yield
    assert head.held() == set()


def submit(head: Head, name: str, *command: str, more: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """Submits from the repository's root, as the README says, and follows. Returns Ray's exit code and the lines."""
    done = head.ray(
        "job",
        "submit",
        "--submission-id",
        name,
        "--working-dir",
        ".",
        *more,
        "--",
        "python",
        "-m",
        "raylaunch",
        *command,
    )
    return done.returncode, done.stdout.splitlines()


def last_line(client: JobSubmissionClient, name: str) -> str:
    return client.get_job_logs(name).rstrip().splitlines()[-1]


def wait_for(client: JobSubmissionClient, name: str, text: str, timeout_s: float = 300) -> str:
    """Waits until a job's log has ``text``; returns the log."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        log = client.get_job_logs(name)
        if text in log:
            return log
        assert not client.get_job_status(name).is_terminal(), log
        time.sleep(0.2)
    pytest.fail(f"{text!r} did not come within {timeout_s:g} s:\n{client.get_job_logs(name)}")


def generate(url: str, **body: Any) -> http.client.HTTPResponse:
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json"})
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=60)
    return answer


def ended(client: JobSubmissionClient, name: str, timeout_s: float = 300) -> JobStatus:
    end = time.monotonic() + timeout_s
    while not (status := client.get_job_status(name)).is_terminal() and time.monotonic() < end:
        time.sleep(0.1)
    return status


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_generate_succeeds_and_its_log_ends_with_the_answer(head: Head, client: JobSubmissionClient) -> None:
    code, lines = submit(head, "generate", "generate", "configs/tiny-cpu.yaml", "--prompt", "12+30=", *QUICK)
    assert code == 0
    followed = lines.index("42")
    assert any("VERIFY" in line for line in lines[:followed]), "the log is followed while the launch goes on"
    assert last_line(client, "generate") == "42"
    info = client.get_job_info("generate")
    assert (info.status, info.driver_exit_code) == (JobStatus.SUCCEEDED, 0)


@pytest.mark.slow
def test_a_wrong_configuration_fails_with_2_and_one_line(head: Head, client: JobSubmissionClient) -> None:
    code, lines = submit(head, "wrong", "generate", "--prompt", "1+1=", "--set", "capture.enabeld=false")
    assert code == 1, "Ray's own command knows one code for every failure"
    info = client.get_job_info("wrong")
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 2)
    last = last_line(client, "wrong")
    assert last.startswith("ConfigError ")
    assert "capture.enabeld = False: unknown key; did you mean 'enabled'?" in last
    assert last in lines
    assert "Traceback" not in info.message


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_a_failed_launch_fails_with_1_and_ends_with_its_headline(head: Head, client: JobSubmissionClient) -> None:
    fault = "faults=[{action: kill, rank: 1, at: capture prefill 8 2}]"
    code, _ = submit(head, "killed", "generate", "--prompt", "1+1=", *QUICK, "--set", fault)
    assert code == 1
    info = client.get_job_info("killed")
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 1)
    assert last_line(client, "killed").startswith("LaunchError F06 [CAPTURE prefill, 8 tokens, iteration 2]")
    assert info.message.rstrip().endswith(last_line(client, "killed")), "the end is what Ray keeps of it"


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_stopped_while_it_launches(head: Head, client: JobSubmissionClient) -> None:
    command = ("generate", "--prompt", "1+1=", *QUICK)
    submit(head, "early", *command, more=("--no-wait",))
    wait_for(client, "early", "CONNECT")
    assert head.ranks()
    began = time.monotonic()
    assert client.stop_job("early")
    assert ended(client, "early") is JobStatus.STOPPED
    assert time.monotonic() - began < patient(6)
    assert last_line(client, "early") == "interrupted; everything that was started has been given back"


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("patience", [None, 40], ids=["ray waits 3 s", "ray waits 40 s"])
def test_stopped_while_it_serves(head: Head, client: JobSubmissionClient, patience: int | None) -> None:
    """The answer that runs is finished, if Ray is told to wait for it; in any case nothing is left."""
    name = f"serve-{patience}"
    variables = {} if patience is None else {"RAY_JOB_STOP_WAIT_TIME_S": str(patience)}
    environment = ("--runtime-env-json", json.dumps({"env_vars": variables}), "--no-wait")
    code, _ = submit(head, name, "serve", "configs/tiny-cpu.yaml", "--port", "0", *QUICK, more=environment)
    assert code == 0
    log = wait_for(client, name, "serving tiny-adder at http://")
    url = log.rsplit("serving tiny-adder at ", 1)[1].split()[0]
    assert generate(url, text="12+30=", sampling_params={"max_new_tokens": 8}).read().count(b'"42"') == 1

    long = {"max_new_tokens": 1500, "ignore_eos": True}
    answer = generate(url, text="1+1=", sampling_params=long, stream=True)
    answer.readline()
    began = time.monotonic()
    assert client.stop_job(name)
    try:
        pieces = answer.read().split(b"\n\n")
    except (OSError, http.client.HTTPException):
        pieces = []
    took = time.monotonic() - began
    with pytest.raises(urllib.error.URLError):
        generate(url, text="1+1=")
    assert ended(client, name) is JobStatus.STOPPED
    if patience is None:
        assert took < patient(5)
    else:
        assert pieces[-2:] == [b"data: [DONE]", b""]
        assert b'"length"' in pieces[-3]
        assert "SIGTERM: no new requests" in client.get_job_logs(name)


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_submitted_and_followed_from_python(head: Head, client: JobSubmissionClient) -> None:
    name = client.submit_job(
        entrypoint="python -m raylaunch generate --prompt 7+8= --prompt 99+99= " + quoted(QUICK),
        runtime_env={"working_dir": str(ROOT), "excludes": ["tests", "docs"]},
        metadata={"why": "test"},
    )

    async def follow() -> list[tuple[float, str]]:
        return [(time.monotonic(), text) async for text in client.tail_job_logs(name)]

    pieces = asyncio.run(follow())
    assert "".join(text for _, text in pieces).endswith("7+8=\t15\n99+99=\t198\n")
    assert pieces[-1][0] - pieces[0][0] > 1, "it came while the job ran, not at its end"
    assert ended(client, name) is JobStatus.SUCCEEDED
    assert client.get_job_info(name).metadata["why"] == "test"


@pytest.mark.slow
def test_what_travels_with_a_job(head: Head, client: JobSubmissionClient) -> None:
    """The model and the configurations do; history, caches and what git ignores do not. raylaunch is not installed."""
    program = (
        "import os, raylaunch, json; "
        "sizes = {os.path.join(d, f): os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk('.') for f in fs}; "
        "print(json.dumps({'home': raylaunch.__file__, 'cwd': os.getcwd(), 'sizes': sizes}))"
    )
    name = client.submit_job(entrypoint=f'python -c "{program}"', runtime_env={"working_dir": str(ROOT)})
    assert ended(client, name) is JobStatus.SUCCEEDED, client.get_job_logs(name)
    found: dict[str, Any] = json.loads(last_line(client, name))
    assert found["home"].startswith(found["cwd"])
    sizes = found["sizes"]
    assert sizes["./configs/models/tiny-adder/model.safetensors"] > 1_000_000
    assert "./configs/tiny-cpu.yaml" in sizes
    ignored = (".git", ".gpu", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__")
    # Ray itself writes __pycache__ into the unpacked folder when the job imports from there.
    inside = [path for path in sizes if set(path.split("/")) & set(ignored[:-1])]
    assert inside == []
    assert sum(sizes.values()) < 10 << 20


def quoted(arguments: tuple[str, ...]) -> str:
    return " ".join(f"'{one}'" if "[" in one else one for one in arguments)
