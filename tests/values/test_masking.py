"""Secrets are not shown: which names have them, and what becomes of their values in errors and reprs."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest
import zmq
from pydantic import SecretStr, ValidationError
from raylaunch_actors.communicator.arena import ArenaHandle
from raylaunch_actors.reference.channel import Offer
from raylaunch_actors.spec import RankSpec

from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.errors import ConfigError
from raylaunch.group.driver import recorded
from raylaunch.group.launch import Launched
from raylaunch.model.shape import ModelShape
from raylaunch.protocol import Arrival, Gate, Release, Step
from raylaunch.resolved import launch_of
from raylaunch.sglang.sockets import SocketFolder
from raylaunch.values.masking import looks_secret, masked

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("hf_token", True),
        ("HUGGING_FACE_HUB_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("DB_PASSWORD", True),
        ("PGPASSWD", True),
        ("OPENAI_APIKEY", True),
        ("SERVICE_CREDENTIALS", True),
        ("serve.api_key", True),
        ("--api-key", True),
        ("engine.sglang.args.ssl_keyfile_password", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("engine.kv_tokens", False),
        ("capture.prefill_tokens", False),
        ("max_new_tokens", False),
        ("model.tokenizer", False),
        ("NCCL_DEBUG", False),
        ("", False),
    ],
)
def test_names_of_secrets(name, secret):
    assert looks_secret(name) is secret


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("serve.api_key", SECRET, "***"),
        ("serve.api_key", 5, "***"),
        ("serve.api_key", SecretStr(SECRET), "***"),
        ("serve.api_key", None, None),
        ("serve.api_key", "", ""),
        ("environment", {"HF_TOKEN": SECRET, "NCCL_DEBUG": "INFO"}, {"HF_TOKEN": "***", "NCCL_DEBUG": "INFO"}),
        ("environment", [f"HF_TOKEN={SECRET}"], "***"),
        ("serve", {"port": 1, "inner": [{"api_key": SECRET}]}, {"port": 1, "inner": [{"api_key": "***"}]}),
        ("HTTP_PROXY", f"http://me:{SECRET}@proxy:80/", "http://***@proxy:80/"),
        ("--set", f"serve.api_key {SECRET}", "serve.api_key***"),
        ("--set", "capture.prefill_tokens 8", "capture.prefill_tokens 8"),
        ("capture.prefill_tokens", (8, 32), (8, 32)),
        ("name", "the key is here", "the key is here"),
    ],
)
def test_values_as_they_are_shown(name, value, shown):
    assert masked(name, value) == shown


CONFIG = {
    "model": {"path": "m"},
    "serve": {"api_key": SECRET},
    "environment": {"HF_TOKEN": SECRET, "NCCL_DEBUG": "INFO", "ALL_PROXY": f"socks5://u:{SECRET}@h"},
    "engine": {"kind": "sglang", "sglang": {"args": {"ssl_keyfile_password": SECRET}}},
}


def test_a_configuration_shows_none_and_carries_all():
    config = LaunchConfig.from_dict(CONFIG)
    for text in (repr(config), str(config), f"{config.environment and config!r}", repr(config.serve)):
        assert SECRET not in text
    assert "'HF_TOKEN': '***', 'NCCL_DEBUG': 'INFO'" in repr(config)
    for same in (pickle.loads(pickle.dumps(config)), config.replace({"recovery.rebuilds": 1})):
        assert same.environment["HF_TOKEN"] == SECRET
        assert same.serve.api_key.get_secret_value() == SECRET
        assert same.engine.sglang.args["ssl_keyfile_password"] == SECRET


@pytest.mark.parametrize(
    "wrong",
    [
        {"serve": {"api_key": [SECRET]}},
        {"serve": {"api_kye": SECRET}},
        {"serve": [{"api_key": SECRET}]},
        {"environment": [f"HF_TOKEN={SECRET}"]},
        {"environment": f"HF_TOKEN={SECRET}"},
        {"environment": {"HF_TOKEN": [SECRET]}},
        {"placement": {"address": f"ray://u:{SECRET}@h:10001"}},
    ],
)
def test_wrong_settings_are_named_without_their_secrets(wrong):
    with pytest.raises(ConfigError) as caught:
        LaunchConfig.from_dict({**CONFIG, **wrong})
    assert SECRET not in str(caught.value) + repr(caught.value) + repr(vars(caught.value))
    assert SECRET not in str(pickle.loads(pickle.dumps(caught.value)))


@pytest.mark.parametrize("setting", [f"serve.api_key='{SECRET}", f"serve.api_key {SECRET}"])
def test_settings_that_cannot_be_read(setting):
    with pytest.raises(ConfigError) as caught:
        LaunchConfig.default([setting])
    assert SECRET not in str(caught.value)


def test_a_file_that_cannot_be_read_is_not_quoted(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"serve:\n  api_key: '{SECRET}\n")
    with pytest.raises(ConfigError, match="line 2, column 12") as caught:
        LaunchConfig.from_yaml(file)
    assert SECRET not in str(caught.value)


def test_what_pydantic_says_itself():
    with pytest.raises(ValidationError) as caught:
        ServeConfig(api_key=f"{SECRET}\n")
    assert SECRET not in str(caught.value)


ROOT = Path(__file__).parents[2]
MAY_HOLD_KEYS = re.compile("environment|secret|password|server_key|variables")
PUBLIC = {"SglangSettled.variables"}  # SGLANG_ variables alone


def test_no_dataclass_shows_an_environment():
    """In the repr that a dataclass makes of itself. Read, not imported: some modules need a GPU, or SGLang."""
    shown, kept = set(), set()
    for file in (*(ROOT / "raylaunch").rglob("*.py"), *(ROOT / "actors").rglob("*.py")):
        for one in ast.walk(ast.parse(file.read_text())):
            if isinstance(one, ast.ClassDef) and any("dataclass" in ast.unparse(by) for by in one.decorator_list):
                for item in one.body:
                    if isinstance(item, ast.AnnAssign) and MAY_HOLD_KEYS.search(name := ast.unparse(item.target)):
                        hidden = item.value is not None and "repr=False" in ast.unparse(item.value)
                        (kept if hidden else shown).add(f"{one.name}.{name}")
    assert {"RankSpec.environment", "WeightKeepers._environment"} <= kept
    assert shown == PUBLIC


def test_what_travels_between_ranks_and_driver_shows_none():
    public, key = zmq.curve_keypair()
    offer = Offer("tcp://a", "tcp://b", {}, public, public, key)
    step = Step(Gate.READY)
    arrival = Arrival(0, step, offer=offer)
    config = LaunchConfig.from_dict(CONFIG)
    resolved = launch_of(config, ModelShape("none", 0, 0, 0, 0))
    spec = RankSpec(**vars(resolved), rank=0, local_rank=0, group="g", bind_host="h", environment=config.environment)
    folder = SocketFolder()
    sockets = folder.open()
    try:
        instance = sockets.instance
        text = repr(
            [
                offer,
                arrival,
                Release(step, (offer,)),
                Launched(None, None, offer, resolved),
                spec,
                resolved,
                folder,
                sockets,
            ]
        )  # type: ignore[arg-type]
    finally:
        folder.close()
    text += repr(ArenaHandle(1, 2, 3, "0f0f0f0f"))
    for secret in (key.decode(), repr(key), repr(public), SECRET, instance, "0f0f0f0f"):
        assert secret not in text
    (kept,) = recorded(step, (arrival,)).arrivals
    assert kept.offer is None
    assert pickle.loads(pickle.dumps(arrival)).offer == offer
