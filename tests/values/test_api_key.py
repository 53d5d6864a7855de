"""Keys that no client can send are refused before a launch, however they are given, and never shown."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from raylaunch.commands.app import app
from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.config.api_key import key_of_environment
from raylaunch.errors import ConfigError
from raylaunch.serve.limits import RequireKey
from raylaunch.values.api_key import problem_of

S = "s3cret"
WRONG = {
    "": "is empty",
    f"{S}\n": "ends in a newline",
    f"{S}\r\n": "ends in a newline",
    "\n": "ends in a newline",
    f" {S}": "white space",
    f"{S}\t": "white space",
    f"{S}\xa0": "white space",
    f"{S}\n{S}": "control character",
    f"{S}\x00": "control character",
    f"{S}\x7f": "control character",
    f"{S}\x85{S}": "control character",
    f"{S}\u043a": "no HTTP header can carry",
    f"{S}\U0001f600": "no HTTP header can carry",
    f"{S}\udc80": "no HTTP header can carry",
}
RIGHT = ["k", "s3cret", "two words", "sk-!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~", "cl\xe9"]


@pytest.mark.parametrize(("key", "problem"), WRONG.items(), ids=repr)
def test_keys_that_nobody_can_send(key, problem):
    assert problem in problem_of(key)
    assert S not in problem_of(key)


@pytest.mark.parametrize("key", RIGHT)
def test_keys_that_clients_send(key):
    assert problem_of(key) == ""


def refused(caught, problem):
    text = str(caught.value) + repr(caught.value)
    assert problem in text
    assert S not in text


@pytest.mark.parametrize(("key", "problem"), WRONG.items(), ids=repr)
def test_every_way_to_give_one(key, problem, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        LaunchConfig.from_dict({"model": {"path": "m"}, "serve": {"api_key": key}})
    refused(caught, problem)
    for given in (key, SecretStr(key)):
        with pytest.raises(ValidationError) as caught:
            ServeConfig(api_key=given)
        refused(caught, problem)
    with pytest.raises(ConfigError) as caught:
        RequireKey(None, key=SecretStr(key), open_paths=())  # type: ignore[arg-type]
    refused(caught, problem)
    if "\x00" not in key:
        monkeypatch.setenv("RAYLAUNCH_API_KEY", key)
        with pytest.raises(ConfigError, match=r"^RAYLAUNCH_API_KEY = ") as caught:
            key_of_environment()
        refused(caught, problem)


@pytest.mark.parametrize("number", ["12345", "1.50", "true", "{a", "!b"])
def test_what_follows_set_is_the_key_as_it_stands(number):
    key = LaunchConfig.default([f"serve.api_key={number}"]).serve.api_key
    assert key is not None
    assert key.get_secret_value() == number


@pytest.mark.parametrize(
    ("arguments", "variable", "first"),
    [
        (["--api-key", f"{S}\n"], None, "ConfigError --api-key = '***': ends in a newline"),
        (["--api-key", ""], None, "ConfigError --api-key = '': is empty"),
        ([], f"{S}\n", "ConfigError RAYLAUNCH_API_KEY = '***': ends in a newline"),
        ([], "", "ConfigError RAYLAUNCH_API_KEY = '': is empty"),
        (["--set", f"serve.api_key='{S} '"], None, "tiny-cpu.yaml: serve.api_key = '***': begins or ends with white"),
        (["--set", "serve.api_key=''"], None, "tiny-cpu.yaml: serve.api_key = '': is empty"),
    ],
)
def test_on_the_command_line(arguments, variable, first, monkeypatch):
    monkeypatch.delenv("RAYLAUNCH_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAYLAUNCH_API_KEY", variable)
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 2
    assert first in done.output
    assert S not in done.output


@pytest.mark.parametrize("variable", ["", f"{S}\n"])
def test_under_ray_serve(variable, monkeypatch):
    pytest.importorskip("ray.serve")
    from raylaunch.serve import deployment

    monkeypatch.setenv("RAYLAUNCH_API_KEY", variable)
    with pytest.raises(ConfigError, match=r"^RAYLAUNCH_API_KEY = ") as caught:
        deployment.app({})
    assert S not in str(caught.value)


@pytest.mark.parametrize("sent", ["cl\xe9".encode(), "cl\xe9".encode("latin-1")])
def test_clients_send_what_is_not_ascii_in_two_ways(sent):
    seen = []

    async def application(scope, receive, send):
        seen.append(scope)

    guarded = RequireKey(application, key=SecretStr("cl\xe9"), open_paths=())
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"authorization", b"Bearer " + sent)]}
    asyncio.run(guarded(scope, None, None))  # type: ignore[arg-type]
    assert seen
