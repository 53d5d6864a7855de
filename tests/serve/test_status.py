"""The status page: its data, its headers, and what headless Chromium makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from pydantic import SecretStr

from raylaunch.config import ServeConfig
from raylaunch.engine.health import Condition, Health
from raylaunch.group.driver import Driver
from raylaunch.group.launch import span
from raylaunch.model.shape import ModelShape
from raylaunch.protocol import LaunchPlan, Phase
from raylaunch.report import LaunchReport
from raylaunch.resolved import launch_of
from raylaunch.serve import metrics, status
from raylaunch.serve.reference.app import build_app
from tests.protocol.builders import PLAN
from tests.scripted_group import ScriptedGroup
from tests.serve.fake_engine import FakeEngine, lost

FOLDER = Path(status.__file__).with_name("status")
KEY = SecretStr("open sesame")
OF_SGLANG = LaunchPlan(PLAN.world_size, rounds_from_ranks=True)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def app(engine: FakeEngine) -> FastAPI:
    made = FastAPI()
    router, observed = metrics.build(engine, ServeConfig())
    made.include_router(router)
    made.include_router(status.build(engine, ServeConfig(), observed))
    return made


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


# ---- the data


def test_a_group_that_is_ready(client: TestClient, engine: FakeEngine) -> None:
    data = client.get("/status.json").json()
    assert (data["ready"], data["condition"], data["reason"], data["step"]) == (True, "ready", "", None)
    assert data["requests"] == {
        "running": 2,
        "waiting": 0,
        "limit": 256,
        "tokens_per_second": 0,
        "first_token_p50": None,
    }
    assert data["restarts"] == {"done": 0, "left": 1}
    assert data["failure"] is None
    assert [rank["activity"] for rank in data["ranks"]] == ["serving", "serving"]
    launch = data["launch"]
    assert launch["seconds"] == launch["total"] == pytest.approx(engine.report.seconds)
    assert [phase["name"] for phase in launch["phases"]] == [
        "PLACE", "CONNECT", "LOAD", "WARMUP", "CAPTURE", "REGISTER", "VERIFY",
    ]  # fmt: skip
    assert launch["phases"][1]["busy"] == pytest.approx([3, 6])
    assert launch["ranks"][1] == {
        "rank": 1,
        "node": "10.0.0.1",
        "pid": 11,
        "device": "cpu",
        "memory": 1 << 20,
        "graphs": 12,
        "registered": 12,
    }


def test_bars_fill_the_launch_without_overlap(client: TestClient) -> None:
    launch = client.get("/status.json").json()["launch"]
    assert [bar["text"] for bar in launch["driver"]] == ["PLACE placement", "PLACE actors"]
    for bars in launch["bars"]:
        assert [bar["kind"] for bar in bars] == ["work", "wait"] * (len(bars) // 2)
        assert bars[0]["start"] == 3
        assert bars[-1]["end"] == pytest.approx(launch["total"])
        for before, after in pairwise(bars):
            assert before["start"] <= before["end"] == pytest.approx(after["start"])


def test_clocks_that_differ_do_not_turn_a_bar_around(engine: FakeEngine, client: TestClient) -> None:
    engine.report.started += 4.5  # the first steps lie before it now, as on a node whose clock is late
    for bar in client.get("/status.json").json()["launch"]["bars"][0]:
        assert 0 <= bar["start"] <= bar["end"]


def test_a_launch_that_was_drawn_is_not_sent_again(client: TestClient, engine: FakeEngine) -> None:
    revision = client.get("/status.json").json()["revision"]
    assert client.get("/status.json", params={"launch": revision}).json()["launch"] is None
    engine.rebuild(steps=3)
    assert client.get("/status.json", params={"launch": revision}).json()["launch"]["seconds"] is None


def test_a_rebuild_says_which_step_it_works_towards(client: TestClient, engine: FakeEngine) -> None:
    engine.rebuild(steps=5)
    data = client.get("/status.json").json()
    assert data["step"]["text"] == "CAPTURE iteration prefill 32 tokens iteration 1"
    assert (data["step"]["done"], data["step"]["of"], data["step"]["phase"]) == (5, 19, "CAPTURE")
    assert {rank["activity"] for rank in data["ranks"]} == {"starting"}
    assert [phase["what"] for phase in data["launch"]["phases"]][4:] == ["", "", ""]


@pytest.mark.parametrize("plan", [PLAN, OF_SGLANG], ids=["reference", "sglang"])
def test_a_launch_says_which_step_is_due(client: TestClient, engine: FakeEngine, plan: LaunchPlan) -> None:
    """Before each step, in the driver's own words, also where the rounds are known only when the ranks have warmed up,
    and while the driver has work of its own."""
    engine.rebuild(steps=1)
    engine.report = report = LaunchReport("tiny", time.time())
    seen: list[tuple[Any, ...]] = []

    def look(*told: Any) -> None:
        step = client.get("/status.json").json()["step"]
        assert step["since"] <= time.time()
        seen.append((step["phase"], step["text"], step["done"], step["of"]))

    with span(report, "actors"):
        look()
    group: Any = ScriptedGroup(PLAN)
    resolved = launch_of(engine.config, ModelShape("tiny", 2048, 16, 4, 4))
    Driver(group, replace(resolved, plan=plan), report, look).run()
    with span(report, "first request", Phase.VERIFY):
        look()
    steps = list(PLAN.steps())
    unknown = 5 if plan is OF_SGLANG else 0
    assert seen[0] == ("PLACE", "PLACE actors", 0, None)
    assert seen[1:-1] == [
        (step.phase.name, str(step), done, None if done < unknown else len(steps)) for done, step in enumerate(steps)
    ]
    assert seen[-1] == ("VERIFY", "VERIFY first request", len(steps), None)
    report.ready = time.time()
    assert client.get("/status.json").json()["step"] is None


def test_a_failure_with_its_evidence(client: TestClient, engine: FakeEngine) -> None:
    engine.fail(error := lost())
    data = client.get("/status.json").json()
    assert (data["ready"], data["condition"], data["reason"]) == (False, "failed", error.headline())
    assert data["failure"]["text"] == str(error)
    assert (data["failure"]["when"], data["failure"]["code"], data["failure"]["rank"]) == (1_700_000_100.0, "F07", 1)
    assert {rank["activity"] for rank in data["ranks"]} == {"gone"}


def test_an_engine_that_was_never_started(client: TestClient, engine: FakeEngine) -> None:
    engine.report = type(engine.report)("tiny")
    engine.now = type(engine.now)(False, Condition.NEW, "new", (), 0, 0)
    engine.ranks = ()
    data = client.get("/status.json").json()
    assert (data["launch"]["total"], data["launch"]["bars"], data["step"]) == (0, [], None)


# ---- the page


@pytest.mark.parametrize("path", status.OPEN_PATHS)
def test_page_and_assets_may_only_reach_us(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert response.headers["x-content-type-options"] == "nosniff"
    text = response.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w|@import|url\(", text)
    assert not re.search(r"\sstyle=|\son\w+=|<style|innerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_the_page_names_what_exists() -> None:
    page, script = (FOLDER / "index.html").read_text(), (FOLDER / "status.js").read_text()
    assert set(re.findall(r'(?:href|src)="status/([^"]+)"', page)) == set(status.ASSETS)
    ids = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'(?:byId|setText)\("([^"]+)"', script)) <= ids


def test_only_the_data_needs_the_key(engine: FakeEngine) -> None:
    client = TestClient(build_app(engine, ServeConfig(api_key=KEY)))
    for path in status.OPEN_PATHS:
        assert client.get(path).status_code == 200
    for path in ("/status.json", "/metrics"):
        assert client.get(path).status_code == 401
        key = {"authorization": f"Bearer {KEY.get_secret_value()}"}
        assert client.get(path, headers=key).status_code == 200


# ---- in a browser

TYPES_THE_KEY = f"""
setTimeout(() => {{
  document.getElementById("key").value = {json.dumps(KEY.get_secret_value())};
  document.getElementById("key-form").requestSubmit();
}}, 1000);
"""


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application behind uvicorn, on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def server(app: FastAPI) -> Iterator[str]:
    with serving(app) as address:
        yield address


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[object]:
    """Opens an address and returns the document as it is after some seconds of the page's own time."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")

    def dom(address: str, wait_ms: int = 5000) -> str:
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
            f"--virtual-time-budget={wait_ms}", "--dump-dom", address,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        assert "Content Security Policy" not in done.stderr
        return done.stdout

    return dom


