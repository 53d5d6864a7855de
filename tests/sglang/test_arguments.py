"""What SGLang is told, and what it may not be told."""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder

import pytest

from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.config.paths import OF_SGLANG
from raylaunch.errors import ConfigError
from raylaunch.model.shape import ModelShape
from raylaunch.resolved import launch_of
from raylaunch.sglang import arguments
from raylaunch.sglang.arguments import (
    OF_ITS_SERVER,
    OURS,
    TESTED,
    UNSUPPORTED,
    check_sglang,
    installed_folder,
    known_arguments,
    of_the_server,
    server_arguments,
)

SHIPPED = [
    config
    for config in map(LaunchConfig.from_yaml, sorted(shipped_configs().glob("*.yaml")))
    if config.engine.kind == "sglang"
]
FORMATS_OF_IT = ("auto", "dummy", "sharded_state", "remote", "remote_instance", "of_its_own")
BASE = {"model": {"path": "some/model"}, "engine": "sglang"}


@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: config.name)
def test_shipped_configurations_give_arguments_that_may_be_given(config):
    given = set(config.engine.sglang.args)
    assert not given & {*OURS, *UNSUPPORTED, *OF_ITS_SERVER}
    folder = installed_folder()
    if folder is not None:
        assert set(server_arguments(config)) <= set(known_arguments(folder))
        check_sglang(config)


def test_what_only_the_server_has_is_told_to_no_rank():
    config = LaunchConfig.from_dict(BASE).override(
        "serve={served_model_name: name, chat_template: '{{ x }}', port: 1, api_key: sesame}",
        "engine.sglang.args={tool_call_parser: auto, reasoning_parser: qwen3}",
    )
    server = of_the_server(config)
    assert server == {
        "host": "127.0.0.1",
        "port": 1,
        "served_model_name": "name",
        "chat_template": "{{ x }}",
        "tool_call_parser": "auto",  # which SGLang looks for in the template
    }
    assert set(server) & set(server_arguments(config)) == {"tool_call_parser"}
    told = server_arguments(config, nodes=2, node=1)
    assert (told["nnodes"], told["node_rank"]) == (2, 1)


@pytest.mark.parametrize(("tokenizer", "read"), [(None, "0f"), ("/a/folder", "0f"), ("org/tokenizer", "main")])
def test_a_commit_of_the_model_is_none_of_another_repository(tokenizer, read):
    model = {"path": "org/model", "revision": "main", "tokenizer": tokenizer}
    config = LaunchConfig.from_dict({**BASE, "model": model})
    resolved = launch_of(config, ModelShape("m", 2048, 16, 4, 4, commit="0f"))
    assert server_arguments(config, revision=resolved.revision)["revision"] == read


def test_shapes_are_sglangs_own_unless_they_were_set():
    arguments = server_arguments(LaunchConfig.from_dict(BASE).replace({"serve.port": 1}))
    assert not {"cuda_graph_bs_prefill", "cuda_graph_bs_decode"} & set(arguments)
    arguments = server_arguments(LaunchConfig.from_dict(BASE).replace({"capture.prefill_tokens": [64]}))
    assert arguments["cuda_graph_bs_prefill"] == [64]


@pytest.mark.parametrize("file", ["tokenizer.json", "tekken.json"])
def test_a_model_without_tokenizer_files_works_on_token_ids(tmp_path, file):
    (tmp_path / "config.json").touch()
    config = LaunchConfig.from_dict({**BASE, "model": {"path": str(tmp_path)}})
    assert server_arguments(config)["skip_tokenizer_init"] is True
    (tmp_path / file).touch()
    assert "skip_tokenizer_init" not in server_arguments(config)


def test_settings_of_both_engines_have_sglangs_names_and_its_defaults_where_they_are_not_set():
    config = LaunchConfig.from_dict(BASE)
    names = {"max_total_tokens", "context_length", "max_running_requests", "max_queued_requests"}
    assert not {*names, "sampling_defaults"} & set(server_arguments(config))
    assert server_arguments(config.replace({"engine.sampling_defaults": "openai"}))["sampling_defaults"] == "openai"
    changed = config.replace({"engine.kv_tokens": 4096, "engine.max_context": 512, "capture.compiler": "inductor"})
    arguments = server_arguments(changed)
    assert (arguments["max_total_tokens"], arguments["context_length"]) == (4096, 512)
    assert arguments["cuda_graph_tc_compiler"] == "inductor"
    assert "max_total_tokens" not in server_arguments(config.replace({"engine.kv_tokens": "auto"}))
    own = config.replace({"engine.max_context": 512, "engine.sglang.args.context_length": 256})
    assert server_arguments(own)["context_length"] == 256


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """As if SGLang was installed, with two arguments that raylaunch need not know of."""
    known = ["attention_backend", "page_size", *OURS, *UNSUPPORTED, *OF_ITS_SERVER]
    monkeypatch.setattr(arguments, "installed_folder", lambda: tmp_path)
    monkeypatch.setattr(arguments, "installed_version", lambda: TESTED[0])
    monkeypatch.setattr(arguments, "known_arguments", lambda folder: known)
    monkeypatch.setattr(arguments, "misfit", lambda folder: [])
    monkeypatch.setattr(arguments, "known_load_formats", lambda folder: FORMATS_OF_IT)


