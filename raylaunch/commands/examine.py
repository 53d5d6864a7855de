"""What a launch would use here and why, found out without launching."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raylaunch.errors import ConfigError, LaunchError, RankFault
from raylaunch.protocol.rules.common import count, human_bytes
from raylaunch.startup.preflight import preflight
from raylaunch.terminal.outcome import interruptible, signals_held

if TYPE_CHECKING:
    from raylaunch_actors.communicator.choice import Option

    from raylaunch.cluster.placement import Node
    from raylaunch.config import LaunchConfig


IMPORTED_BYTES = {"reference": 400 << 20, "sglang": 640 << 20}
"""What a process that has imported an engine has in memory on a CPU; with torch's libraries for GPUs it is more."""


@dataclass
class Examination:
    """What would be used, by name, in words; and what makes it impossible."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def examine(
    config: LaunchConfig,
    machine: dict[str, Any],
    nodes: Sequence[Node] | None,
    others: Mapping[str, Any] | None = None,
) -> Examination:
    """What a launch of ``config`` would use.

    Args:
        machine: of :func:`raylaunch.terminal.machine.describe_machine`.
        nodes: the cluster's; None where a launch starts a private one on this machine.
        others: the same of machines like those of other nodes, by address, or why that is not known, in words.
    """
    plan = Examination()
    try:
        preflight(config)
    except ConfigError as error:
        plan.problems.append(str(error))
    _examine_model(plan, config)
    device = _examine_placement(plan, config, machine, nodes)
    known = {address: one for address, one in (others or {}).items() if not isinstance(one, str)}
    # Ranks on GPUs are where those are: what this machine lacks says nothing then.
    ranks = next((one for one in (machine, *known.values()) if device == "cuda" and one["gpus"]), machine)
    _examine_communicator(plan, config, device, ranks["gpu_links"])
    available = None if nodes is not None else machine["memory"]["available"]
    _examine_standby(plan, config, available)
    _examine_kept_weights(plan, config, available)
    plan.facts["sglang"] = _sglang(machine["packages"]["sglang"])
    if config.engine.kind == "sglang":
        plan.problems += other_versions(machine, known)
    plan.problems += [f"node {address} {one}" for address, one in (others or {}).items() if isinstance(one, str)]
    return plan


def other_versions(machine: dict[str, Any], others: Mapping[str, dict[str, Any]]) -> list[str]:
    """Nodes on which the driver's SGLang would meet another one."""
    mine = machine["packages"]["sglang"] or "none"
    found = {address: one["packages"]["sglang"] or "none" for address, one in others.items()}
    return [f"node {where} has sglang {one}, and {mine} is here" for where, one in found.items() if one != mine]


def _sglang(version: str | None) -> str:
    from raylaunch.sglang.arguments import about, misfit
    from raylaunch.sglang.source import TESTED, installed_folder

    folder = installed_folder() if version else None
    return about(version, misfit(folder)) if version and folder else f"not installed; tested {' and '.join(TESTED)}"


def private_node(config: LaunchConfig, machine: dict[str, Any]) -> Node:
    """The one node of the private cluster that a launch would start here."""
    from raylaunch.cluster.placement import Node
    from raylaunch.resolved import request_for

    total = {"CPU": max(float(machine["cpus"]), request_for(config, "cpu").cpus)}
    if machine["gpus"]:
        total["GPU"] = float(len(machine["gpus"]))
    return Node("this-machine", machine["host"], total, total)


def _examine_model(plan: Examination, config: LaunchConfig) -> None:
    from raylaunch.model_check import check_model

    try:
        shape = check_model(config)
    except ConfigError as error:
        plan.facts["model"] = config.model.path
        plan.problems.append(str(error))
        return
    plan.facts["model"] = (
        f"{shape.architecture}, {shape.heads} heads, {shape.kv_heads} for keys and values, up to "
        f"{shape.max_positions} tokens ({config.model.path})"
    )


