"""What surrounds SGLang in a rank: its variables, its caches, and settings that all ranks share."""

from __future__ import annotations

import dataclasses
import os
import types
from urllib.parse import urlsplit

import prometheus_client
import pytest
from raylaunch_actors import kernel_cache
from raylaunch_actors.sglang_engine import environment, launch, versions

from raylaunch import LaunchConfig
from raylaunch.errors import RankFault
from raylaunch.group.launch import NO_MULTICAST
from raylaunch.model.shape import ModelShape
from raylaunch.sglang.arguments import IMPLEMENTATION
from raylaunch.sglang.environment import switches

MODEL = ModelShape("QwenForCausalLM", max_positions=0, vocab_size=0, heads=0, kv_heads=0)


def spec(*overrides, rank=1):
    return types.SimpleNamespace(
        config=LaunchConfig.default(overrides),
        group="g",
        rank=rank,
        sockets=None,
        nodes=1,
        shape=MODEL,
    )


@pytest.mark.parametrize(("address", "host"), [("10.0.0.4:4000", "10.0.0.4"), ("fd00::4:4000", "fd00::4")])
def test_torch_finds_the_store_by_its_address(address, host, monkeypatch):
    override, agent = "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE", ("USE_AGENT_STORE", "RESTART_COUNT")
    for name in (override, "MASTER_ADDR", "MASTER_PORT", *(f"TORCHELASTIC_{one}" for one in agent)):
        monkeypatch.setenv(name, "")  # and as it was, afterwards
    versions.use_store(address)
    read = urlsplit(os.environ[override])
    assert (read.scheme, read.hostname, read.port) == ("tcp", host, 4000)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (host, "4000")


@pytest.mark.parametrize(("kind", "value"), [("sgl_kernel", "0"), ("jit", "1"), ("custom", None), ("library", None)])
def test_the_implementation_is_chosen_by_a_variable(kind, value):
    assert environment.variables(spec(f"communicator.kind={kind}")).get(IMPLEMENTATION) == value


def test_ranks_that_share_a_gpu_look_like_two_hosts_to_nccl():
    shared = [environment.variables(spec("placement.resources_per_rank={GPU: 0.5}", rank=rank)) for rank in (0, 1)]
    assert shared[0]["NCCL_HOSTID"] != shared[1]["NCCL_HOSTID"]
    assert "NCCL_HOSTID" not in environment.variables(spec())


def test_caches_lie_in_one_folder_for_a_set_of_versions(tmp_path, monkeypatch):
    mine = spec(f"engine.sglang.cache_dir={tmp_path}")
    first = environment.variables(mine)
    assert {first[name].startswith(str(tmp_path)) for name in environment.CACHES} == {True}
    monkeypatch.setattr(kernel_cache, "package_version", lambda name: "other")
    assert environment.variables(mine)["TRITON_CACHE_DIR"] != first["TRITON_CACHE_DIR"]


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    names = environment.variables(spec()).keys()
    for name in names:
        monkeypatch.setenv(name, str(tmp_path / name))
    environment.prepare(spec())
    assert environment.os.environ["NCCL_CUMEM_ENABLE"] == str(tmp_path / "NCCL_CUMEM_ENABLE")


@pytest.mark.parametrize(
    ("arguments", "nvls", "cumem", "no_multicast"),
    [
        ("{}", "0", "0", "1"),
        ("{enable_nccl_nvls: true}", "1", "0", "1"),
        ("{enable_symm_mem: true}", "1", "1", "1"),
        ("{enable_symm_mem: false, enable_torch_symm_mem: true}", "0", "0", "0"),
    ],
)
def test_what_an_argument_asks_of_nccl_and_torch_is_not_undone(
    arguments, nvls, cumem, no_multicast, tmp_path, monkeypatch
):
    mine = spec(f"engine.sglang.args={arguments}", f"engine.sglang.cache_dir={tmp_path}")
    monkeypatch.setattr(os, "environ", dict(NO_MULTICAST))  # as every rank with a GPU is started
    environment.prepare(mine)
    names = ("NCCL_NVLS_ENABLE", "NCCL_CUMEM_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST")
    assert [os.environ[name] for name in names] == [nvls, cumem, no_multicast]


