"""One launch from configuration to ready, and its undoing: place, start the actors, drive them, or tear down."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError

from raylaunch.background import LOOK_S, Background, outlast
from raylaunch.cluster.placement import Placement, choose_device, cluster_nodes, place
from raylaunch.cluster.session import RaySession
from raylaunch.errors import LaunchError, shut_down
from raylaunch.frontends.base import Frontend, Meeting
from raylaunch.group import kernels
from raylaunch.group.debug import core_file, debug_environment
from raylaunch.group.driver import Driver, StepListener
from raylaunch.group.evidence import explain_failure
from raylaunch.group.fetch import fetch, wanted_of
from raylaunch.group.ranks import RankGroup
from raylaunch.group.runtime import EngineRuntime
from raylaunch.group.weights import by_node, require_loadable
from raylaunch.model_check import on_device
from raylaunch.package import package_files
from raylaunch.protocol import Gate, Phase
from raylaunch.report import Due, LaunchReport, RankPlace, Span
from raylaunch.resolved import ResolvedLaunch, variables_of_ranks

if TYPE_CHECKING:
    from raylaunch_actors.spec import RankSpec

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast needs a fabric manager that not every host lets a container reach; nothing here depends on it."""


ENGINES = ("reference", "sglang")
"""Programs that read a model's weights."""

GIVE_UP_S = 3.0  # for what was begun beside the ranks, once it is told that they are gone


@dataclass
class Launched:
    """A group that is ready. ``offer`` is what rank 0 handed out at the last gate: how to reach it; ``resolved`` says
    all that was decided."""

    group: RankGroup
    report: LaunchReport
    offer: Any = field(repr=False)  # secret
    resolved: ResolvedLaunch


def launch(
    resolved: ResolvedLaunch,
    report: LaunchReport,
    listener: StepListener = lambda *_: None,
    *,
    stopped: Callable[[], bool] = lambda: False,
    frontend: Frontend | None = None,
    runtime: EngineRuntime | None = None,
) -> Launched:
    """Takes a group through all its phases. Needs a Ray session.

    Args:
        report: filled while the launch goes on.
        listener: told before each step.
        stopped: asked all the time whether the launch is wanted no more.
        frontend: that requests will go through.
        runtime: of the engine that it is for, which hears of nodes that this launch finds lost; None for a launch by
            itself.
    Raises:
        LaunchError: with its cause and evidence, or because it was stopped; everything that was made has been given
            back.
        ConfigError: the named placement group does not exist, or the device cannot do what is asked.
    """
    config = resolved.config
    runtime = runtime or EngineRuntime.in_session(RaySession())
    report.group = name = f"{config.name}-{secrets.token_hex(3)}"
    with _ray_errors_named(), span(report, "placement"):
        if resolved.device == "auto":
            resolved = on_device(resolved, choose_device(config, cluster_nodes()))
        placement = place(resolved, name, runtime.lost_nodes, stopped)
    group = RankGroup(placement, session=runtime.session)
    preparing: list[Background] = []  # kernels, while ranks import and load
    failed = threading.Event()
    try:
        with _ray_errors_named():
            if resolved.program == "sglang":
                require_equal_shares(placement)
            if frontend is not None:
                resolved = replace(resolved, sockets=frontend.meet(meeting(placement)))
            with span(report, "actors"):
                wanted = wanted_of(resolved) if resolved.program in ENGINES else None
                specs = specs_of(resolved, placement, name)
                weights = by_node(resolved, placement) if resolved.program in ENGINES else {}
                runtime.keepers.make(weights, config.environment)

                def in_vain() -> bool:
                    return failed.is_set() or stopped()

                def prepare(agents: Mapping[str, Any]) -> None:
                    if wanted is not None:
                        with span(report, "fetch"):
                            fetch(agents, wanted, config, report, stopped)
                    if resolved.program == "sglang":
                        work = partial(kernels.prepare, agents, config, report, in_vain, runtime.session.current)
                        preparing.append(Background(work))
                    require_loadable(agents, weights, config.deadlines.place)
                    runtime.keepers.begin(config.deadlines.place, stopped)
                    report.kept = runtime.keepers.standing()

                started = group.start(specs, runtime.standby, stopped, prepare, resolved.preloaded)
            report.places = [
                RankPlace(
                    member.rank,
                    member.process.address,
                    member.process.pid,
                    resolved.device,
                    member.adopted,
                    member.process.since,
                )
                for member in group.members
                if member.process
            ]
            if not started.complete:
                raise explain_failure(group, started, None, Phase.PLACE, 0.0)

            def attach(offer: Any) -> None:
                if frontend is not None:
                    with span(report, "frontend", Phase.CONNECT):
                        _wait(Background(lambda: frontend.attach(offer)), Phase.CONNECT, stopped)

            def await_kernels(_: Any) -> None:
                for work in preparing:
                    with span(report, "kernels", Phase.WARMUP):
                        _wait(work, Phase.WARMUP, stopped, group.any_ended)  # which the next step explains

            at = {Gate.ATTACH: attach, Gate.LOADED: await_kernels}
            driver = Driver(group, resolved, report, listener, stopped, at)
            arrivals = driver.run()
            if resolved.program == "sglang":
                kernels.finish(group.agents)
        report.ready = time.time()
        return Launched(group, report, arrivals[0].offer, driver.resolved)
    except BaseException as error:
        failed.set()
        teardown = group.close(config.deadlines.shutdown)
        runtime.lost_nodes.update(group.lost_nodes)
        if isinstance(error, LaunchError):
            error.teardown = str(teardown)
        for work in preparing:  # its calls of Ray would start another session once this one is left
            outlast(work.done, GIVE_UP_S)
        raise


