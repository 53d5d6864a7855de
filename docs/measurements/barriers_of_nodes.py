"""What a barrier costs when the driver calls every rank, and when it calls an agent on each node that steps its own.

    python docs/measurements/barriers_of_nodes.py measure FILE.json     # both ways in one launch, by turns
    python docs/measurements/barriers_of_nodes.py draw FILE.json FILE.svg   # simulates more nodes; needs matplotlib

The nodes are four Ray nodes of this machine, and all ranks share its cores: on a cluster the agents of different nodes
work at the same time, and the ranks of one node have cores of their own. The simulation takes every cost from here.
"""

from __future__ import annotations

import heapq
import json
import os
import pickle
import random
import sys
import tempfile
import time
from itertools import pairwise
from multiprocessing import Process
from pathlib import Path
from statistics import median
from typing import Any

NODES, PER_NODE = 4, 16
SIZES = (16, 32, 64, 128, 256, 512, 1024)
REPEAT = 200
ON_A_NODE = 8  # ranks, in the simulation


def measure(file: Path) -> None:
    """One launch whose barriers are taken by turns; then the parts of a barrier by themselves."""
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as folder:
        os.environ |= {"HOME": folder, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        from raylaunch.terminal.machine import describe_machine

        figures: dict[str, Any] = {"machine": describe_machine()}
        figures["agent_ms"] = {ranks: agent_times(ranks) for ranks in (1, 2, 4, 8, 16)}
        figures["driver_ms"] = {ranks: driver_time(ranks) for ranks in SIZES}
        figures |= barriers()
    figures["load_after"] = os.getloadavg()
    called, stepped = (median(figures[way]) for way in ("called_ms", "stepped_ms"))
    print(f"{NODES * PER_NODE} ranks on {NODES} nodes: called {called:.1f} ms, stepped {stepped:.1f} ms, "
          f"{stepped / called:.2f} times; load {figures['load_before'][0]:.1f}")  # fmt: skip
    file.write_text(json.dumps(figures, indent=1) + "\n")


def barriers() -> dict[str, Any]:
    """Barriers of both kinds in one launch, and what one call of Ray's takes the driver: to send, and to take in."""
    import ray
    from ray.cluster_utils import Cluster

    from raylaunch import LaunchConfig
    from raylaunch.benchmarks.launch import noop_config
    from raylaunch.group.launch import launch
    from raylaunch.group.stepping import Stepper
    from raylaunch.model.shape import ModelShape
    from raylaunch.protocol import Gate
    from raylaunch.report import LaunchReport
    from raylaunch.resolved import launch_of

    ways: list[bool] = []
    taken = Stepper.step

    def by_turns(self: Stepper, *arguments: Any) -> Any:
        ways.append(len(ways) % 2 == 0)
        nodes = self.nodes
        assert len(nodes) == NODES
        self.nodes = nodes if ways[-1] else {}
        try:
            return taken(self, *arguments)
        finally:
            self.nodes = nodes

    node = {"num_cpus": PER_NODE, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(NODES - 1):
        cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False)
    Stepper.step = by_turns  # type: ignore[method-assign]
    try:
        base = LaunchConfig.default([f"parallel.nodes={NODES}", f"parallel.tensor_parallel_size={NODES * PER_NODE}"])
        before = os.getloadavg()
        config = noop_config(base, NODES * PER_NODE).override("deadlines.place=300")
        done = launch(launch_of(config, ModelShape("none", 0, 0, 0, 0), "noop"), LaunchReport("x"))
        sent, heard = [], []
        for _ in range(30):
            began = time.perf_counter()
            calls = [member.actor.health.remote() for member in done.group.members]
            sent.append((time.perf_counter() - began) * 1e3 / len(calls))
            ray.get(calls)
            heard.append((time.perf_counter() - began) * 1e3 / len(calls) - sent[-1])
        done.group.close(30)
    finally:
        ray.shutdown()
        cluster.shutdown()
    steps = pairwise(zip(done.report.steps, ways, strict=True))
    took = [(way, (b.released - a.released) * 1e3) for (a, _), (b, way) in steps if b.step.gate is Gate.ITERATION]
    return {
        "load_before": before,
        "called_ms": [ms for way, ms in took if not way],
        "stepped_ms": [ms for way, ms in took if way],
        "send_ms": median(sent),
        "hear_ms": median(heard),
    }


def agent_times(ranks: int) -> list[float]:
    """Milliseconds in which an agent steps so many idle ranks, each a process, without Ray."""
    from raylaunch_actors.node_gates import NodeGates

    agent = NodeGates()
    address = agent.listen()
    processes = [Process(target=idle, args=(rank, address), daemon=True) for rank in range(ranks)]
    for process in processes:
        process.start()
    while len(agent._ranks) < ranks:
        time.sleep(0.01)
    leave, took = pickle.dumps(None), []
    for _ in range(REPEAT + 1):
        began = time.perf_counter()
        answer = agent.step(leave)
        took.append((time.perf_counter() - began) * 1e3)
        leave = pickle.dumps(release_after(pickle.loads(answer[0][1:])))
    for process in processes:
        process.kill()
        process.join()
    return took[1:]


def idle(rank: int, address: tuple[str, bytes]) -> None:
    """A rank that arrives again and again."""
    from raylaunch_actors.gate import RankGate
    from raylaunch_actors.node_gates import attach

    from raylaunch.protocol import Gate, IterationFacts, LaunchPlan

    gate = RankGate(rank, LaunchPlan(1))
    attach(gate, *address)
    for number in range(REPEAT + 2):
        gate.arrive(Gate.ITERATION, IterationFacts(), round="prefill", shape=number + 1, iteration=1)


def release_after(arrival: Any) -> Any:
    from raylaunch.protocol import Release

    return Release(arrival.step, (None,))


def driver_time(ranks: int) -> float:
    """Milliseconds of the driver's own for one barrier: reports unpacked, rules asked, the release packed."""
    from raylaunch.protocol import Arrival, Gate, IterationFacts, LaunchPlan, Protocol, RoundPlan

    plan = LaunchPlan(ranks, (RoundPlan("prefill", tuple(range(1, 11))),))
    protocol, took = Protocol(plan), []
    for step in plan.steps():
        if step.gate is Gate.CAPTURED:
            break
        facts = IterationFacts() if step.gate is Gate.ITERATION else None
        reports = [pickle.dumps(Arrival(rank, step, facts)) for rank in range(ranks)]
        if facts is None:  # the gates before CAPTURE want facts of their own, and are not measured
            protocol.history[step] = tuple(map(pickle.loads, reports))
            protocol._next += 1
            continue
        began = time.perf_counter()
        outcome = protocol.submit([pickle.loads(report) for report in reports])
        pickle.dumps(outcome)
        took.append((time.perf_counter() - began) * 1e3)
        assert protocol.violation is None, protocol.violation
    return median(took)


def simulated(figures: dict[str, Any], ranks: int, stepped: bool, draws: random.Random) -> float:
    """Milliseconds of one barrier: the driver sends calls one by one, and takes answers in as they come, one by one."""
    per_call = min(ON_A_NODE, ranks) if stepped else 1
    sends, hears = figures["send_ms"], figures["hear_ms"]
    now, answers = 0.0, []
    for _ in range(ranks // per_call):
        now += sends
        heapq.heappush(answers, now + (draws.choice(figures["agent_ms"][str(per_call)]) if stepped else 0.0))
    while answers:
        now = max(now, heapq.heappop(answers)) + hears
    return now + figures["driver_ms"][str(ranks)]


def draw(file: Path, plot: Path) -> None:
    """Simulates more ranks, adds that to the file, and draws it beside what was measured."""
    from raylaunch.benchmarks.plot import draw as drawn

    figures, draws = json.loads(file.read_text()), random.Random(1)
    ways = {"called one by one": False, f"stepped by agents, {ON_A_NODE} ranks on a node": True}
    lines = {
        f"simulated: {name}": [
            (ranks, median(simulated(figures, ranks, way, draws) for _ in range(REPEAT))) for ranks in SIZES
        ]
        for name, way in ways.items()
    }
    figures["simulated_ms"] = lines
    file.write_text(json.dumps(figures, indent=1) + "\n")
    ranks = NODES * PER_NODE
    lines["measured: called one by one"] = [(ranks, median(figures["called_ms"]))]
    name = f"measured: stepped by agents, {PER_NODE} on a node, 2 cores for all"
    lines[name] = [(ranks, median(figures["stepped_ms"]))]
    drawn(plot, lines, "One barrier, ranks idle", "ranks", "milliseconds")
    for name, points in lines.items():
        print(name, *(f"{ranks:.0f}: {ms:.1f} ms" for ranks, ms in points), sep="  ")


if __name__ == "__main__":
    command, *files = sys.argv[1:]
    {"measure": measure, "draw": draw}[command](*map(Path, files))