def test_what_differs_from_rank_to_rank_is_set_once_it_is_known_which_this_is(tmp_path, monkeypatch):
    settings = f"engine.sglang.cache_dir={tmp_path}", "placement.resources_per_rank={GPU: 0.5}"
    monkeypatch.setattr(os, "environ", {})
    environment.prepare_imports(spec(*settings, rank=0))
    assert "TRITON_CACHE_DIR" in os.environ
    environment.prepare(spec(*settings, rank=1))
    assert os.environ["NCCL_HOSTID"] == "g-1"


@pytest.mark.parametrize(
    ("theirs", "here", "said"),
    [
        ({"page_size": "1"}, {"page_size": "1", "port": "30000"}, ""),
        ({"page_size": "1", "port": "1"}, {"page_size": "16", "port": "1"}, "page_size (1 and 16)"),
        ({"page_size": "1"}, {}, "page_size (1 and None)"),
    ],
)
def test_arguments_that_were_settled_differently_are_named(theirs, here, said):
    assert versions.unlike(theirs, here) == said


def test_sets_among_settled_arguments_read_alike_in_every_process():
    """Such as ``lora_target_modules``: the order of names in a set hangs on the process's hash seed."""
    one, other = {0, 8}, {8, 0}
    assert repr(one) != repr(other)
    arguments = dataclasses.make_dataclass("Arguments", ["lora_target_modules"])
    assert (
        versions.resolved_arguments(arguments(one))
        == versions.resolved_arguments(arguments(other))
        == {"lora_target_modules": "[0, 8]"}
    )
    assert versions.resolved_arguments(arguments(frozenset(other))) == {"lora_target_modules": "[0, 8]"}


def test_a_rank_does_not_go_on_with_other_settings_than_rank_0():
    launch.require_alike({"page_size": "1"}, {"page_size": "1"})
    with pytest.raises(RankFault, match=r"chunked_prefill_size \(2048 and 4096\)") as caught:
        launch.require_alike({"chunked_prefill_size": "2048"}, {"chunked_prefill_size": "4096"})
    assert caught.value.code == "F19"


def test_only_sglang_sees_its_own_variables_on_the_driver(monkeypatch):
    monkeypatch.setenv("SGLANG_A", "1")
    with switches({"SGLANG_A": "2", "SGLANG_B": "3", "NCCL_DEBUG": "INFO"}):
        assert (os.environ["SGLANG_A"], os.environ["SGLANG_B"]) == ("2", "3")
        assert "NCCL_DEBUG" not in os.environ
    assert os.environ["SGLANG_A"] == "1"
    assert "SGLANG_B" not in os.environ


def test_figures_are_shared_with_the_driver_where_its_folder_is(tmp_path):
    mine = spec("engine.sglang.args={enable_metrics: true}")
    assert environment.metrics_environment(mine) == {}
    mine.sockets = types.SimpleNamespace(metrics_folder=str(tmp_path), keys=None)
    assert environment.metrics_environment(mine) == {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    mine.sockets.metrics_folder = str(tmp_path / "of another node")
    assert environment.metrics_environment(mine) == {}
    mine.sockets = types.SimpleNamespace(metrics_folder=str(tmp_path), keys=("of rank 0", "on another node"))
    assert environment.metrics_environment(mine) == {}


def test_figures_that_the_driver_cannot_read_are_kept_for_whoever_asks(monkeypatch):
    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    prometheus_client.Counter("sglang:tokens", "Sampled.", ("tp_rank",), registry=registry).labels("0").inc(3)
    prometheus_client.Gauge("python_threads", "Not SGLang's.", registry=registry)
    (kept,) = launch.metrics()
    assert (kept.name, kept.type) == ("sglang:tokens", "counter")
    assert [(one.name, one.labels, one.value) for one in kept.samples] == [("sglang:tokens_total", {"tp_rank": "0"}, 3)]
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "of the driver")
    assert launch.metrics() == []
