"""The seams in the SGLang that is installed. Skipped, with the reason, where none is."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import sys
import types

import pytest
import zmq
from raylaunch_actors.sglang_engine import communicators, hooked, rounds, seams, versions, warmup
from raylaunch_actors.sglang_engine import faults as sglang_faults
from raylaunch_actors.sglang_engine.hooks import Hooks

from raylaunch.config import FaultConfig, shipped_configs
from raylaunch.errors import RankFault
from raylaunch.sglang.arguments import IN_PIECES, PIECE_COMPILER, misfit
from raylaunch.sglang.source import installed_folder, known_arguments
from raylaunch.wire import CurveKeys

if importlib.util.find_spec("sglang") is None:
    pytest.skip("sglang is not installed", allow_module_level=True)


GIVEN = {
    "model_path": str(shipped_configs() / "models" / "tiny-adder"), "tp_size": 2, "device": "cpu",
    "attention_backend": "torch_native",
}  # fmt: skip


@pytest.fixture(autouse=True)
def weak_references(monkeypatch):
    """SGLang's module of that name cannot be imported without a GPU, and is not looked at here."""
    import torch

    if not torch.cuda.is_available():
        for package in ("compilation", "model_executor.runner_backend_utils"):  # the second since 0.5.22
            name = f"sglang.srt.{package}.weak_ref_tensor"
            module = types.ModuleType(name)
            module.weak_ref_tensors = lambda tensors: tensors
            monkeypatch.setitem(sys.modules, name, module)


def without_groups(monkeypatch, package):
    """Since 0.5.21 graph backends take their group of ranks from what is published, and not from the model's runner."""
    for name in ("breakable", "full"):
        module = importlib.import_module(f"{package}.{name}_cuda_graph_backend")
        monkeypatch.setattr(module, "get_parallel", lambda: types.SimpleNamespace(tp_group=None), raising=False)


def every():
    another_node = types.SimpleNamespace(keys=CurveKeys(b"", b"", b""))
    one = rounds.Rounds(types.SimpleNamespace(rank=0, device="cuda", sockets=another_node), None)
    made = seams.all_seams(one)
    for action, make in sglang_faults.INJECTIONS.items():
        made += make(FaultConfig(action=action))
    return made


@pytest.mark.parametrize("seam", every(), ids=str)
def test_the_seam_is_there(seam):
    import torch

    if seam.hook.module.endswith("custom_all_reduce_ops") and not torch.cuda.is_available():
        pytest.skip("SGLang defines it with a GPU only")
    hooks = Hooks()
    hooks.install([seam])
    hooks.remove()


def test_what_is_looked_for_in_the_source_is_there():
    """Names and parameters, of both sides; what the source says is what ``inspect`` does."""
    assert misfit(installed_folder()) == []
    loaded = importlib.import_module(hooked.CAPTURE_ONE[-1].module)
    signature = inspect.signature(loaded.FullCudaGraphBackend.capture_one)
    assert ", ".join(signature.parameters) == hooked.CAPTURE_ONE[-1].parameters


