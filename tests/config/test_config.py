"""Configurations: read, overridden, and refused with the key, its value and what would be right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import ray
import yaml
from pydantic import SecretStr

from raylaunch.cluster.session import enter
from raylaunch.config import FaultConfig, LaunchConfig, apply_overrides, shipped_configs
from raylaunch.config.address import cluster_to_join
from raylaunch.errors import ConfigError

MODEL = {"model": {"path": "./m"}}


def config(**sections):
    return LaunchConfig.from_dict({**MODEL, **sections})


def refused(**sections):
    with pytest.raises(ConfigError) as caught:
        config(**sections)
    return caught.value


def test_defaults_of_every_section():
    made = config()
    assert (made.parallel.tensor_parallel_size, made.engine.kind, made.recovery.rebuilds) == (1, "reference", None)
    assert made.capture.granularity == "iteration"
    assert made.faults == ()


@pytest.mark.parametrize(
    ("sections", "key", "value", "right"),
    [
        ({"parallel": {"tensor_parallel_size": 0}}, "parallel.tensor_parallel_size", 0, "greater than 0"),
        ({"parallel": {"tensor_parallel_size": "two"}}, "parallel.tensor_parallel_size", "two", "valid integer"),
        ({"parallel": {"rendezvous_port": 70000}}, "parallel.rendezvous_port", 70000, "less than or equal to 65535"),
        ({"parallel": 2}, "parallel", 2, "dictionary"),
        ({"parallel": None}, "parallel", None, "dictionary"),
        ({"engine": "vllm"}, "engine.kind", "vllm", "'reference' or 'sglang'"),
        ({"engine": {"device": "tpu"}}, "engine.device", "tpu", "'auto', 'cpu' or 'cuda'"),
        ({"capture": {"prefill_tokens": [8, 8]}}, "capture.prefill_tokens", [8, 8], "named once"),
        ({"capture": {"prefill_tokens": []}}, "capture.prefill_tokens", [], "at least one shape"),
        ({"capture": {"decode_batch_sizes": [4, "x"]}}, "capture.decode_batch_sizes.1", "x", "integer"),
        ({"capture": {"granularity": "step"}}, "capture.granularity", "step", "'phase', 'shape' or 'iteration'"),
        ({"capture": {"compiler": "tvm"}}, "capture.compiler", "tvm", "'eager' or 'inductor'"),
        ({"engine": {"kv_tokens": 1}}, "engine.kv_tokens", 1, "auto or a number of tokens, at least 2"),
        ({"capture": {"verify_first": -1}}, "capture.verify_first", -1, "all or a number of shapes, at least 0"),
        ({"capture": {"verify_first": "some"}}, "capture.verify_first", "some", "all or a number of shapes"),
        ({"engine": {"kv_tokens": "all"}}, "engine.kv_tokens", "all", "auto or a number of tokens, at least 2"),
        ({"engine": {"max_context": 1}}, "engine.max_context", 1, "greater than or equal to 2"),
        ({"engine": {"memory_fraction": 1}}, "engine.memory_fraction", 1, "less than 1"),
        ({"communicator": {"max_bytes": 5000}}, "communicator.max_bytes", 5000, "multiple of 4096"),
        ({"communicator": {"max_bytes": 0}}, "communicator.max_bytes", 0, "greater than or equal to 4096"),
        ({"placement": {"strategy": "PACKED"}}, "placement.strategy", "PACKED", "'STRICT_PACK'"),
        (
            {"placement": {"resources_per_rank": {"CPU": 0}}},
            "placement.resources_per_rank.CPU",
            0,
            "greater than 0",
        ),
        (
            {"placement": {"resources_per_rank": {"CPU": math.inf}}},
            "placement.resources_per_rank.CPU",
            math.inf,
            "finite number",
        ),
        ({"deadlines": {"register": -1}}, "deadlines.register", -1, "greater than 0"),
        ({"deadlines": {"stretch": 0.5}}, "deadlines.stretch", 0.5, "greater than or equal to 1"),
        ({"name": "two words"}, "name", "two words", "match pattern"),
        ({"recovery": {"rebuilds": -1}}, "recovery.rebuilds", -1, "greater than or equal to 0"),
        ({"recovery": {"standby": 9}}, "recovery.standby", 9, "less than or equal to 8"),
        ({"recovery": {"standby": 1, "rebuilds": 0}}, "recovery.standby", 1, "must be 0 where recovery.rebuilds is 0"),
        ({"recovery": {"keep_weights": True, "rebuilds": 0}}, "recovery.keep_weights", True, "must be false where"),
        ({"model": {"path": "m", "load_format": "A b"}}, "model.load_format", "A b", "match pattern"),
        ({"recovery": {"standby": 1}, "debug": "cuda"}, "debug", "cuda", "must be off with recovery.standby"),
        ({"faults": [{"action": "explode"}]}, "faults.0.action", "explode", "'raise'"),
        ({"model": {"path": "m", "dtype": "int4"}}, "model.dtype", "int4", "'bfloat16'"),
        ({"model": {}}, "model.path", None, "is required"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_wrong_value_is_named(sections, key, value, right):
    error = refused(**sections)
    assert (error.key, error.value) == (key, value)
    assert right in error.expected
    assert str(error).startswith(f"{key} = {value!r}: ")


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"parallel": {"tensor_parallel_size": True}}, "parallel.tensor_parallel_size"),
        ({"parallel": {"nodes": True}}, "parallel.nodes"),
        ({"parallel": {"rendezvous_port": False}}, "parallel.rendezvous_port"),
        ({"engine": {"kv_tokens": True}}, "engine.kv_tokens"),
        ({"engine": {"max_context": True}}, "engine.max_context"),
        ({"engine": {"memory_fraction": True}}, "engine.memory_fraction"),
        ({"capture": {"prefill_tokens": [8, True]}}, "capture.prefill_tokens.1"),
        ({"communicator": {"max_bytes": True}}, "communicator.max_bytes"),
        ({"placement": {"resources_per_rank": {"GPU": True}}}, "placement.resources_per_rank.GPU"),
        ({"deadlines": {"load": True}}, "deadlines.load"),
        ({"deadlines": {"stretch": True}}, "deadlines.stretch"),
        ({"serve": {"port": False}}, "serve.port"),
        ({"serve": {"max_concurrent": True}}, "serve.max_concurrent"),
        ({"recovery": {"rebuilds": True}}, "recovery.rebuilds"),
        ({"recovery": {"standby": True}}, "recovery.standby"),
        ({"faults": [{"action": "kill", "rank": True}]}, "faults.0.rank"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_true_and_false_are_no_numbers(sections, key):
    error = refused(**sections)
    assert error.key == key
    assert isinstance(error.value, bool)
    assert "number" in error.expected


@pytest.mark.parametrize(
    ("action", "at", "right"),
    [
        ("kill", "captuer prefil", "must be connect, load, warmup, capture, register or verify"),
        ("kill", "serve now", "must be connect"),
        ("kill", "serve", "must be connect"),
        ("kill", "", "must be connect"),
        ("kill", "connect prefill", "must be connect"),
        ("kill", "register prefill 32", "must be connect"),
        ("kill", "capture 32", "must be connect"),
        ("kill", "capture prefill 032", "must be connect"),
        ("kill", "capture prefill 32 2 1", "must be connect"),
        ("extra_all_reduce", "capture prefill 32 1", "whatever the iteration: must be capture"),
        ("warm_again", "verify", "must be capture"),
        ("skip_registration", "verify", "skip_registration has a place of its own: leave at out"),
        ("zero_all_reduce", "verify", "must be capture"),
        ("other_version", "connect", "leave at out"),
    ],
)
def test_a_fault_where_it_never_happens_is_refused(action, at, right):
    error = refused(faults=[{"action": action, "at": at}])
    assert (error.key, error.value) == ("faults.0.at", at)
    assert right in error.expected


@pytest.mark.parametrize(
    ("action", "at"),
    [("kill", place) for place in ("connect", "load", "warmup", "capture", "register", "register decode", "verify")]
    + [("sleep", "capture decode"), ("sleep", "capture decode 8"), ("sleep", "capture decode 8 2")]
    + [("warm_again", "capture decode 2"), ("extra_all_reduce", "capture prefill"), ("free_recorded", "capture")]
    + [("zero_all_reduce", "capture"), ("stale_decode", "capture decode 2"), ("skip_registration", "capture")],
)
def test_a_fault_where_it_happens(action, at):
    assert config(faults=[{"action": action, "at": at}]).faults[0].at == at


def test_the_place_of_a_fault_is_put_in_order():
    assert config(faults=[{"action": "kill", "at": " Capture  prefill 8"}]).faults[0].at == "capture prefill 8"


def test_nodes_must_divide_the_ranks():
    error = refused(parallel={"tensor_parallel_size": 3, "nodes": 2})
    assert error.key == "parallel"
    assert error.expected == "nodes must divide tensor_parallel_size = 3"


def test_a_model_is_required():
    with pytest.raises(ConfigError, match=r"^here.yaml: model = None: is required$"):
        LaunchConfig.from_dict({}, source="here.yaml")


@pytest.mark.parametrize(
    ("sections", "key", "hint"),
    [
        ({"paralel": {}}, "paralel", "did you mean 'parallel'? "),
        ({"capture": {"prefil_tokens": [8]}}, "capture.prefil_tokens", "did you mean 'prefill_tokens'? "),
        ({"deadlines": {"registr": 3}}, "deadlines.registr", "did you mean 'register'? "),
        ({"faults": [{"action": "kill", "rnak": 1}]}, "faults.0.rnak", "did you mean 'rank'? "),
        ({"model": {"path": "m", "zzz": 1}}, "model.zzz", ""),
    ],
)
def test_an_unknown_key_brings_a_hint_and_the_known_ones(sections, key, hint):
    error = refused(**sections)
    assert error.key == key
    assert error.expected.startswith(f"unknown key; {hint}known here: ")
    assert not error.expected.endswith("known here: ")


def test_shapes_are_sorted():
    assert config(capture={"prefill_tokens": [128, 8, 32]}).capture.prefill_tokens == (8, 32, 128)


def test_a_section_may_be_given_by_its_kind():
    assert config(engine="sglang").engine.kind == "sglang"
    assert config(communicator="auto").communicator.kind == "auto"


def test_overriding_a_part_of_an_engine_given_by_name_keeps_the_name():
    data = apply_overrides({**MODEL, "engine": "sglang"}, ["engine.kv_tokens=64"])
    assert data["engine"] == {"kind": "sglang", "kv_tokens": 64}
    data = apply_overrides({**MODEL, "communicator": "auto"}, ["communicator.table_rows=64"])
    assert data["communicator"] == {"kind": "auto", "table_rows": 64}


def test_deadlines_by_phase_and_by_alias():
    deadlines = config(deadlines={"register": 7}).deadlines
    assert (deadlines.for_phase("REGISTER"), deadlines.for_phase("CAPTURE")) == (7.0, 60.0)
    assert deadlines.model_dump(by_alias=True)["register"] == 7


def test_a_section_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        config().parallel.nodes = 2


# ---- overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("capture.prefill_tokens=[128,1032]", lambda c: c.capture.prefill_tokens == (128, 1032)),
        ("capture.enabled=false", lambda c: c.capture.enabled is False),
        ("deadlines.register=2.5", lambda c: c.deadlines.register_ == 2.5),
        ("name=a-b", lambda c: c.name == "a-b"),
        ("engine=sglang", lambda c: c.engine.kind == "sglang"),
        ("communicator=library", lambda c: c.communicator.kind == "library"),
        ("faults=[{action: kill, rank: 1}]", lambda c: c.faults == (FaultConfig(action="kill", rank=1),)),
        ("placement.resources_per_rank={CPU: 2}", lambda c: c.placement.resources_per_rank == {"CPU": 2.0}),
        ("model.tokenizer=a=b", lambda c: c.model.tokenizer == "a=b"),
        ("model.revision=", lambda c: c.model.revision is None),
    ],
)
def test_override(override, value):
    before = config(recovery={"rebuilds": 2})
    after = before.override(override)
    assert value(after)
    assert after.recovery.rebuilds == 2
    assert before == config(recovery={"rebuilds": 2})


@pytest.mark.parametrize(
    ("override", "key", "text"),
    [
        ("capture", "--set", "must be KEY=VALUE"),
        ("=3", "--set", "must be KEY=VALUE"),
        ("capture..x=3", "--set", "must be KEY=VALUE"),
        ("capture.prefill_tokens=[1", "capture.prefill_tokens", "not readable as a YAML value"),
        ("capture={enabled: true, enabled: false}", "capture", "the key enabled is repeated"),
        ("capture.enabeld=true", "capture.enabeld", "did you mean 'enabled'?"),
        ("recovery.rebuilds=many", "recovery.rebuilds", "valid integer"),
    ],
)
def test_override_refused(override, key, text):
    with pytest.raises(ConfigError) as caught:
        config().override(override)
    assert caught.value.key == key
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"capture.enabled": False}, lambda c: c.capture.enabled is False),
        ({"capture.prefill_tokens": [8, 2]}, lambda c: c.capture.prefill_tokens == (2, 8)),
        ({"deadlines.register": 2.5, "deadlines.load": 7}, lambda c: c.deadlines.for_phase("REGISTER") == 2.5),
        ({"deadlines.register_": 2.5}, lambda c: c.deadlines.for_phase("REGISTER") == 2.5),
        ({"engine": "sglang", "engine.kv_tokens": "auto"}, lambda c: c.engine.kind == "sglang"),
        ({"engine.sglang.args": {"page_size": "1"}, "engine.sglang.args.a.b": True},
         lambda c: c.engine.sglang.args == {"page_size": "1", "a": {"b": True}}),
        ({"faults": [FaultConfig(action="kill", rank=1)]}, lambda c: c.faults == (FaultConfig(action="kill", rank=1),)),
        ({"serve.api_key": SecretStr("k=v")}, lambda c: c.serve.api_key.get_secret_value() == "k=v"),
        ({"environment.A": "no", "name": "on"}, lambda c: (c.environment["A"], c.name) == ("no", "on")),
        ({"model.revision": None, "serve": {}}, lambda c: c.model.revision is None),
        ({}, lambda c: c == config(recovery={"rebuilds": 2})),
    ],
)  # fmt: skip
def test_replace(changes, value):
    before = config(recovery={"rebuilds": 2})
    after = before.replace(changes)
    assert value(after)
    assert after.recovery.rebuilds == 2
    assert before == config(recovery={"rebuilds": 2})


@pytest.mark.parametrize(
    ("key", "given", "text"),
    [
        ("capture.enabeld", True, "did you mean 'enabled'?"),
        ("nowhere", 1, "unknown key"),
        ("", 1, "unknown key"),
        ("recovery.rebuilds", "many", "valid integer"),
        ("recovery.rebuilds", "1", "must be a value of type int"),
        ("recovery.rebuilds", True, "must be a number"),
        ("deadlines.load", "1.5", "must be a value of type float"),
        ("capture.enabled", "false", "must be a value of type bool"),
        ("engine.kv_tokens", "64", "must be auto or a number"),
        ("engine.max_context", "64", "must be a value of type int"),
        ("debug", "cpu", "'off' or 'cuda'"),
        ("serve.port", 70_000, "less than or equal to 65535"),
    ],
)
def test_replace_refused(key, given, text):
    with pytest.raises(ConfigError, match=text) as caught:
        config().replace({key: given})
    assert (caught.value.key, caught.value.value) == (key, given)


def test_the_last_override_wins_and_the_data_stay_as_they_were():
    data = {"model": {"path": "m"}}
    assert apply_overrides(data, ["model.path=x", "model.path=y"]) == {"model": {"path": "y"}}
    assert data == {"model": {"path": "m"}}


# ---- files


def test_a_relative_path_is_relative_to_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: ./models/m, tokenizer: ../t}\n")
    model = LaunchConfig.from_yaml(file).model
    assert (model.path, model.tokenizer) == (str(tmp_path / "models/m"), str(tmp_path.parent / "t"))


def test_a_hub_name_is_left_alone(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: Qwen/Qwen3-8B}\n")
    assert LaunchConfig.from_yaml(file, ["recovery.rebuilds=1"]).model.path == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"model: [", "not readable as YAML"),
        (b"\xff\xfe\xfa", "not readable as YAML"),
        (b"model: {path: m}\nserve:\n  port: 1\n  host: h\n  port: 2\n", "the key port is repeated"),
        (b"model: {path: m}\nname: a\nname: b\n", "line 3"),
        (b"- 1\n", "must hold a mapping of sections"),
        (b"", "must hold a mapping of sections"),
        (b"1: 2\nmodel: {path: m}\n", "keys should be strings"),
        (b"model: m\n", "model = 'm': input should be a valid dictionary"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, text):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        LaunchConfig.from_yaml(file)
    assert text in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_is_merged_in_may_be_replaced(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\nserve: {<<: {port: 1}, port: 2}\n")
    assert LaunchConfig.from_yaml(file).serve.port == 2


@pytest.mark.parametrize("name", ["nowhere.yaml", "qwen-0.5b", "/", "~nobody-of-this-name/c.yaml", "x" * 300])
def test_a_file_that_is_not_there(name):
    with pytest.raises(ConfigError, match=r"no such file; configurations that ship: .*tiny-cpu\.yaml"):
        LaunchConfig.from_yaml(name)


@pytest.mark.parametrize("name", ["tiny-cpu", "tiny-cpu.yaml", "configs/tiny-cpu.yaml"])
def test_a_shipped_configuration_is_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert LaunchConfig.from_yaml(name) == LaunchConfig.default()


def test_a_shipped_name_may_have_a_dot(tmp_path, monkeypatch):
    (tmp_path / "qwen-0.5b.yaml").write_text("model: {path: x/y}\n")
    monkeypatch.setattr("raylaunch.config.files.shipped_configs", lambda: tmp_path)
    assert LaunchConfig.from_yaml("qwen-0.5b").model.path == "x/y"


@pytest.mark.parametrize("file", sorted(shipped_configs().glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configurations_load(file):
    made = LaunchConfig.from_yaml(file)
    assert set(yaml.safe_load(file.read_text())) <= set(LaunchConfig.model_fields)
    assert LaunchConfig.from_dict(made.model_dump(by_alias=True)) == made
    if made.model.path.startswith("/"):
        assert (Path(made.model.path) / "config.json").is_file()


@pytest.mark.parametrize(
    ("given", "variable", "joined"),
    [
        (None, None, ""),
        (None, "", ""),
        (None, "local", ""),
        ("local", "10.0.0.1:6379", ""),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "local", "auto"),
    ],
)
def test_the_cluster_that_a_launch_joins(monkeypatch, given, variable, joined):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_to_join(given) == joined


def test_addresses_of_ray_client_are_refused(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have left
    with pytest.raises(
        ConfigError, match=r"placement\.address = 'ray://head:10001': is of Ray Client, which is not supported: run"
    ):
        LaunchConfig.default(["placement.address=ray://head:10001"])
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(
        ConfigError, match=r"RAY_ADDRESS = 'ray://head:10001': is of Ray Client, which is not supported: run"
    ):
        enter(None, 1, "raylaunch")
