"""Ray Serve: replicas that own a rank group; deployed, asked, hurt and deleted as an operator would."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("ray.serve.scripts", exc_type=ImportError, reason="needs the serve extra")

from raylaunch import ConfigError, LaunchConfig, LaunchError
from raylaunch.config import shipped_configs
from raylaunch.engine.health import RankHealth
from raylaunch.serve.deployment import ARGUMENTS, AUTOSCALING, BelowPrefix, Replica, app, application
from tests.busy import patient
from tests.head import ROOT, Head, free_ports
from tests.serve.fake_engine import FakeEngine

EXAMPLE = ROOT / "examples" / "serve" / "tiny.yaml"
NONE = EXAMPLE.with_name("none.yaml")
SERVES_OWN = {"actor-ServeController", "actor-ProxyActor"}


class Served:
    """A head with Ray Serve on a port of its own."""

    def __init__(self) -> None:
        # raylaunch as it is where it is installed on the nodes: `serve deploy` brings no folder along.
        self.head = Head(cpus=10, more={"PYTHONPATH": str(ROOT)})
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"

    def serve(self, *arguments: str) -> None:
        done = self.head.run(str(self.head.python), "-m", "ray.serve.scripts", *arguments)
        assert done.returncode == 0, done.stderr

    def deploy(self, **applications: dict[str, Any]) -> None:
        """The example with its port changed, and other applications beside it. Deploying replaces what was there."""
        file = yaml.safe_load(EXAMPLE.read_text())
        file["http_options"]["port"] = self.port
        for name, args in applications.items():
            made = {"name": name, "route_prefix": f"/{name}", "import_path": file["applications"][0]["import_path"]}
            file["applications"].append({**made, "args": args})
        path = self.head.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(file))
        self.serve("deploy", str(path))

    def status(self, name: str) -> dict[str, Any]:
        """Of an application, from the dashboard; {} if there is none."""
        request = urllib.request.Request(
            f"{self.head.url}/api/serve/applications/", headers={"Authorization": f"Bearer {self.head.token}"}
        )
        found: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=10))["applications"].get(name, {})
        return found

    def wait(self, what: Callable[[], bool], timeout_s: float = 120) -> float:
        """Seconds until ``what()``."""
        began = time.monotonic()
        while not what():
            assert time.monotonic() - began < timeout_s, json.dumps(self.status("tiny"), indent=1)[:3000]
            time.sleep(0.1)
        return time.monotonic() - began

    def running(self) -> bool:
        status = self.status("tiny")
        states = [one["state"] for one in status.get("deployments", {}).get("tiny", {}).get("replicas", [])]
        return status.get("status") == "RUNNING" and states == ["RUNNING"] * 2

    def ask(self, path: str = "/generate", **body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        return urllib.request.urlopen(request, timeout=60)

    @contextlib.contextmanager
    def streaming(self, tokens: int, each_s: float = 0.0) -> Iterator[list[bytes]]:
        """The lines of an answer that has begun. They grow meanwhile; after the block it has ended, cut or not.

        Args:
            each_s: seconds that the client takes for a line: so many of them wait in the server.
        """
        lines: list[bytes] = []
        started = threading.Event()

        def follow() -> None:
            sampling = {"max_new_tokens": tokens, "ignore_eos": True}
            answer = self.ask(text="1+1=", sampling_params=sampling, stream=True)
            with answer, contextlib.suppress(http.client.HTTPException, ConnectionError):
                for line in answer:
                    lines.append(line)
                    started.set()
                    time.sleep(each_s)

        client = threading.Thread(target=follow)
        client.start()
        assert started.wait(30)
        yield lines
        client.join(60)
        assert not client.is_alive()

    def add(self, left: int, right: int) -> str:
        answer = json.load(self.ask(text=f"{left}+{right}=", sampling_params={"max_new_tokens": 8}))
        return str(answer["text"])

    def ranks(self) -> list[psutil.Process]:
        return self.head.processes("ray::Rank")

    def held(self) -> set[str]:
        return self.head.held() - SERVES_OWN


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    served.head.start()
    try:
        served.deploy()
        print(f"two replicas running after {served.wait(served.running):.1f} s")
        yield served
    finally:
        served.head.stop()
    assert served.head.processes() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestTwoReplicas:
    """In order: what is deployed is asked, hurt, and deleted."""

    def test_it_answers_and_owns_its_groups(self, served: Served) -> None:
        assert [served.add(n, 30) for n in range(10)] == [str(n + 30) for n in range(10)]
        assert len(served.ranks()) == 4
        held = served.held()
        groups = [name for name in held if name.startswith("placement-group-")]
        assert len(groups) == 2
        assert all("SERVE_REPLICA" in name for name in groups), "the ranks sit in the replicas' own groups"

    def test_openai_answers_through_serve(self, served: Served) -> None:
        answer = json.load(served.ask("/v1/completions", model="tiny-adder", prompt="12+30=", max_tokens=8))
        assert answer["choices"][0]["text"] == "42"
        with pytest.raises(urllib.error.HTTPError) as caught:
            served.ask("/v1/completions", model="tiny-adder", prompt="12+30=", max_tokens="many")
        assert caught.value.code == 400
        assert "max_tokens" in json.load(caught.value)["error"]["message"]

    def test_it_streams(self, served: Served) -> None:
        long = {"max_new_tokens": 400, "ignore_eos": True}
        began, times = time.monotonic(), []
        with served.ask(text="1+1=", sampling_params=long, stream=True) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    times.append(time.monotonic() - began)
                    last = line
        assert last.strip() == b"data: [DONE]"
        assert len(times) > 50
        assert times[0] < times[-1] / 2, "it came piece by piece"

    def test_a_replica_that_loses_a_rank_is_replaced(self, served: Served) -> None:
        """The other replica goes on; the broken one says why, ends, and a new one takes its place."""
        before = {one.pid for one in served.ranks()}
        served.ranks()[0].kill()
        killed, wrong, last_wrong, answers = time.monotonic(), set(), 0.0, 0
        while len({one.pid for one in served.ranks()} - before) < 2 or not served.running():
            assert time.monotonic() - killed < patient(120)
            try:
                assert served.add(12, 30) == "42"
                answers += 1
            except urllib.error.HTTPError as error:
                wrong.add((error.code, json.load(error)["error"]["message"].split("rank")[0]))
                last_wrong = time.monotonic() - killed
            time.sleep(0.05)
        print(f"replaced after {time.monotonic() - killed:.1f} s, last error at {last_wrong:.1f} s, {answers} answers")
        assert {code for code, _ in wrong} <= {503}
        assert answers > 10
        assert last_wrong < patient(10)
        assert len(served.ranks()) == 4
        assert [served.add(n, 30) for n in range(10)] == [str(n + 30) for n in range(10)]

    def test_a_constructor_that_fails_shows_the_headline(self, served: Served) -> None:
        quick = ["capture.prefill_tokens=[8]", "capture.decode_batch_sizes=[2]", "name=broken"]
        fault = "faults=[{action: raise, rank: 1, at: capture prefill 8 1}]"
        served.deploy(broken={"set": [*quick, fault]})
        served.wait(lambda: served.status("broken").get("status") == "DEPLOY_FAILED")
        message = served.status("broken")["deployments"]["broken"]["message"]
        assert "LaunchError F05 [CAPTURE prefill, 8 tokens, iteration 1]" in message
        assert served.add(1, 1) == "2", "the other application is not touched"

    def test_a_wrong_configuration_is_told_by_its_key(self, served: Served) -> None:
        served.deploy(wrong={"set": ["capture.enabeld=false"]})
        served.wait(lambda: served.status("wrong").get("status") == "DEPLOY_FAILED")
        assert "capture.enabeld = False: unknown key; did you mean 'enabled'?" in served.status("wrong")["message"]

    def test_taking_the_application_away_lets_a_stream_end(self, served: Served) -> None:
        with served.streaming(tokens=2000, each_s=0.003) as lines, ThreadPoolExecutor(1) as operator:
            command = operator.submit(served.serve, "deploy", str(NONE))
            served.wait(lambda: served.status("tiny").get("status") == "DELETING")
            seen = len(lines)
            command.result(60)
        print(f"Serve began to stop it after {seen} of {len(lines)} lines")
        assert lines[-2:] == [b"data: [DONE]\n", b"\n"], "the answer that ran was finished"
        assert seen < len(lines), "it had ended before Serve began to stop it: that shows nothing"
        served.wait(lambda: served.held() == set(), 30)

    def test_serve_shutdown_in_the_middle_of_a_stream_leaves_nothing(self, served: Served) -> None:
        """Serve kills its proxies at once, and the stream with them: nobody is promised its end."""
        served.deploy()
        served.wait(served.running)
        with served.streaming(tokens=2000):
            served.serve("shutdown", "-y")
        served.wait(lambda: not served.ranks())
        served.wait(lambda: served.head.held() == set(), 30)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_serve_run_from_a_folder() -> None:
    """raylaunch is not installed: ``serve run --working-dir .`` brings it along. Ctrl-C ends it with its ranks."""
    served = Served()
    served.head.more = {}
    served.head.start()
    arguments = ["run", "--working-dir", ".", "--name", "tiny", "raylaunch.serve.deployment:app"]
    arguments += ["config=configs/tiny-cpu.yaml", "set=capture.prefill_tokens=[8]; capture.decode_batch_sizes=[2]"]
    start = f"from ray import serve; serve.start(http_options={{'host': '127.0.0.1', 'port': {served.port}}})"
    process = None
    try:
        done = served.head.run(str(served.head.python), "-c", start)
        assert done.returncode == 0, done.stderr
        log = served.head.folder / "run.log"
        command = [str(served.head.python), "-m", "ray.serve.scripts", *arguments]
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=served.head.environment, cwd=ROOT, stdout=file, stderr=file)
        served.wait(lambda: served.status("tiny").get("status") == "RUNNING" or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        assert served.add(12, 30) == "42"
        process.send_signal(signal.SIGINT)
        process.wait(60)
        served.wait(lambda: served.held() == set(), 30)
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
        served.head.stop()
    assert served.head.processes() == []


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"confg": "tiny-cpu"}, "confg = 'tiny-cpu': unknown argument; known: config, set, replicas, min_replicas"),
        ({"min_replicas": "few"}, "min_replicas = 'few': Input should be a valid integer"),
        ({"min_replicas": 3, "max_replicas": 2}, r"max_replicas = 2: max_replicas \(2\) must be greater"),
        (
            {"replicas": 2, "max_replicas": 2},
            "replicas = 2: says how many there are, and max_replicas between how many",
        ),
        ({"replicas": "no"}, "replicas = 'no': must be a number of replicas"),
        ({"replicas": 0}, "replicas = 0: must be a number of replicas"),
        ({"config": "nowhere.yaml"}, "no such file; configurations that ship"),
        ({"set": "engine.device=auto"}, "connect to the cluster first"),
        ({"set": ["parallel.tensor_parallel_size=3"]}, "tensor_parallel_size"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(
    args: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=text):
        app(args)


def test_code_of_clients_needs_a_key_wherever_serve_listens() -> None:
    runs_code = ["engine=sglang", "engine.sglang.args={enable_custom_logit_processor: true}"]
    with pytest.raises(ConfigError, match=r"set serve\.api_key"):
        application(LaunchConfig.default(runs_code))


def test_between_how_many_and_by_what() -> None:
    deployment = app({"min_replicas": "0", "max_replicas": "4", "downscale_delay_s": "60"})._bound_deployment
    made = deployment._deployment_config.autoscaling_config
    assert (made.min_replicas, made.max_replicas, made.downscale_delay_s) == (0, 4, 60)
    assert made.target_ongoing_requests == 32, "as many as a replica decodes at the same time"
    other = app({"max_replicas": 2, "target_ongoing_requests": 5})._bound_deployment
    assert other._deployment_config.autoscaling_config.target_ongoing_requests == 5


@pytest.mark.parametrize("name", ["tiny.yaml", "qwen3-8b.yaml"])
def test_files_that_ship_say_what_is_known(name: str) -> None:
    (one,) = yaml.safe_load(EXAMPLE.with_name(name).read_text())["applications"]
    assert set(one["args"]) <= set(ARGUMENTS)
    assert (shipped_configs() / one["args"]["config"]).is_file()
    options = {key: value for key, value in one["args"].items() if key in AUTOSCALING}
    assert not options or application(LaunchConfig.default(), autoscaling=options)


@pytest.mark.parametrize(
    ("prefix", "path", "seen"),
    [
        ("", "/generate", ("/generate", "")),
        ("/tiny", "/tiny/generate", ("/generate", "/tiny")),
        ("/tiny", "/tiny", ("/", "/tiny")),
        ("/v1", "/v1/v1/models", ("/v1/models", "")),  # or it would be taken off twice
    ],
)
def test_a_route_prefix_is_taken_off(prefix: str, path: str, seen: tuple[str, str]) -> None:
    scopes: list[Any] = []

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        scopes.append((scope["path"], scope["root_path"]))

    asyncio.run(BelowPrefix(asked)({"type": "http", "path": path, "root_path": prefix}, None, None))  # type: ignore[arg-type]
    assert scopes == [seen]


@pytest.mark.parametrize("lost", [False, True])
def test_a_replica_is_well_while_a_rank_is_too_busy_to_answer(lost: bool) -> None:
    """Serve would replace it within seconds, and ``deadlines.health`` may be minutes."""
    engine, silent = FakeEngine(), (RankHealth(1, False, "does not answer", {}),)
    engine.health = lambda ask_ranks=True: engine.now.with_ranks(silent if ask_ranks else ())  # type: ignore[method-assign]
    if lost:
        engine.fail(LaunchError("rank 1 is lost", "F08", "SERVE"))
    told = pytest.raises(RuntimeError, match="rank 1 is lost") if lost else contextlib.nullcontext()
    with told:
        asyncio.run(Replica.check_health(SimpleNamespace(_engine=engine)))


def test_what_serve_is_asked_for() -> None:
    more = ["recovery.rebuilds=2", "serve.max_concurrent=9"]
    config = LaunchConfig.default(["serve.drain=7", "deadlines.shutdown=3", *more])
    deployment = application(config, replicas=3)._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.max_ongoing_requests == 9
    made = deployment._replica_config
    assert made.placement_group_bundles == [{"CPU": 2.0}, {"CPU": 1.0}], "rank 0 and the replica share a bundle"
    assert made.placement_group_strategy == "STRICT_PACK"
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 10
    (settled,) = made.init_args
    assert (settled.recovery.rebuilds, settled.engine.device) == (0, "cpu")


def test_several_arguments_in_one_text_and_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLAUNCH_API_KEY", "0123")
    deployment = app({"config": "tiny-cpu", "set": "serve.drain=7; name=two", "replicas": "2"})._bound_deployment
    (settled,) = deployment._replica_config.init_args
    assert (deployment.name, deployment.num_replicas, settled.serve.drain) == ("two", 2, 7)
    assert settled.serve.api_key.get_secret_value() == "0123"
    assert "0123" not in repr(settled)