def test_a_custom_all_reduce_that_could_not_be_set_up_is_not_active(monkeypatch):
    """SGLang keeps it, and sets no attribute of it but ``disabled``."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.distributed.device_communicators import custom_all_reduce

    monkeypatch.setattr(custom_all_reduce.ops, "IS_CUSTOM_AR_AVAILABLE", False)
    made = custom_all_reduce.CustomAllreduce(None, 0)
    monkeypatch.setattr(parallel_state, "_TP", types.SimpleNamespace(ca_comm=made))
    assert communicators.custom_all_reduces() == [made]
    assert communicators.active() == []
    assert communicators.pending() == 0


def test_f18_why_there_is_no_custom_all_reduce(monkeypatch):
    from sglang.srt.distributed.device_communicators import custom_all_reduce_utils as utils

    monkeypatch.setattr(utils, "in_the_same_node_as", lambda group, source_rank: [True])
    for name, value in {"get_backend": "gloo", "get_rank": 0, "get_world_size": 3}.items():
        monkeypatch.setattr(utils.dist, name, lambda *_, value=value, **__: value)
    with communicators.SetUpLog() as said:
        assert utils.can_use_custom_all_reduce_with_nvlink(None, None, [2, 4], "CustomAllreduce") is None
    wanted = "CustomAllreduce is disabled due to an unsupported world size: 3. Supported world sizes: [2, 4]"
    assert said.reason(off=False) == wanted


def test_parsers_are_found_as_sglangs_launcher_finds_them(tmp_path):
    """A scheduler takes no ``auto``."""
    template = tmp_path / "chat.jinja"
    template.write_text("{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{%- endif %}")
    auto = {"reasoning_parser": "auto", "tool_call_parser": "auto"}
    args = versions.server_args({**GIVEN, **auto, "chat_template": str(template)})
    assert [versions.value(args, name) for name in auto] == ["qwen3", "qwen"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"is_embedding": True}, "only models that generate"),
        ({"moe_a2a_backend": "deepep"}, "settled on ep_size = 2"),  # and every rank would load the first experts
        ({"moe_dp_size": 2}, "SGLang refuses its server arguments"),
    ],
)
def test_what_a_launch_cannot_do_with_settled_arguments(more, said):
    versions.server_args(GIVEN)
    with pytest.raises(RankFault, match=said):
        versions.server_args({**GIVEN, **more})


@pytest.mark.parametrize("asked", ["full", "breakable", "tc_piecewise"])
def test_the_backend_that_captures_decode(asked, monkeypatch):
    """SGLang may make another one than it was asked for; iterations are planned before it is made."""
    from sglang.srt.model_executor.runner_backend import utils
    from sglang.srt.runtime_context import get_exec, publish

    if asked == IN_PIECES and PIECE_COMPILER not in known_arguments(installed_folder()):
        pytest.skip("this version makes no pieces any more")
    graphs = types.SimpleNamespace(decode=types.SimpleNamespace(backend=asked))
    args = types.SimpleNamespace(cuda_graph_config=graphs, enable_memory_saver=False, debug_cuda_graph=False)
    model_runner = types.SimpleNamespace(server_args=args, device="cuda", tp_group=None)
    publish(versions.server_args(GIVEN), role="scheduler")
    without_groups(monkeypatch, hooked.BACKENDS)
    with get_exec().graph.override(cuda_graph_config=graphs):
        made = utils.resolve_decode_backend(types.SimpleNamespace(model_runner=model_runner, device_module=None))
    assert type(made).__name__.lower().startswith(versions.graph_backend(graphs, "decode"))


@pytest.mark.parametrize(("name", "inside"), [("Breakable", True), ("Full", False)])
def test_kernels_are_built_as_for_the_smallest_capture(name, inside, monkeypatch):
    """SGLang's own backend, and its runner's own way to one shape, without a model."""
    from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner
    from sglang.srt.model_executor.runner_backend_utils import breakable_cuda_graph

    ran, calls = [], []
    device = types.SimpleNamespace(synchronize=lambda: calls.append("synchronize"))
    module = importlib.import_module(f"{hooked.BACKENDS}.{name.lower()}_cuda_graph_backend")
    without_groups(monkeypatch, hooked.BACKENDS)
    model = types.SimpleNamespace(tp_group=None, model=None, req_to_token_pool=None)
    runner = types.SimpleNamespace(
        capture_num_tokens=[8, 4, 16],
        device_module=device,
        model_runner=model,
        enable_cp_v2_bcg_capture=False,
        enable_cp_bcg_capture=False,
        _capture_lora=False,
        _is_full_backend=name == "Full",
        _init_forward_metadata_for_capture=lambda batch, _: calls.append(f"metadata for {batch.tokens}"),
        _run_forward=lambda batch, tokens: ran.append((tokens, breakable_cuda_graph.is_in_breakable_cuda_graph())),
    )
    attention = types.SimpleNamespace(
        init_forward_metadata_out_graph=lambda batch, in_capture: calls.append(f"metadata for {batch.tokens}")
    )
    runner.capture_prepare = lambda tokens: (
        types.SimpleNamespace(lora_ids=None, global_num_tokens_gpu=None, tokens=tokens), attention
    )  # fmt: skip
    runner.capture_one_shape = functools.partial(PrefillCudaGraphRunner.capture_one_shape, runner)
    runner.backend = getattr(module, f"{name}CudaGraphBackend")(runner)
    warmup.build_kernels(runner)
    assert ran == [(4, inside)]
    assert calls == ["metadata for 4", "synchronize"]
    assert "capture_one" not in vars(runner.backend)
    assert runner.backend._graphs == {}
    assert not breakable_cuda_graph.is_in_breakable_cuda_graph()


def test_a_rank_on_another_node_hears_nobody_but_its_driver():
    """Not who listens where the driver did, with no keys or with others."""
    server, public = zmq.curve_keypair(), zmq.curve_keypair()
    theirs, peers = zmq.Context(), zmq.Context()

    def connected(context, kind, url, bind):
        one = context.socket(kind)
        one.connect(url)
        return one

    sockets, _ = seams.socket_seams(CurveKeys(server[0], *public))
    pull = sockets.wrap(connected)
    said = []
    for secret in (None, zmq.curve_keypair()[1], server[1]):
        push = peers.socket(zmq.PUSH)
        if secret is not None:
            push.curve_server, push.curve_secretkey = True, secret
        url = f"tcp://127.0.0.1:{push.bind_to_random_port('tcp://127.0.0.1')}"
        rank = pull(theirs, zmq.PULL, url, False)
        push.sndtimeo = 5000 if secret == server[1] else 0
        with contextlib.suppress(zmq.Again):  # nobody is there who would hear it
            push.send(b"a pickle")
        said.append(rank.poll(5000 if secret == server[1] else 300))
    assert said == [0, 0, zmq.POLLIN]
    assert theirs.sockopts == {}
    for context in (theirs, peers):
        context.destroy(linger=0)


def test_loads_go_to_another_node_by_an_encrypted_socket():
    made = []
    _, loads = seams.socket_seams(CurveKeys(zmq.curve_keypair()[0], *zmq.curve_keypair()))
    loads.wrap(lambda *_: made.append(zmq.Context.instance().socket(zmq.PUSH)))("port arguments")
    assert made[0].mechanism == zmq.CURVE
    made[0].close()
    assert zmq.Context.instance().sockopts == {}