@contextmanager
def _ray_errors_named() -> Iterator[None]:
    """What Ray fails with, such as a node that is gone, becomes a LaunchError; it may pass, unless code raised it."""
    try:
        yield
    except RayError as error:
        retryable = not isinstance(error, RayTaskError)
        raise LaunchError(f"Ray failed: {type(error).__name__}: {error}", retryable=retryable) from error


def require_equal_shares(placement: Placement) -> None:
    """SGLang counts with as many ranks on each node. Raises LaunchError F13 where there are not."""
    shares = Counter((seat.node_id, seat.address) for seat in placement.seats)
    if len(set(shares.values())) > 1:
        text = ", ".join(f"{share} on node {address}" for (_, address), share in shares.items())
        raise LaunchError(f"ranks were placed {text}: the engine sglang has as many on each", "F13", "PLACE")


def meeting(placement: Placement) -> Meeting:
    """Where rank 0 is, as the driver sees it."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = any(node.node_id != here for node in cluster_nodes())
    return Meeting(placement.seats[0].node_id == here, ray.util.get_node_ip_address(), may_move=others)


def _wait(
    doing: Background, phase: Phase, stopped: Callable[[], bool], in_vain: Callable[[], bool] = lambda: False
) -> None:
    """Waits for what may take long, unless it is ``in_vain``. Raises what it raises, or that the launch is wanted no
    more."""
    while not doing.done(LOOK_S) and not in_vain():
        if stopped():
            raise shut_down(phase.name)
    doing.raise_if_failed()


def specs_of(resolved: ResolvedLaunch, placement: Placement, name: str) -> list[RankSpec]:
    """What each rank is told."""
    import ray
    from raylaunch_actors.spec import RankSpec

    config, device = resolved.config, resolved.device
    # Loopback is enough, and safer, as long as nobody outside this node has to connect.
    here = ray.get_runtime_context().get_node_id()
    alone = all(seat.node_id == here for seat in placement.seats)
    nodes = list(dict.fromkeys(seat.node_id for seat in placement.seats))
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if len(nodes) == 1 else {}
    if device == "cuda":
        environment.update(NO_MULTICAST)
    environment.update(variables_of_ranks(config))
    # Ranks have no need of the API key, nor of a handle of Ray's.
    told = vars(replace(resolved, config=config.replace({"serve": {}}), placement_group=None, preloaded=None))
    files = package_files()
    cores = [core_file(config, device, name, seat.rank) for seat in placement.seats]
    return [
        RankSpec(
            rank=seat.rank,
            local_rank=seat.local_rank,
            group=name,
            bind_host="127.0.0.1" if alone else seat.address,
            environment={**environment, **debug_environment(core)},
            core_file=core,
            driver_files=files,
            node=nodes.index(seat.node_id),
            nodes=len(nodes),
            **told,
        )
        for seat, core in zip(placement.seats, cores, strict=True)
    ]


@contextmanager
def span(report: LaunchReport, name: str, phase: Phase = Phase.PLACE) -> Iterator[None]:
    """Adds the time that the block takes to the report, as the driver's own work, which is due until then."""
    start = time.time()
    report.due = Due(phase, f"{phase.name} {name}", start, len(report.steps))
    try:
        yield
    finally:
        report.driver.append(Span(name, start, time.time(), phase))
