"""SGLang's way through the phases: a rank builds SGLang's scheduler, which the hooks stop at the gates, and serves.

All of it happens on one thread: the current device, gradient mode and what Dynamo guards belong to a thread.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raylaunch.config import ModelConfig
from raylaunch.errors import RankFault
from raylaunch.model import hub
from raylaunch.protocol import Gate, ReadyFacts, RoundName, VerifyFacts
from raylaunch.sglang.arguments import server_arguments
from raylaunch.sglang.source import installed_version
from raylaunch.wire import SGLANG_VERIFY, SglangSettled
from raylaunch_actors.communicator.process_group import StoreServer, open_store
from raylaunch_actors.crashes import take_handlers_back
from raylaunch_actors.device import identity, memory_in_use, rank_device
from raylaunch_actors.fingerprint import fingerprint, own_folder
from raylaunch_actors.gate import RankGate
from raylaunch_actors.interfaces import in_words
from raylaunch_actors.progress import compilers_work, importing, reported
from raylaunch_actors.sglang_engine import environment, hooked, seams, versions
from raylaunch_actors.sglang_engine.hooks import Hooks
from raylaunch_actors.sglang_engine.rounds import Rounds
from raylaunch_actors.spec import RankSpec

metrics = environment.kept_metrics


def imports(spec: RankSpec) -> Iterator[str]:
    """SGLang's scheduler, which has nearly all in it, and what else is hooked; none of its models, of which some open a
    CUDA context when they are imported (0.5.17)."""
    environment.prepare_imports(spec)
    yield from (hooked.SCHEDULER, "sglang.srt.parser.template_detection", environment.KEY_OF_KERNELS)
    if spec.device == "cuda":
        yield from dict.fromkeys(one.module for one in hooked.EVERY)


def run(spec: RankSpec, gate: RankGate) -> None:
    """Launches, then serves until it is stopped. An exception ends this rank."""
    store = meet(spec, gate)
    hooks = Hooks()
    try:
        with importing(gate, "sglang"):
            before = dict(os.environ)
            args = versions.server_args(server_arguments(spec.config, spec.nodes, spec.node, spec.revision))
            rounds = Rounds(spec, gate)
            hooks.install(seams.all_seams(rounds))
        take_handlers_back()
        mine = settled(args, before)
        require_alike(gate.arrive(Gate.ATTACH, offer=mine).offers[0].texts, mine.texts)
        gate.progress(f"joining its group{f' over {one}' if (one := in_words(spec)) else ''}")
        with reported(gate, None, compilers_work):  # wherever a kernel is compiled, that is no hang
            scheduler = versions.make_scheduler(spec, args)
        rounds.warmed()  # where nothing is captured, no round has said so
        verify(gate, rounds)
        versions.watch_unless_paused(scheduler)
        counters = versions.SchedulerCounters(scheduler, compilers_work)
        gate.read_counters = counters.read
        take_handlers_back()  # kernels' libraries have been loaded since
        facts = ReadyFacts(rounds.pieces.count(), memory_in_use(rank_device(spec)))
        gate.arrive(Gate.READY, facts, offer=scheduler.get_init_info())
        hooks.remove()
        verify_on_demand(rounds, scheduler, hooks, counters)
        serve(spec, scheduler, gate.stop_requested)
    finally:
        hooks.remove()
        if store is not None:
            store.close()  # NCCL's watchdog asks it as long as the rank lives


def settled(args: Any, before: Mapping[str, str]) -> SglangSettled:
    """What SGLang has made of its arguments here, where the GPUs are: rank 0's is for the driver too.

    Args:
        before: this process's variables before that.
    """
    variables = {
        name: value for name, value in os.environ.items() if name.startswith("SGLANG_") and before.get(name) != value
    }
    return SglangSettled(versions.resolved_arguments(args), pickle.dumps(args), variables, installed_version())


def meet(spec: RankSpec, gate: RankGate) -> StoreServer | None:
    """MEET: says who it is before anything slow is imported; rank 0 binds the store. Raises RankFault F09, F10."""
    _ask_the_hub(spec, gate)
    prints = fingerprint(spec, model_folder(spec.config.model, spec.revision))
    environment.prepare(spec)  # after the fingerprint, as some of it differs from rank to rank, and before CUDA
    device = rank_device(spec)
    store = None
    if spec.rank == 0:
        parallel, deadlines = spec.config.parallel, spec.config.deadlines
        store = open_store(spec.bind_host, parallel.rendezvous_port, deadlines.connect)
    release = gate.arrive(Gate.MEET, identity(spec, device, prints), offer=store.address if store else None)
    versions.use_store(release.offers[0])
    return store


def model_folder(model: ModelConfig, revision: str | None) -> Path:
    """The model's on this node, of a Hub model that of its cache, which need not be there yet. Raises RankFault."""
    if (folder := own_folder(model.path)) is not None:
        return folder
    folder = Path(model.path).expanduser()
    with suppress(ValueError):  # no name on the Hub, but of another store that SGLang knows
        return folder if folder.is_dir() else hub.cached(model.path, revision) or folder
    return folder


def _ask_the_hub(spec: RankSpec, gate: RankGate) -> None:
    """Where the Hub does not answer SGLang reads the cache, and does not try for each file by itself."""
    path = spec.config.model.path
    if Path(path).expanduser().is_dir():
        return
    gate.progress(f"asking the Hub for {path}")
    with suppress(ValueError):  # no name on the Hub, but of another store that SGLang knows
        if hub.ask(path, spec.revision).commit is None and hub.cached(path, spec.revision) is not None:
            hub.go_offline()


def require_alike(theirs: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Every rank schedules for itself: by other settings it would run other batches. Raises RankFault F19."""
    if difference := versions.unlike(theirs, here):
        raise RankFault("F19", f"SGLang has settled arguments differently on rank 0 and here: {difference}")


def verify(gate: RankGate, rounds: Rounds) -> None:
    """VERIFY: each shape that is due is replayed and compared with eager. The driver's side sends the real request."""
    from raylaunch_actors.sglang_engine.verify import verify_shapes

    verdicts = verify_shapes(rounds)
    gate.arrive(Gate.VERIFIED, VerifyFacts(verdicts, (), rounds.pieces.count()))


def verify_on_demand(rounds: Rounds, scheduler: Any, hooks: Hooks, counters: versions.SchedulerCounters) -> None:
    """Lets the driver have the other shapes verified, by a call that SGLang's scheduler makes on all ranks in step."""
    from raylaunch_actors.sglang_engine.verify import verify_later

    def verify(round_name: RoundName, shape: int) -> None:
        gate, counters.verifying = rounds.gate, True
        try:
            hooks.install(seams.all_seams(rounds))
            try:
                verdicts = verify_later(rounds, scheduler, round_name, shape)
            finally:
                hooks.remove()
            gate.arrive(Gate.LATER, VerifyFacts(verdicts, (), rounds.pieces.count()), round=round_name, shape=shape)
        except Exception as error:  # SGLang would log it and go on
            gate.fail(error)
            raise SystemExit(1) from error
        finally:
            counters.verifying = False

    setattr(scheduler, SGLANG_VERIFY, verify)


def serve(spec: RankSpec, scheduler: Any, stop: threading.Event) -> None:
    """SGLang's own loop, until it is told to stop."""

    def leave() -> None:
        stop.wait()
        versions.leave_loop(scheduler)

    threading.Thread(target=leave, name="raylaunch-stop", daemon=True).start()
    rank_device(spec)  # current on this thread; SGLang sets it for its own loop too
    scheduler.run_event_loop()