def part(document: str, identity: str) -> str:
    """The text of the element with an id, tags left out."""
    match = re.search(rf'<(\w+)[^>]*\bid="{identity}"[^>]*>(.*?)</\1>', document, re.DOTALL)
    assert match, f"no element {identity} in {document[:2000]}"
    return html.unescape(re.sub(r"<[^>]+>", " ", match[2]))


def hidden(document: str, identity: str) -> bool:
    match = re.search(rf'<\w+[^>]*\bid="{identity}"[^>]*>', document)
    assert match
    return " hidden" in match[0]


def test_browser_shows_a_ready_group(browse, server: str) -> None:
    document = browse(server + "/")
    assert (part(document, "state"), part(document, "name")) == ("Ready", "tiny")
    assert "<title>ready · tiny</title>" in document
    for word in ("PLACE", "CONNECT", "CAPTURE", "prefill 8, 32; decode 2, 4; 2 iterations; 8 barriers", "ranks agree"):
        assert word in part(document, "phases")
    for word in ("serving", "10.0.0.1", "1.0 MiB", "71"):
        assert word in part(document, "ranks")
    assert document.count('class="bar work phase-CAPTURE"') >= 2 * 10
    assert document.count('class="bar wait phase-CAPTURE"') == 2 * 10
    assert hidden(document, "failure")
    assert hidden(document, "notice")
    assert hidden(document, "key-form")