@pytest.mark.parametrize(
    ("setting", "key", "said"),
    [
        ("serve.served_model_name=a:b", "serve.served_model_name", "must have no colon"),
        ("communicator.table_rows=64", "communicator.table_rows", "is of the engine 'reference'"),
        ("communicator.max_bytes=4096", "communicator.max_bytes", "is of the engine 'reference'"),
        ("engine.sglang.args.tp_size=2", "engine.sglang.args.tp_size", "use parallel.tensor_parallel_size"),
        ("engine.sglang.args.is_embedding=true", "engine.sglang.args.is_embedding", "is not supported"),
        ("engine.sglang.args.weight_cache_mode=daemon", "engine.sglang.args.weight_cache_mode", "is not supported"),
        ("engine.sglang.args.enable_http2=true", "engine.sglang.args.enable_http2", "is not heeded"),
        (
            "model.load_format=instanttensor",
            "model.load_format",
            f"sglang {TESTED[0]} has no such format; it has auto, ",
        ),
        ("model.load_format=remote", "model.load_format", "reads a model.path that is no folder"),
        ("model.load_format=remote_instance", "model.load_format", "needs engine.sglang.args.remote_instance_weight_"),
        ("engine.sglang.args.page_sise=16", "engine.sglang.args.page_sise", "did you mean page_size?"),
    ],
)
def test_what_is_refused_before_anything_is_started(installed, setting, key, said):
    check_sglang(LaunchConfig.from_dict(BASE).replace({"engine.sglang.args.page_size": 16}))
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        check_sglang(LaunchConfig.from_dict(BASE).override(setting))
    assert caught.value.key == key


def test_formats_of_the_installed_version_are_taken(installed, tmp_path):
    seed = {"seed_instance_ip": "10.0.0.1", "seed_instance_service_port": 30000}
    args = {f"remote_instance_weight_loader_{name}": value for name, value in seed.items()}

    def given(load_format, **more):
        data = {**BASE, "engine": {"kind": "sglang", "sglang": {"args": args | more}}}
        config = LaunchConfig.from_dict(data).replace({"model.load_format": load_format})
        arguments.check_load_format(config, tmp_path)
        return server_arguments(config)["load_format"]

    assert given("of_its_own") == "of_its_own"
    assert given("remote_instance", remote_instance_weight_loader_backend="transfer_engine") == "remote_instance"
    assert given("remote_instance", remote_instance_weight_loader_send_weights_group_ports=[1, 2]) == "remote_instance"
    with pytest.raises(ConfigError, match="loader_send_weights_group_ports"):
        given("remote_instance")


@pytest.mark.parametrize(
    ("version", "problems", "any_version", "warned", "refused"),
    [
        (TESTED[0], [], False, False, False),
        (TESTED[-1], [], False, False, False),
        ("0.5.24", [], False, True, False),
        ("0.5.24", ["a.b is not there", "c.d takes (x)"], False, False, True),
        ("0.5.24", ["a.b is not there"], True, True, False),
        (TESTED[-1], ["a.b is not there"], False, False, True),
    ],
)
def test_a_version_is_tried_where_every_hook_fits(
    installed, version, problems, any_version, warned, refused, monkeypatch, caplog
):
    monkeypatch.setattr(arguments, "installed_version", lambda: version)
    monkeypatch.setattr(arguments, "misfit", lambda folder: problems)
    config = LaunchConfig.from_dict(BASE).override(f"engine.sglang.any_version={str(any_version).lower()}")
    if refused:
        with pytest.raises(ConfigError, match=re.escape("; ".join(problems))) as caught:
            check_sglang(config)
        assert f"install {TESTED[-1]}" in str(caught.value)
        assert "engine.sglang.any_version=true" in str(caught.value)
    else:
        check_sglang(config)
    assert bool(caplog.records) is warned
    assert all(version in one.getMessage() for one in caplog.records)


def test_pieces_are_refused_where_there_are_none_any_more(installed):
    """0.5.22 took them away. The fixture's SGLang has none either."""
    for setting, key in (
        ("capture.compiler=inductor", "capture.compiler"),
        ("engine.sglang.args.page_size=tc_piecewise", "engine.sglang.args.page_size"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_sglang(LaunchConfig.from_dict(BASE).override(setting))
        assert caught.value.key == key


@pytest.mark.parametrize(
    ("given", "off"),
    [
        ("{}", True),
        ("{flashinfer_allreduce_fusion_backend: auto}", None),
        ("{enforce_disable_flashinfer_allreduce_fusion: false}", False),
    ],
)
def test_flashinfers_all_reduce_is_off_unless_something_is_said_of_it(given, off):
    config = LaunchConfig.from_dict(BASE).override(f"engine.sglang.args={given}")
    assert server_arguments(config).get("enforce_disable_flashinfer_allreduce_fusion") is off


def test_every_argument_that_is_a_path_is_made_absolute():
    """By their names; what is refused needs no table."""
    folder = installed_folder()
    if folder is None:
        pytest.skip("needs the installed sglang")
    named = {name for name in known_arguments(folder) if re.search(r"(_path|_paths|_dir|_folder|_file)$", name)}
    no_paths = {"export_metrics_to_file", "mamba_max_states_per_path"}
    assert named - no_paths - set(OF_SGLANG) - set(OURS) - set(OF_ITS_SERVER) - set(UNSUPPORTED) == set()
    assert set(OF_SGLANG) - set(known_arguments(folder)) <= {"ple_offload_dir", "uno_lora_path"}, "since 0.5.18"


def test_a_folder_that_a_clone_is_in_is_no_installation(monkeypatch, tmp_path):
    """Without ``__init__`` it is a namespace package to Python, found where nothing of the name is installed."""
    (tmp_path / "sglang").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr("sys.meta_path", [PathFinder])
    monkeypatch.delitem(sys.modules, "sglang", raising=False)
    assert installed_folder() is None
