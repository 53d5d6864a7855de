"""How all-reduces are timed: what stands between two marks, and what is made of their times."""

from __future__ import annotations

import time

import pytest
import torch
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs.probes import CALLS, QUEUED, WARM, Probes, enqueue, median_microseconds

from tests.communicator.test_link import NoInputs


@pytest.mark.parametrize(
    ("times", "microseconds"),
    [
        ([0.0, 40e-6], 4.0),
        ([0.0, 90e-6, 130e-6, 170e-6], 4.0),  # the first run waited for a peer
        ([5.0, 5.00004, 5.00008, 5.001, 5.00104], 4.0),  # the host paused once
        ([0.0, 40e-6, 100e-6], 6.0),
        ([0.0, 60e-6, 100e-6, 160e-6, 200e-6], 6.0),
    ],
)
def test_the_median_of_the_differences_counts(times, microseconds):
    assert median_microseconds(times, 10) == pytest.approx(microseconds)


class Stream:
    """A device that does nothing until somebody waits for it."""

    def __init__(self):
        self.enqueued, self.done, self.order = 0, 0, []

    def run(self):
        self.enqueued += 1
        self.order.append("run")
        assert self.enqueued - self.done <= QUEUED

    def mark(self):
        return Mark(self)


class Mark:
    def __init__(self, stream):
        self.stream = stream

    def record(self):
        self.place = self.stream.enqueued
        self.stream.order.append("mark")

    def synchronize(self):
        self.stream.done = max(self.stream.done, self.place)
        self.stream.order.append("wait")


@pytest.mark.parametrize("repeats", [1, QUEUED, QUEUED + 1, 5 * QUEUED])
def test_runs_are_enqueued_back_to_back_and_not_too_many(repeats):
    stream = Stream()
    enqueue(stream.run, [stream.mark() for _ in range(repeats + 1)])
    assert [what for what in stream.order if what != "wait"] == ["mark", *["run", "mark"] * repeats]
    assert "wait" not in stream.order[: 1 + 2 * min(repeats, QUEUED)]
    assert stream.order.count("wait") == 1 + max(0, repeats - QUEUED)
    assert stream.done == stream.enqueued == repeats


@pytest.mark.parametrize(("registers", "graphs", "kept"), [(False, True, 0), (True, True, 64), (True, False, 0)])
def test_inputs_stay_allocated_only_where_they_are_registered(registers, graphs, kept):
    communicator = SingleRank()
    communicator.registration = NoInputs() if registers else None
    probes = Probes({"single": communicator}, (32, 64), torch.float32, torch.device("cpu"))
    if graphs:
        probes.capture()
    probes.measure(probes.graph("single", 64) if graphs else probes.eager("single", 64), 1)
    assert nbytes_of(probes) == 64
    probes.drop_graphs()
    assert nbytes_of(probes) == kept


def nbytes_of(probes):
    return sum(x.nbytes for x in probes._inputs.values())


def test_on_a_cpu_runs_are_timed_one_by_one():
    runs = []

    def run():
        runs.append(None)
        time.sleep(0.001)

    taken = Probes({}, (), torch.float32, torch.device("cpu")).measure(run, 3)
    assert len(runs) == WARM + 3
    assert 1000 / CALLS["cpu"] <= taken < 1e6
