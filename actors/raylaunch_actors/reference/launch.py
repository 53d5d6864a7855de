"""The reference engine's way through the phases: what a rank does between two gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from raylaunch.protocol import (
    Gate,
    IterationFacts,
    LoadFacts,
    ReadyFacts,
    RegisterFacts,
    RoundPlan,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.wire import Verify
from raylaunch_actors.communicator.base import AllReduce, pending_inputs, register_inputs, registered_inputs
from raylaunch_actors.device import memory_in_use, rank_device
from raylaunch_actors.gate import RankGate
from raylaunch_actors.graphs import ops
from raylaunch_actors.graphs.backend import GraphBackend
from raylaunch_actors.graphs.capture import CaptureRunner
from raylaunch_actors.graphs.recorded import RecordedGraphs
from raylaunch_actors.graphs.split import CompiledOnce, CompilePiece, PieceBackend
from raylaunch_actors.reference.capture_facts import captured, recorded_by_shape, replays_of
from raylaunch_actors.reference.connect import GROUP, Connection, connect
from raylaunch_actors.reference.hub import model_folder
from raylaunch_actors.reference.kv_cache import KVCache
from raylaunch_actors.reference.limits import Limits
from raylaunch_actors.reference.link_setup import DTYPES
from raylaunch_actors.reference.memory import free_memory, limits_of
from raylaunch_actors.reference.model import LoadedModel, load_model
from raylaunch_actors.reference.runner import ModelRunner
from raylaunch_actors.reference.scheduler import Scheduler
from raylaunch_actors.reference.verify import answer_one_request, verify_shape, verify_shapes
from raylaunch_actors.reference.worker import FollowerWorker, RankZeroWorker, Worker
from raylaunch_actors.spec import RankSpec

LATE_IMPORTS = ("torch._dynamo.repro.after_dynamo", "transformers.modeling_layers", "transformers.masking_utils")
"""What torch and transformers import when a model is made and compiled."""
UNUSED_NAMED = 3  # of a checkpoint's tensors that the model has no place for


def imports(_: RankSpec) -> tuple[str, ...]:
    """What is imported only where it is used."""
    return LATE_IMPORTS


def run(spec: RankSpec, gate: RankGate) -> None:
    """Launches, then serves until it is stopped. An exception ends this rank and frees its peers."""
    torch.set_num_threads(spec.config.engine.threads)
    path = model_folder(spec.config.model, spec.revision, gate, weights=False)
    with Connection(spec, path) as connection:
        communicator = connect(connection, gate)
        with _peers_freed_on_failure(gate, communicator):
            loaded, limits = load(spec, gate)
            runner, capture = warm_up(spec, gate, loaded, limits, communicator)
            for plan in spec.plan.rounds:
                capture_round(gate, plan, capture, communicator)
            worker = make_worker(runner, connection)
            verify(spec, gate, runner, capture, worker)
            gate.read_counters = lambda: asdict(worker.counters)
            facts = ReadyFacts(len(graphs_of(capture)), memory_in_use(runner.device))
            gate.arrive(Gate.READY, facts, offer=connection.rendezvous.sockets)
            worker.serve(gate.stop_requested)


def load(spec: RankSpec, gate: RankGate) -> tuple[LoadedModel, Limits]:
    """LOAD: this rank's part of the weights, and the sizes that all ranks have room for.

    Raises:
        RankFault: the checkpoint cannot be had or does not fit the model, or the model leaves no room for a request.
    """
    model = spec.config.model
    path = model_folder(model, spec.revision, gate, weights=True)
    loaded = load_model(
        path,
        spec.rank,
        spec.world_size,
        rank_device(spec),
        dtype=DTYPES.get(model.dtype),
        group=GROUP,
        load_format="dummy" if model.load_format == "dummy" else "safetensors",
        trust_remote_code=model.trust_remote_code,
        progress=lambda name: gate.progress(f"loading {name}"),
    )
    report = loaded.report
    facts = LoadFacts(
        report.tensors,
        report.parameter_bytes,
        report.bytes_read,
        str(loaded.facts.dtype).removeprefix("torch."),
        len(report.unused),
        report.unused[:UNUSED_NAMED],
    )
    offers = gate.arrive(Gate.LOADED, facts, offer=free_memory(rank_device(spec))).offers
    return loaded, limits_of(spec, loaded.facts, offers)


def warm_up(
    spec: RankSpec, gate: RankGate, loaded: LoadedModel, limits: Limits, communicator: AllReduce
) -> tuple[ModelRunner, CaptureRunner]:
    """WARMUP: allocates the cache, and compiles the model into pieces; nothing is captured."""
    facts = loaded.facts
    device = rank_device(spec)
    cache = KVCache(facts.layers, limits.capacity, facts.kv_heads, facts.head_dim, facts.dtype, device)
    runner = ModelRunner(loaded, cache, limits, device, communicator)
    runner.prepare()
    if not spec.plan.rounds:
        gate.arrive(Gate.WARMED, WarmupFacts(pieces=0, compiles=0, kv_tokens=cache.capacity, kv_bytes=cache.nbytes))
        return runner, CaptureRunner(communicator, runner.dummy, {})
    gate.progress("compiling the model")
    graphs = graph_backend(device, communicator)
    addresses = runner.fixed_addresses()
    compile_piece = piece_compiler(spec.config.capture.compiler)
    compiled = CompiledOnce(loaded.inner, PieceBackend(graphs, addresses, compile_piece, gate.progress))
    whole = runner.whole_decode(graphs, addresses, compiled if compile_piece else None)
    runner.compile(compiled, whole)
    pieces = {"prefill": compiled.pieces, "decode": (whole,) if whole else compiled.pieces}
    capture = CaptureRunner(communicator, runner.dummy, pieces, memory=graphs.memory)
    row = facts.hidden_size * facts.dtype.itemsize
    inputs = sum(communicator.inputs_for(shape * row) for plan in spec.plan.rounds for shape in plan.shapes)
    gate.arrive(
        Gate.WARMED,
        WarmupFacts(
            pieces=len(compiled.pieces),
            whole_rounds=("decode",) if whole else (),
            compiles=compiled.backend.compiles,
            planned_inputs=loaded.report.all_reduces * inputs,
            graphs=len(graphs_of(capture)),
            replays=replays_of(capture),
            kv_tokens=cache.capacity,
            kv_bytes=cache.nbytes,
        ),
    )
    return runner, capture


def graph_backend(device: torch.device, communicator: Any) -> GraphBackend:
    """CUDA graphs on a GPU; graphs recorded and replayed operation by operation on a CPU."""
    if device.type == "cuda":
        from raylaunch_actors.graphs.cuda import CudaGraphs

        return CudaGraphs(communicator, device)
    return RecordedGraphs(communicator)


def piece_compiler(name: str) -> CompilePiece | None:
    """What ``capture.compiler`` names; None leaves pieces as they are."""
    if name == "eager":
        return None
    from raylaunch_actors.graphs.inductor import compile_piece

    return compile_piece


def capture_round(gate: RankGate, plan: RoundPlan, capture: CaptureRunner, communicator: AllReduce) -> None:
    """CAPTURE and REGISTER of one round. The driver compares what ranks recorded before it lets them exchange it."""

    def before(_round: str, shape: int, iteration: int) -> None:
        facts = IterationFacts(recorded_by_shape(pending_inputs(communicator)), replays_of(capture))
        gate.arrive(Gate.ITERATION, facts, round=plan.name, shape=shape, iteration=iteration)

    capture.capture(plan.name, plan.shapes, before)
    facts = captured(plan, capture, communicator)
    release = gate.arrive(Gate.CAPTURED, facts, round=plan.name, offer=pending_inputs(communicator))
    register_inputs(communicator, release.offers)
    registered = RegisterFacts(len(pending_inputs(communicator)), registered_inputs(communicator), replays_of(capture))
    gate.arrive(Gate.REGISTERED, registered, round=plan.name)


def make_worker(runner: ModelRunner, connection: Connection) -> Worker:
    """The serve loop of this rank."""
    if connection.follower is not None:
        return FollowerWorker(runner, connection.follower)
    return RankZeroWorker(runner, Scheduler(runner.limits), connection.sockets)


def verify(spec: RankSpec, gate: RankGate, runner: ModelRunner, capture: CaptureRunner, worker: Worker) -> None:
    """VERIFY: each shape that is due replayed and compared with eager, then one real request through the serve loop,
    which verifies the others when it is told to."""
    plan, compiled = spec.plan, bool(spec.plan.rounds) and spec.config.capture.compiler != "eager"
    verdicts = verify_shapes(runner, capture, gate.progress, compiled=compiled, due=plan.verified_first)
    tokens = answer_one_request(worker, runner.limits)
    gate.arrive(Gate.VERIFIED, VerifyFacts(verdicts, tokens, len(graphs_of(capture))))

    def later(one: Verify) -> None:
        verdict = verify_shape(runner, capture, one.round, one.shape, compiled)
        facts = VerifyFacts({f"{one.round} {one.shape}": verdict}, graphs=len(graphs_of(capture)))
        gate.arrive(Gate.LATER, facts, round=one.round, shape=one.shape)

    worker.verify = later


def graphs_of(capture: CaptureRunner) -> list[tuple[str, str, int]]:
    """Every graph that exists: piece, round, shape."""
    return [(piece.name, *key) for piece in capture.pieces for key in piece.graphs()]


@contextmanager
def _peers_freed_on_failure(gate: RankGate, communicator: AllReduce) -> Iterator[None]:
    """Reports a failure before anything else, then ends the waits of the ranks that would wait for this one."""
    ops.bind_group(GROUP, communicator)
    try:
        yield
    except BaseException as error:
        gate.fail(error)
        communicator.abort()
        raise
    finally:
        ops.unbind_group(GROUP)
