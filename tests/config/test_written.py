"""What was written is what a setting gets: nothing is lost to YAML's comments, numbers, dates and booleans."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel, SecretStr

from raylaunch import LaunchConfig
from raylaunch.config.paths import SETTINGS
from raylaunch.config.written import TEXTS, read_setting
from raylaunch.errors import ConfigError

MODEL = "model: {path: x/y}\n"


def read_file(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(MODEL + text)
    return LaunchConfig.from_yaml(file)


def test_the_table_names_every_setting_that_is_text():
    def fields(section, prefix=""):
        for name, field in section.model_fields.items():
            kinds = [field.annotation, *get_args(field.annotation)]
            inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
            if inner is not None:
                yield from fields(inner, f"{prefix}{name}.")
            elif get_origin(field.annotation) not in (dict, tuple) and any(
                kind in (str, SecretStr) or str in get_args(kind) for kind in kinds
            ):
                yield f"{prefix}{name}"

    assert {one for one in fields(LaunchConfig) if not one.startswith("faults.")} == set(TEXTS)
    assert set(SETTINGS) <= set(TEXTS)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("environment.X", "1", "1"),
        ("environment.X", "1.10", "1.10"),
        ("environment.X", "0123", "0123"),
        ("environment.X", "1e5", "1e5"),
        ("environment.X", "12:30:45", "12:30:45"),
        ("environment.X", "2024-13-45", "2024-13-45"),
        ("environment.X", "yes", "yes"),
        ("environment.X", "null", "null"),
        ("environment.X", "", ""),
        ("environment.X", "''", ""),
        ("environment.X", '"1"', "1"),
        ("environment.X", '{"a": [1]}', '{"a": [1]}'),
        ("environment.X", "a,b: c #d", "a,b: c #d"),
        ("environment.X", "'a'", "a"),
        ("environment.X", "it's", "it's"),
        ("environment.X", "a=b=c", "a=b=c"),
        ("model.path", "/data/my model #2", "/data/my model #2"),
        ("model.path", "/data/a: b, c", "/data/a: b, c"),
        ("model.path", "/data/[1]", "/data/[1]"),
        ("model.revision", "1234567", "1234567"),
        ("model.revision", "0x1f", "0x1f"),
        ("model.revision", "", None),
        ("model.revision", "null", None),
        ("serve.served_model_name", "4", "4"),
        ("serve.served_model_name", "#1", "#1"),
        ("serve.chat_template", "{{ x }}", "{{ x }}"),
        ("serve.chat_template", "{% if a %}#{% endif %}", "{% if a %}#{% endif %}"),
        ("name", "2024-01-01", "2024-01-01"),
        ("engine.sglang.args.chat_name", "a #b", "a #b"),
        ("engine.sglang.args.n", "'#a'", "#a"),
        ("engine.sglang.args.n", "#a", "#a"),
        ("engine.sglang.args.n", "a#b", "a#b"),
        ("engine.sglang.args.n", "0.50", 0.5),
        ("engine.sglang.args.n", "2024-13-45", "2024-13-45"),
        ("recovery.rebuilds", "3", 3),
        ("capture", "{enabled: false}", {"enabled": False}),
    ],
)
def test_set(key, text, value):
    found = read_setting(key, text)
    assert (found, type(found)) == (value, type(value))
    made = LaunchConfig.default([f"{key}={text}"]).model_dump()
    for name in key.split("."):
        made = made[name]
    if key != "capture":
        assert made == value


@pytest.mark.parametrize(
    ("setting", "key", "right"),
    [
        ("capture.prefill_tokens=[8] # small", "capture.prefill_tokens", "what follows # would be left out"),
        ("recovery.rebuilds=3 # or 4", "recovery.rebuilds", "valid integer"),
        ("environment.X='a", "environment.X", "quote what is text"),
        ("environment={X: yes}", "environment.X", "must be text, and YAML reads yes as true: write 'yes'"),
        ("environment={X: }", "environment.X", "write '' for a variable that is set and empty"),
        ("environment={A=B: c}", "environment", "'A=B' cannot be set"),
        ("environment.X=[1", "", ""),
        ("recovery.rebuilds=!!int x", "recovery.rebuilds", "not readable as a YAML value"),
        ("recovery.rebuilds=!!int ''", "recovery.rebuilds", "not readable as a YAML value"),
        ("capture.enabled=!!bool x", "capture.enabled", "not readable as a YAML value"),
        ("faults=!!timestamp x", "faults", "not readable as a YAML value"),
        ('model.path="\\UFFFFFFFF"', "model.path", "not readable as a YAML value"),
        ("faults=&a [*a]", "faults", "nested without end"),
    ],
)
def test_set_refused(setting, key, right):
    if not key:
        assert LaunchConfig.default([setting]).environment == {"X": "[1"}
        return
    with pytest.raises(ConfigError) as caught:
        LaunchConfig.default([setting])
    assert caught.value.key == key
    assert right in caught.value.expected


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", "1"), ("1.10", "1.10"), ("010", "010"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01"),
        ("'yes'", "yes"), ("''", ""), ("a b", "a b"), ("12:30:45", "12:30:45"), ("|\n    a\n    b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_a_variable_in_a_file_is_what_was_written(tmp_path, written, value):
    assert read_file(tmp_path, f"environment:\n  X: {written}\n").environment == {"X": value}


@pytest.mark.parametrize("written", ["yes", "on", "true", "False", "", "~", "null", "[1]", "{a: 1}"])
def test_a_variable_in_a_file_that_could_mean_two_things_is_refused(tmp_path, written):
    with pytest.raises(ConfigError, match=r"c\.yaml: environment\.X = .*must be text"):
        read_file(tmp_path, f"environment:\n  X: {written}\n")


def test_numbers_of_python_are_taken_and_booleans_are_not():
    data = {"model": {"path": "x/y"}, "environment": {"A": 1, "B": 0.5}}
    assert LaunchConfig.from_dict(data).environment == {"A": "1", "B": "0.5"}
    with pytest.raises(ConfigError, match=r"environment\.A = True: must be text"):
        LaunchConfig.from_dict({**data, "environment": {"A": True}})


@pytest.mark.parametrize(
    "setting", ["model.path=/m/{}", "environment.X={}", "environment.{}=1", "serve.host={}", "faults={}", "{}=1"]
)
def test_arguments_that_are_not_utf_8_are_one_message(setting):
    before, after = setting.encode().split(b"{}")
    arguments = [sys.executable, "-m", "raylaunch", "generate", "--prompt", "x", "--set", before + b"a\xff" + after]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ConfigError ")
    assert r"\xff" in lines[0] or r"\udcff" in lines[0]


def test_half_of_a_pair_in_a_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"c\.yaml: environment\.X = .*ud800.*is not valid UTF-8"):
        read_file(tmp_path, 'environment: {X: "\\ud800"}\n')


@pytest.mark.parametrize("written", ["!!int ''", "!!bool x", "!!timestamp x", '"\\UFFFFFFFF"'])
def test_what_yaml_cannot_make_in_a_file_is_one_message(tmp_path, written):
    file = tmp_path / "c.yaml"
    file.write_text(f"model: {{path: m}}\nname: {written}\n")
    with pytest.raises(ConfigError, match="not readable as YAML: a value is not what its tag says"):
        LaunchConfig.from_yaml(file)


def test_what_yaml_cannot_make_is_not_shown(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("serve: {api_key: !!bool hunter2}\n")
    with pytest.raises(ConfigError, match="a value is not what its tag says") as caught:
        LaunchConfig.from_yaml(file)
    assert "hunter2" not in str(caught.value)
