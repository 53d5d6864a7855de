"""One launch from configuration to ready, and its undoing: place, start the actors, drive them, or tear down."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from raylaunch.cluster.placement import (
    Placement,
    choose_device,
    cluster_nodes,
    gpus_per_rank,
    place,
    request_for,
)
from raylaunch.cluster.session import RaySession
from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.errors import LaunchError
from raylaunch.group.debug import core_file, debug_environment
from raylaunch.group.driver import Driver, StepListener
from raylaunch.group.evidence import explain_failure
from raylaunch.group.fetch import fetch, wanted_of
from raylaunch.group.ranks import RankGroup
from raylaunch.model_check import check_device
from raylaunch.package import package_files
from raylaunch.protocol import LaunchPlan, Phase, Protocol, RoundPlan
from raylaunch.report import LaunchReport, RankPlace, Span
from raylaunch.sglang.sockets import SglangSockets

if TYPE_CHECKING:
    from raylaunch_actors.rank import RankSpec

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast needs a fabric manager that not every host lets a container reach; nothing here depends on it."""


ENGINES = ("reference", "sglang")
"""Programs that read a model's weights."""


@dataclass
class Launched:
    """A group that is ready. ``offer`` is what rank 0 handed out at the last gate: how to reach it."""

    group: RankGroup
    report: LaunchReport
    offer: Any = field(repr=False)  # secret


def plan_of(config: LaunchConfig) -> LaunchPlan:
    """The gates of a launch."""
    capture = config.capture
    if config.engine.kind == "sglang":
        return LaunchPlan(config.parallel.tensor_parallel_size, granularity=capture.granularity, rounds_from_ranks=True)
    rounds = (
        (RoundPlan("prefill", capture.prefill_tokens), RoundPlan("decode", capture.decode_batch_sizes))
        if capture.enabled
        else ()
    )
    world = config.parallel.tensor_parallel_size
    return LaunchPlan(world, rounds, capture.granularity, measures=config.communicator.kind == "auto" and world > 1)


def launch(
    config: LaunchConfig,
    report: LaunchReport,
    listener: StepListener,
    given: PlacementGroup | None = None,
    program: str = "reference",
    sockets: SglangSockets | None = None,
    avoid: set[str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    session: RaySession | None = None,
) -> Launched:
    """Takes a group through all its phases. Needs a Ray session.

    Args:
        report: filled while the launch goes on.
        listener: told before each step.
        given: a placement group to use and to leave alone.
        program: what the ranks run; an engine or, to measure the driver alone, ``noop``.
        sockets: where the engine ``sglang`` meets its tokenizer and detokenizer.
        avoid: ids of nodes not to use if others do; nodes that this launch finds lost are added.
        stopped: asked all the time whether the launch is wanted no more.
        session: that this process is in, abandoned if its head is found to be gone.
    Raises:
        LaunchError: with its cause and evidence, or because it was stopped; everything that was made has been given
            back.
        ConfigError: the named placement group does not exist, or the device cannot do what is asked.
    """
    name = f"{config.name}-{secrets.token_hex(3)}"
    with _ray_errors_named(), span(report, "placement"):
        device = choose_device(config, cluster_nodes())
        check_device(config, device)
        placement = place(config, request_for(config, device), name, given, avoid or (), stopped)
        placement.gpus_per_rank = gpus_per_rank(config, device)
    group = RankGroup(placement, session=session or RaySession())
    try:
        with _ray_errors_named():
            if sockets is not None:
                _meets_driver(placement)
            with span(report, "actors"):
                wanted = wanted_of(config) if program in ENGINES else None
                specs = specs_of(config, placement, name, device, program, sockets)

                def prepare(agents: Mapping[str, Any]) -> None:
                    if wanted is not None:
                        with span(report, "fetch"):
                            fetch(agents, wanted, config, report, stopped)

                started = group.start(specs, config.placement.namespace, stopped, prepare)
            report.places = [
                RankPlace(member.rank, member.process.address, member.process.pid, device)
                for member in group.members
                if member.process
            ]
            if not started.complete:
                raise explain_failure(group, started, None, Phase.PLACE, 0.0)
            arrivals = Driver(group, Protocol(plan_of(config)), config, report, listener, stopped).run()
        report.ready = time.time()
        return Launched(group, report, arrivals[0].offer)
    except BaseException as error:
        teardown = group.close(config.deadlines.shutdown)
        if avoid is not None:
            avoid |= group.lost_nodes
        if isinstance(error, LaunchError):
            error.teardown = str(teardown)
        raise


@contextmanager
def _ray_errors_named() -> Iterator[None]:
    """What Ray fails with, such as a node that is gone, becomes a LaunchError; it may pass, unless code raised it."""
    try:
        yield
    except RayError as error:
        retryable = not isinstance(error, RayTaskError)
        raise LaunchError(f"Ray failed: {type(error).__name__}: {error}", retryable=retryable) from error


def _meets_driver(placement: Placement) -> None:
    """The sockets of the engine ``sglang`` are files: rank 0 must run on the driver's node. Raises LaunchError F13."""
    import ray

    seat = placement.seats[0]
    if seat.node_id != ray.get_runtime_context().get_node_id():
        here = ray.util.get_node_ip_address()
        text = f"rank 0 was placed on node {seat.address} and the driver runs on {here}: with the engine sglang they "
        text += "share a node; start the driver there, such as with ray job submit --entrypoint-num-gpus 0 and a "
        text += "resource of that node"
        raise LaunchError(text, "F13", "PLACE")


def specs_of(
    config: LaunchConfig,
    placement: Placement,
    name: str,
    device: str,
    program: str,
    sockets: SglangSockets | None = None,
) -> list[RankSpec]:
    """What each rank is told."""
    import ray
    from raylaunch_actors.rank import RankSpec

    # Loopback is enough, and safer, as long as nobody outside this node has to connect.
    here = ray.get_runtime_context().get_node_id()
    alone = all(seat.node_id == here for seat in placement.seats)
    threads = str(config.engine.threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    if alone:
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    if device == "cuda":
        environment.update(NO_MULTICAST)
    environment.update(config.environment)
    files = package_files()
    cores = [core_file(config, device, name, seat.rank) for seat in placement.seats]
    return [
        RankSpec(
            rank=seat.rank,
            world_size=config.parallel.tensor_parallel_size,
            local_rank=seat.local_rank,
            nodes=placement.nodes,
            group=name,
            bind_host="127.0.0.1" if alone else seat.address,
            program=program,
            device=device,
            config=config.model_copy(update={"serve": ServeConfig()}),  # ranks have no need of the API key
            plan=plan_of(config),
            environment={**environment, **debug_environment(core)},
            core_file=core,
            sockets=sockets,
            driver_files=files,
        )
        for seat, core in zip(placement.seats, cores, strict=True)
    ]


@contextmanager
def span(report: LaunchReport, name: str, phase: Phase = Phase.PLACE) -> Iterator[None]:
    """Adds the time that the block takes to the report, as the driver's own work."""
    start = time.time()
    try:
        yield
    finally:
        report.driver.append(Span(name, start, time.time(), phase))
