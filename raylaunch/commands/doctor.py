"""``raylaunch doctor``: what is here, and whether a launch could work."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.errors import ConfigError, LaunchError
from raylaunch.terminal.launch_options import Launch
from raylaunch.terminal.outcome import LAUNCH_FAILED, reported
from raylaunch.terminal.printed import say

if TYPE_CHECKING:
    from raylaunch.cluster.placement import Node
    from raylaunch.commands.examine import Examination


def doctor(
    launch: Launch,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what this machine or cluster has, and what a launch would use and why; launch nothing.

    Exits with 1 and a list of problems where the launch could not work.
    """
    with reported():
        wanted = launch.config()
        from raylaunch.commands.examine import cluster_of, examine
        from raylaunch.config.address import VARIABLE
        from raylaunch.terminal.machine import describe_machine

        machine = describe_machine()
        unreachable = trouble = ""
        address: str = wanted.placement.address or os.environ.get(VARIABLE, "")
        nodes: list[Node] | None
        others: Mapping[str, Any] = {}
        try:
            address, nodes, trouble, others = cluster_of(wanted)
        except LaunchError as error:
            nodes, unreachable = [], error.summary
        except ConfigError as error:
            nodes, unreachable = [], str(error)
        plan = examine(wanted, machine, None if unreachable else nodes, others)
        if unreachable:
            plan.problems.insert(0, unreachable)
        if trouble and trouble not in plan.problems:
            plan.problems.append(trouble)
        if as_json:
            cluster = {"address": address, "nodes": [asdict(node) for node in nodes or ()], "machines": others}
            everything = {"machine": machine, "cluster": cluster, "launch": plan.facts, "problems": plan.problems}
            say(json.dumps(everything, indent=2, default=dict))
        else:
            say("\n".join(show(machine, address, nodes, wanted.name, plan, others)))
        if plan.problems:
            raise typer.Exit(LAUNCH_FAILED)


def show(
    machine: dict[str, Any],
    address: str,
    nodes: Sequence[Node] | None,
    name: str,
    plan: Examination,
    others: Mapping[str, Any],
) -> list[str]:
    """Everything as lines for people."""
    lines = [f"machine{', the driver' if others else ''}", *_rows(machine_facts(machine))]
    lines += ["packages", *_rows({key: value or "not installed" for key, value in machine["packages"].items()})]
    if nodes is None:
        lines += ["cluster", "  none given (RAY_ADDRESS, placement.address): a launch starts a private one here"]
    else:
        from raylaunch.cluster.placement import show as amounts

        lines += [f"cluster {address}", *(f"  node {node.address}  {amounts(_shown(node.total))}" for node in nodes)]
    for where, one in others.items():
        facts = {"": one} if isinstance(one, str) else {**machine_facts(one), "sglang": one["packages"]["sglang"]}
        lines += [f"machine of node {where}, and of those like it", *_rows(facts)]
    lines += [f"launch of {name}", *_rows(plan.facts)]
    lines += ["problems", *(f"  {problem}" for problem in plan.problems or ("none",))]
    return lines


def machine_facts(machine: dict[str, Any]) -> dict[str, str]:
    """The machine in words."""
    from raylaunch_actors.communicator.topology import GpuPlace, in_words

    shm, memory, gpus = machine["shm"], machine["memory"], machine["gpus"]
    places = [GpuPlace(**place) for place in machine["gpu_links"]]
    links = {"GPU links": in_words(places) if places else "NVML does not say"} if gpus else {}
    return {
        "host": f"{machine['host']}, {machine['platform']}",
        "Python": machine["python"],
        "CPUs": f"{machine['cpus']}, {machine['cpus_usable']:g} usable",
        "memory": f"{_gib(memory['available'])} available of {_gib(memory['total'])}",
        "/dev/shm": f"{_gib(shm['free'])} free of {_gib(shm['total'])}" if shm["total"] else "none",
        "memfd": f"does not work: {shm['memfd']}" if shm["memfd"] else "works",
        "GPUs": "; ".join(f"{gpu['name']}, {gpu['memory']}, driver {gpu['driver']}" for gpu in gpus)
        or f"none ({machine['gpus_from']})",
        **links,
    }


def _rows(facts: Mapping[str, str | None]) -> list[str]:
    width = max(map(len, facts))
    return [f"  {key:<{width}}  {value or 'none'}" for key, value in facts.items()]


def _shown(resources: Any) -> dict[str, float]:
    """A node's resources without those that only name it; memory in GiB."""
    named = {key: value for key, value in resources.items() if not key.startswith("node:")}
    return {
        f"GiB {key}" if "memory" in key else key: round(value / (1 << 30), 1) if "memory" in key else value
        for key, value in named.items()
    }


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
