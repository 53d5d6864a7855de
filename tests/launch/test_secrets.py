"""The secrets of a real launch, looked for wherever it says something."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import stat
import time
from pathlib import Path

import psutil
import pytest
import ray
from fastapi.testclient import TestClient
from pydantic import SecretStr
from zmq.utils import z85

from raylaunch import Engine, LaunchConfig
from raylaunch.serve.reference.app import build_app

PAGES = (
    "/",
    "/status.json",
    "/metrics",
    "/health",
    "/get_model_info",
    "/get_server_info",
    "/server_info",
    "/openapi.json",
)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_no_secret_of_a_launch_is_said_anywhere(
    clean: None, tiny: LaunchConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, password, key = (secrets.token_hex(8) for _ in range(3))
    config = tiny.replace({"environment": {"HF_TOKEN": token, "DB_PASSWORD": password}, "serve.api_key": key})
    engine = Engine(config)
    said: list[str] = []
    with engine:
        offer = engine.frontend._client._offer
        hidden = {token, password, key, Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()}
        hidden |= {z85.decode(offer.client_secret).hex(), offer.client_secret.decode(), repr(offer.client_secret)[2:-1]}
        engine.report.write_trace(tmp_path / "trace.json")
        client = TestClient(build_app(engine, config.serve), headers={"authorization": f"Bearer {key}"})
        answers = [client.get(page) for page in PAGES]
        assert answers[1].status_code == 200
        said += [f"{answer.headers} {answer.text}" for answer in answers]
        said += [repr(one) for one in (engine, config, engine.report, vars(engine.report), offer, engine.health())]
        said += [repr(vars(engine._supervisor)), repr(vars(engine.frontend)), json.dumps(engine.report.to_dict())]
        said += [engine.report.table(), (tmp_path / "trace.json").read_text()]
        for process in psutil.Process().children(recursive=True):
            said.append(f"{process.cmdline()} {process.name()}")
        psutil.Process(engine.report.places[1].pid).kill()
        while engine.last_error is None:
            time.sleep(0.05)
        said += [str(engine.last_error), repr(engine.last_error), repr(engine.failures), repr(engine.last_error.ranks)]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    said += [file.read_text(errors="replace") for file in session.rglob("*") if is_open_to_all(file)]
    said.append(caplog.text)
    assert len(said) > 40
    for text in said:
        for secret in hidden:
            assert secret not in text, re.sub(re.escape(secret), "***", text)[:2000]


def is_open_to_all(file: Path) -> bool:
    """Whether it is a file of text that other users of the machine can read."""
    return file.is_file() and bool(file.stat().st_mode & stat.S_IROTH)


def test_masked_keys_are_keys_all_the_same() -> None:
    config = LaunchConfig.default(["serve.api_key=sesame"])
    assert config.serve.api_key == SecretStr("sesame")
    assert "sesame" not in repr(config)