def test_browser_shows_a_failure_as_text(browse, server: str, engine: FakeEngine) -> None:
    engine.fail(lost("rank 1 died: <img src=x onerror=alert(1)> & more"))
    document = browse(server + "/")
    assert part(document, "state") == "Failed"
    assert "LaunchError F07 [SERVE] rank 1 died: <img src=x onerror=alert(1)> & more" in part(
        document, "failure-headline"
    )
    assert "<b>last words</b>" in part(document, "failure-text")
    assert "torn down in 0.1 s" in part(document, "failure-text")
    assert "<img" not in document
    assert "gone" in part(document, "ranks")


def test_browser_shows_a_rebuild_that_goes_on(browse, server: str, engine: FakeEngine) -> None:
    engine.rebuild(steps=5)
    document = browse(server + "/")
    assert part(document, "state") == "Rebuilding"
    assert "Step 6 of 19: CAPTURE iteration prefill 32 tokens iteration 1" in part(document, "step")
    assert "attempt 2, not ready" in part(document, "launch-summary")
    assert 'class="bar now phase-CAPTURE"' in document


def test_browser_asks_for_the_key_once(browse, engine: FakeEngine) -> None:
    """The whole application with a key, and beside it a copy of the page in which someone types it."""
    app = build_app(engine, ServeConfig(api_key=KEY))

    @app.middleware("http")
    async def types(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == "/typing.js":
            return Response(TYPES_THE_KEY, media_type="text/javascript")
        if request.url.path == "/typed":
            script = '<script src="typing.js" defer></script></head>'
            page = (FOLDER / "index.html").read_text().replace("</head>", script)
            return Response(page, media_type="text/html", headers=status.PAGE_HEADERS)
        return await go_on(request)

    with serving(app) as address:
        document = browse(address + "/")
        assert not hidden(document, "key-form")
        assert hidden(document, "content")
        assert "10.0.0.1" not in document
        document = browse(address + "/typed")
    assert hidden(document, "key-form")
    assert part(document, "state") == "Ready"
    assert KEY.get_secret_value() not in document


def test_browser_says_that_the_server_does_not_answer(browse, server: str, engine: FakeEngine) -> None:
    asked, answer = [], engine.health

    def health(ask_ranks: bool = True) -> Health:
        asked.append(ask_ranks)
        if len(asked) > 2:
            raise RuntimeError
        return answer(ask_ranks)

    engine.health = health  # type: ignore[method-assign]
    document = browse(server + "/")
    assert not hidden(document, "notice")
    said = part(document, "notice")
    assert said.startswith("The server does not answer (status 500); what is shown is of ")
    assert said.endswith(" Asking again every 2 s.")
    assert part(document, "state") == "Ready"  # as it was, and grey
    assert 'class="stale"' in document
