"""Paths are the driver's: absolute once they are read, whatever folder, home or node a rank has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from raylaunch import LaunchConfig
from raylaunch.config.paths import (
    OF_SGLANG,
    SETTINGS,
    absolute,
    file_or_text,
    folder_or_name,
    relative_to_file,
    sglang_arguments,
)
from raylaunch.config.sections import ModelConfig
from raylaunch.config.types import FileOrText, FolderOrName, LocalPath
from raylaunch.errors import ConfigError
from raylaunch.model_check import check_model


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory ``cwd`` and a folder ``conf`` with a file, each with models; a home folder."""
    for folder in ("cwd/org/both", "cwd/org/here", "cwd/m", "conf/org/both", "conf/org/beside", "conf/m", "home/m"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cwd/t.jinja").write_text("x")
    (tmp_path / "conf/t.jinja").write_text("x")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "elsewhere", "in_a_file"),
    [
        ("./m", "cwd/m", "conf/m"),
        ("../m", "m", "m"),
        ("~/m", "home/m", "home/m"),
        (".", "cwd", "conf"),
        ("m", "cwd/m", "conf/m"),
        ("m/", "cwd/m", "conf/m"),
        ("org/both", "cwd/org/both", "conf/org/both"),
        ("org/here", "cwd/org/here", "cwd/org/here"),
        ("org/beside", "org/beside", "conf/org/beside"),
        ("org/nowhere", "org/nowhere", "org/nowhere"),
        ("gpt2", "gpt2", "gpt2"),
        ("./nowhere", "cwd/nowhere", "conf/nowhere"),
        ("nowhere/", "cwd/nowhere", "conf/nowhere"),
        (".hidden/m", "cwd/.hidden/m", "conf/.hidden/m"),
    ],
)
def test_a_model_is_a_folder_or_a_name(place, text, elsewhere, in_a_file):
    names = ("org/beside", "org/nowhere", "gpt2")

    def expected(name):
        return name if name in names else str(place / name)

    file = place / "conf/c.yaml"
    file.write_text(f"model: {{path: {text}, tokenizer: {text}}}\n")
    for made in (
        LaunchConfig.from_dict({"model": {"path": text, "tokenizer": text}}),
        LaunchConfig(model=ModelConfig(path=text, tokenizer=text)),
        LaunchConfig.from_yaml(file, [f"model.path={text}", f"model.tokenizer={text}"]),
        LaunchConfig.default([f"model.path={text}", f"model.tokenizer={text}"]),
        LaunchConfig.default().override(f"model.path={text}", f"model.tokenizer={text}"),
    ):
        assert (made.model.path, made.model.tokenizer) == (expected(elsewhere),) * 2
    made = LaunchConfig.from_yaml(file)
    assert (made.model.path, made.model.tokenizer) == (expected(in_a_file),) * 2
    assert made.override("recovery.rebuilds=1").model == made.model, "what is absolute stays as it is"


@pytest.mark.parametrize("given", ["c.yaml", "../conf/c.yaml", "~/c.yaml"])
def test_however_the_file_is_named(place, given):
    for folder in ("cwd", "conf", "home"):
        (place / folder / "c.yaml").write_text("model: {path: ./m}\n")
    folder = {"c": "cwd", ".": "conf", "~": "home"}[given[0]]
    assert LaunchConfig.from_yaml(given).model.path == str(place / folder / "m")


def test_every_setting_that_is_a_path(place):
    file = place / "conf/c.yaml"
    file.write_text(
        "model: {path: x/y}\n"
        "engine: {sglang: {cache_dir: caches, args: {download_dir: weights, lora_paths: [a=./a, org/name],"
        " speculative_draft_model_path: ./draft, mem_fraction_static: 0.5}}}\n"
        "serve: {chat_template: t.jinja}\n"
        "debug_folder: ~/dumps\n"
    )
    made = LaunchConfig.from_yaml(file)
    conf = place / "conf"
    assert made.engine.sglang.cache_dir == str(conf / "caches")
    assert made.engine.sglang.args == {
        "download_dir": str(conf / "weights"),
        "lora_paths": [f"a={conf / 'a'}", "org/name"],
        "speculative_draft_model_path": str(conf / "draft"),
        "mem_fraction_static": 0.5,
    }
    assert made.serve.chat_template == str(conf / "t.jinja")
    assert made.debug_folder == str(place / "home/dumps")
    changed = made.override("serve.chat_template='{{ x }}'", "engine.sglang.args.download_dir=other")
    assert changed.serve.chat_template == "{{ x }}"
    assert changed.engine.sglang.args["download_dir"] == str(place / "cwd/other")