def _examine_placement(
    plan: Examination, config: LaunchConfig, machine: dict[str, Any], nodes: Sequence[Node] | None
) -> str:
    from raylaunch.cluster.placement import choose_device, impossible, show
    from raylaunch.model_check import check_device
    from raylaunch.resolved import plan_of, request_for

    where = [private_node(config, machine)] if nodes is None else list(nodes)
    device, world = choose_device(config, where), config.parallel.tensor_parallel_size
    gpus = sum(node.total.get("GPU", 0) for node in where)
    why = f"{gpus:g} GPUs for {world} ranks"
    if config.engine.device != "auto" or config.placement.resources_per_rank:
        why = "engine.device" if config.engine.device != "auto" else "placement.resources_per_rank"
    plan.facts["engine"] = f"{config.engine.kind} on {device} ({why})"
    try:
        if config.engine.device == "auto":
            check_device(config, device)
        request = request_for(config, device)
    except ConfigError as error:
        plan.problems.append(str(error))
        return device
    named = config.placement.placement_group
    if named is not None:
        plan.facts["placement"] = f"the placement group {named!r}"
    else:
        bundles = f"{len(request.bundles)} x [{show(request.bundles[0])}]"
        plan.facts["placement"] = f"{world} ranks, {request.strategy} {bundles}"
        if impossible_because := impossible(request, where):
            plan.problems.append(f"placement: {impossible_because}")
    plan.facts["shapes"] = _shapes(config)
    steps = plan_of(config)
    count = f"{len(list(steps.steps()))}{' and those of its shapes' if steps.rounds_from_ranks else ''}"
    plan.facts["barriers"] = f"{count}, before every {config.capture.granularity} of CAPTURE"
    return device


def _examine_standby(plan: Examination, config: LaunchConfig, available: int | None) -> None:
    """The memory of spare ranks. ``available`` are bytes of this machine, if all of them will be here."""
    number = config.recovery.standby * config.parallel.tensor_parallel_size * config.parallel.replicas
    if not number:
        return
    each = IMPORTED_BYTES[config.engine.kind]
    plan.facts["standby"] = f"{count(number, 'rank')}, at least {human_bytes(each)} of memory each"
    if available is not None and number * each > available:
        text = f"recovery.standby = {config.recovery.standby} takes {human_bytes(number * each)} of memory or more"
        plan.problems.append(f"{text}, and {human_bytes(available)} are available")


def _examine_kept_weights(plan: Examination, config: LaunchConfig, available: int | None) -> None:
    """The memory of weights that are kept. ``available`` are bytes of this machine, if all of it will be here."""
    if not config.recovery.keep_weights:
        return
    from raylaunch_actors.weight_keeper import weight_files_of

    from raylaunch.model.load_formats import weights_of

    try:
        weights = weights_of(config, range(config.parallel.tensor_parallel_size))
        size = sum(file.stat().st_size for file in weight_files_of(weights))
    except (LookupError, RankFault, OSError, ValueError):  # which is a problem of the model's
        size = 0
    plan.facts["kept weights"] = f"{human_bytes(size)} of memory on a node" if size else "their files are not here"
    if available is not None and size > available:
        text = f"recovery.keep_weights takes {human_bytes(size)} of memory"
        plan.problems.append(f"{text}, and {human_bytes(available)} are available")


def _shapes(config: LaunchConfig) -> str:
    """What will be captured, as far as the configuration says so."""
    capture = config.capture
    told = config.engine.kind != "sglang"  # it takes its own where the configuration has none
    rounds = (("prefill", "prefill_tokens"), ("decode", "decode_batch_sizes"))
    texts = [
        f"{name} {_listed(getattr(capture, key)) if told or key in capture.model_fields_set else 'as SGLang chooses'}"
        for name, key in rounds
    ]
    padded = "; ".join(texts)
    return padded if capture.enabled else f"{padded}; eager, nothing is captured"