def test_the_table_names_every_field_that_is_a_path():
    types = (LocalPath, FolderOrName, FileOrText)
    marks = [get_args(one)[1] for one in types]

    def fields(section, prefix=""):
        for name, field in section.model_fields.items():
            kinds = [field.annotation, *get_args(field.annotation)]
            inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
            if inner is not None:
                yield from fields(inner, f"{prefix}{name}.")
            elif any(one in kinds for one in types) or any(mark in field.metadata for mark in marks):
                yield f"{prefix}{name}"

    assert set(fields(LaunchConfig)) == set(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value", "settled"),
    [
        ("download_dir", "w", "{0}/w"),
        ("file_storage_path", "~/s", "{home}/s"),
        ("quantization_param_path", "/abs/q.json", "/abs/q.json"),
        ("lora_paths", {"a": "./a", "b": "org/b"}, {"a": "{0}/a", "b": "org/b"}),
        ("lora_paths", [{"lora_name": "./n", "lora_path": "./a", "pinned": True}],
         [{"lora_name": "./n", "lora_path": "{0}/a", "pinned": True}]),
        ("hicache_storage_backend_extra_config", "@h.json", "@{0}/h.json"),
        ("hicache_storage_backend_extra_config", '{"a": 1}', '{"a": 1}'),
        ("init_expert_location", "trivial", "trivial"),
        ("init_expert_location", "./e.json", "{0}/e.json"),
        ("completion_template", "t.jinja", "{0}/t.jinja"),
        ("download_dir", None, None),
        ("attention_backend", "./fa3", "./fa3"),
    ],
)  # fmt: skip
def test_sglangs_own_arguments(place, name, value, settled):
    def filled(one):
        if isinstance(one, dict):
            return {key: filled(inner) for key, inner in one.items()}
        if isinstance(one, list):
            return [filled(inner) for inner in one]
        if isinstance(one, str):
            return one.replace("{0}", str(place / "cwd")).replace("{home}", str(place / "home"))
        return one

    assert sglang_arguments({name: value}) == {name: filled(settled)}


def test_a_link_counts_before_the_dots_behind_it(place):
    (place / "far/away").mkdir(parents=True)
    (place / "cwd/link").symlink_to(place / "far/away")
    assert absolute("link/../m") == str(place / "far/m")
    assert absolute("link/m") == str(place / "cwd/link/m"), "links stay as they were written"


@pytest.mark.parametrize("key", ["model.path", "model.tokenizer", "debug_folder", "engine.sglang.cache_dir"])
@pytest.mark.parametrize(
    ("value", "right"),
    [("", "is empty"), ("~nobody-of-that-name/m", "home folder of ~nobody-of-that-name is not known")],
)
def test_what_is_no_path_is_named(key, value, right):
    with pytest.raises(ConfigError) as caught:
        LaunchConfig.default([f"{key}='{value}'"])
    assert caught.value.key == key
    assert right in caught.value.expected


def test_a_folder_that_was_meant_is_never_looked_for_on_the_hub(place, monkeypatch):
    monkeypatch.setattr("raylaunch.model.shape._from_hub", lambda config: pytest.fail("asked the Hub"))
    for path in ("./nowhere", "nowhere/", "~/nowhere", "../nowhere", "/nowhere"):
        with pytest.raises(ConfigError, match=r"model\.path = '/.*no such folder"):
            check_model(LaunchConfig.from_dict({"model": {"path": path}}))


def test_a_tokenizers_folder_that_is_not_there_is_named_before_the_launch(place):
    with pytest.raises(ConfigError, match=r"model\.tokenizer = '/.*/nowhere': no such folder"):
        check_model(LaunchConfig.default(["model.tokenizer=./nowhere"]))


def test_a_file_is_read_where_the_working_directory_is_gone(tmp_path):
    """What is absolute, or relative to the file, needs none."""
    (tmp_path / "gone").mkdir()
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: ./m}\ndebug_folder: /d\n")
    program = (
        "import os, sys; os.rmdir(os.getcwd()); from raylaunch import LaunchConfig, ConfigError\n"
        "print(LaunchConfig.from_yaml(sys.argv[1]).model.path)\n"
        "try: LaunchConfig.from_yaml(sys.argv[1], ['debug_folder=x'])\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], cwd=tmp_path / "gone", capture_output=True, text=True, check=True
    )
    path, error = done.stdout.splitlines()
    assert path == str(tmp_path / "m")
    assert "debug_folder = 'x': is relative, and the working directory no longer exists" in error


def test_a_text_that_is_no_file_stays_a_text(place):
    assert file_or_text("{% for m in messages %}{{ m }}{% endfor %}\n" * 2000).startswith("{% for")
    assert file_or_text("chatml") == "chatml"
    assert folder_or_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert relative_to_file({"model": None, 1: 2}, Path("/f")) == {"model": None, 1: 2}
    assert "model_path" not in OF_SGLANG
    assert os.path.isabs(absolute("x"))