def _examine_communicator(
    plan: Examination, config: LaunchConfig, device: str, links: Sequence[dict[str, Any]]
) -> None:
    """Asks the ranks' own code: what it says here it will say in a launch, as far as it can be known before one."""
    world = config.parallel.tensor_parallel_size
    if config.engine.kind == "sglang":
        kind = config.communicator.kind
        plan.facts["all-reduce"] = "SGLang's choice" if kind in ("custom", "auto") else f"SGLang's {kind}"
        return
    if device == "cuda" and not links:
        plan.facts["all-reduce"] = "decided when the ranks meet: this machine's NVML knows no GPUs"
        return
    nodes = [str(rank * config.parallel.nodes // world) for rank in range(world)]
    try:
        from raylaunch_actors.communicator.choice import choose

        options = _gpu_options(config, nodes, links) if device == "cuda" else _cpu_options(config, nodes)
        choice = choose(config.communicator.kind, options, world)
    except (ImportError, OSError) as error:
        plan.problems.append(f"what runs in a rank cannot be imported: {error}")
    except RankFault as fault:
        plan.problems.append(f"all-reduce: {fault}")
    else:
        plan.facts["all-reduce"] = f"{' or '.join(choice.kinds)} ({choice.reason})"


def _gpu_options(config: LaunchConfig, nodes: Sequence[str], links: Sequence[dict[str, Any]]) -> tuple[Option, ...]:
    """With this machine's GPUs, in order, a rank on each or several sharing one; no memory is taken on them."""
    from raylaunch_actors.communicator.choice import gpu_options
    from raylaunch_actors.communicator.sgl_kernel import GpuOffer
    from raylaunch_actors.communicator.topology import GpuPlace

    reason = "" if importlib.util.find_spec("sgl_kernel") else "No module named 'sgl_kernel'"
    found, share = b"" if not reason else None, config.placement.resources_per_rank.get("GPU", 1.0)
    places = [GpuPlace(**links[int(rank * min(share, 1.0)) % len(links)]) for rank in range(len(nodes))]
    limit = config.communicator.max_bytes
    return gpu_options([GpuOffer(r, "", place, limit, found, found, reason) for r, place in enumerate(places)], nodes)


def _cpu_options(config: LaunchConfig, nodes: Sequence[str]) -> tuple[Option, ...]:
    """With an offer of real memory."""
    from raylaunch_actors.communicator.arena import Arena, host_identity, open_segment
    from raylaunch_actors.communicator.choice import cpu_options
    from raylaunch_actors.communicator.shared_memory import ShareOffer

    limit, host = config.communicator.max_bytes, ""
    handle, reason, arena = None, "", None
    try:
        host = host_identity()
        arena = Arena.create("doctor", 2 * limit)
        open_segment("doctor", arena.handle())
        handle = arena.handle()
    except (RankFault, OSError) as error:
        reason = str(error)
    finally:
        if arena is not None:
            arena.close()
    offers = [ShareOffer(rank, host, platform.machine(), limit, handle, reason) for rank in range(len(nodes))]
    return cpu_options(offers, nodes)


def cluster_of(config: LaunchConfig) -> tuple[str, list[Node] | None, str, Mapping[str, Any]]:
    """The Ray cluster that a launch would join: its address, its nodes, what is wrong with the placement group named,
    and what the machines of its nodes have, one of each kind that is not this one's.

    ``("", None, ..., {})`` if it would start a private one.

    Raises:
        ConfigError: the address is one of Ray Client.
        LaunchError: no cluster answers there.
    """
    from raylaunch.config.address import cluster_to_join

    address = cluster_to_join(config.placement.address)
    named = config.placement.placement_group
    if not address:
        expected = "a private cluster has no placement groups; give placement.address or RAY_ADDRESS"
        return "", None, str(ConfigError("placement.placement_group", named, expected)) if named else "", {}
    from raylaunch.cluster.machines import ask_each_kind
    from raylaunch.cluster.placement import choose_device, cluster_nodes, require_named_group
    from raylaunch.cluster.session import enter
    from raylaunch.terminal.machine import describe_machine

    with interruptible():
        session = enter(address, 0, config.placement.namespace)
        try:
            nodes, trouble = cluster_nodes(), ""
            try:
                require_named_group(config, choose_device(config, nodes))
            except (ConfigError, LaunchError) as error:
                trouble = str(error)
            return address, nodes, trouble, ask_each_kind(nodes, describe_machine)
        except Exception as error:
            raise LaunchError(f"the Ray cluster at {address!r} does not answer: {error}", phase="PLACE") from error
        finally:
            with signals_held():
                session.close()


def _listed(shapes: Sequence[int]) -> str:
    text = ", ".join(map(str, shapes[:8]))
    return text if len(shapes) <= 8 else f"{text}, ... {shapes[-1]} ({len(shapes)} shapes)"
