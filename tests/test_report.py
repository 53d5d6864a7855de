"""The report of a launch: times by phase and rank, as a table, as plain data and as a trace."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raylaunch.protocol import CommunicatorFacts, Gate, LaunchPlan, MeasuredSize, Phase, RoundPlan, Route, Step
from raylaunch.report import LaunchReport, RankPlace, Span, StepRecord
from tests.protocol.builders import DECODE, MEASURING, PLAN, arrivals

START = 1_700_000_000.0


def report_of(plan=PLAN, started=START):
    """A launch in which rank r works 1 + r seconds towards each gate, and a release takes 0.1 s."""
    report = LaunchReport("tiny", started=started)
    report.places = [RankPlace(rank, f"10.0.0.{rank}", 10 + rank, "cpu") for rank in range(plan.world_size)]
    report.driver = [Span("placement", started, started + 1), Span("actors", started + 1, started + 3)]
    now = started + 3
    for step in plan.steps():
        ranks = [replace(one, started=now, arrived=now + 1 + one.rank) for one in arrivals(plan, step)]
        now += plan.world_size + 0.1
        report.steps.append(StepRecord(step, tuple(ranks), now))
    report.ready = now
    return report


def test_times():
    report = report_of()
    assert [round(report.busy(rank, Phase.CONNECT), 3) for rank in (0, 1)] == [3.0, 6.0]
    assert round(report.elapsed(Phase.PLACE), 3) == 3.0
    assert round(report.elapsed(Phase.CONNECT), 3) == 6.3
    assert round(sum(report.elapsed(phase) for phase in Phase), 3) == round(report.seconds, 3)
    assert {round(cost, 3) for cost in report.step_costs()} == {0.1}


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        (Phase.PLACE, "2 ranks on 2 nodes"),
        (Phase.CONNECT, "all-reduce: sgl_kernel, messages up to 8.0 MiB (peers can map memory)"),
        (Phase.LOAD, "40 tensors per rank, 1.0 MiB held, 1.0 MiB read"),
        (Phase.WARMUP, "3 pieces, 1 of them eager, 1 compile; KV cache of 8,192 tokens, 64.0 MiB"),
        (Phase.CAPTURE, "prefill 8, 32; decode 2, 4; 2 iterations; 8 barriers; 46.0 MiB per rank"),
        (Phase.REGISTER, "12 all-reduce inputs per rank, none pending"),
        (Phase.VERIFY, "4 shapes, 8 graphs: replay equals eager (within 1e-06), ranks agree"),
    ],
)
def test_what_a_phase_brought(phase, what):
    assert report_of().describe(phase) == what


def test_shapes_that_are_left_and_verified_later():
    plan = replace(PLAN, rounds=(RoundPlan("prefill", (8, 16, 24, 32)), DECODE), verify_first=0)
    report = report_of(plan)
    assert report.unverified == ()
    report.shapes = tuple(f"{name} {shape}" for name, shape in plan.shapes)
    report.steps = [
        replace(one, arrivals=tuple(replace(a, facts=first_of(plan, a.facts)) for a in one.arrivals))
        if one.step.gate is Gate.VERIFIED
        else one
        for one in report.steps
    ]
    assert report.unverified == ("prefill 24", "prefill 16")
    what = "4 shapes, 8 graphs: replay equals eager (within 1e-06), ranks agree; 2 shapes left for when no request runs"
    assert report.describe(Phase.VERIFY) == what
    assert report.to_dict()["shapes"] == {"verified": 4, "left": ["prefill 24", "prefill 16"]}
    step = Step(Gate.LATER, "prefill", 24)
    report.steps.append(StepRecord(step, tuple(arrivals(plan, step)), report.ready + 9))
    assert report.unverified == ("prefill 16",)
    assert report.describe(Phase.VERIFY).endswith("ranks agree; 1 shape left for when no request runs")
    assert round(sum(report.elapsed(phase) for phase in Phase if phase is not Phase.SERVE), 3) == round(
        report.seconds, 3
    )


def first_of(plan, facts):
    first = {f"{name} {shape}" for name, shape in plan.shapes if plan.verified_first(name, shape)}
    return replace(facts, shapes={name: one for name, one in facts.shapes.items() if name in first})


@pytest.mark.parametrize(
    ("unused", "names", "said"),
    [
        (1, ("mtp.fc.weight",), "the model has no place for 1 tensor of the checkpoint: mtp.fc.weight"),
        (9, ("a", "b", "c"), "the model has no place for 9 tensors of the checkpoint: a, b, c and 6 more"),
    ],
)
def test_the_weights_dtype_and_what_of_the_checkpoint_is_not_used(unused, names, said):
    report = report_of()
    for index, record in enumerate(report.steps):
        if record.step.gate is Gate.LOADED:
            facts = replace(record.arrivals[0].facts, dtype="bfloat16", unused=unused, unused_names=names)
            ranks = tuple(replace(one, facts=facts) for one in record.arrivals)
            report.steps[index] = replace(record, arrivals=ranks)
    assert report.describe(Phase.LOAD) == f"40 tensors per rank of bfloat16, 1.0 MiB held, 1.0 MiB read; {said}"


@pytest.mark.parametrize(("registered", "left"), [(0, 12), (10, 2)])
def test_inputs_that_were_registered_to_be_measured_are_not_the_models(registered, left):
    report = report_of(MEASURING)
    for index, record in enumerate(report.steps):
        if record.step.gate is Gate.PROBED:
            ranks = tuple(replace(one, offer=("input",) * 10) for one in record.arrivals)
            report.steps[index] = replace(record, arrivals=ranks)
        if record.step.gate is Gate.CONNECTED:
            ranks = tuple(replace(one, facts=replace(one.facts, registered=registered)) for one in record.arrivals)
            report.steps[index] = replace(record, arrivals=ranks)
    assert report.describe(Phase.REGISTER) == f"{left} all-reduce inputs per rank, none pending"


def test_a_launch_without_graphs():
    report = report_of(LaunchPlan(1))
    said = [report.describe(phase) for phase in (Phase.PLACE, Phase.CAPTURE, Phase.REGISTER, Phase.VERIFY)]
    assert said == [
        "1 rank on 1 node",
        "nothing captured",
        "nothing to register",
        "one request answered with 2 tokens",
    ]


def test_ranks_that_come_after_other_processes():
    report = report_of()
    (index,) = [i for i, record in enumerate(report.steps) if record.step.gate is Gate.MEET]
    record = report.steps[index]
    nice = [replace(one, facts=replace(one.facts, niceness=15 * one.rank)) for one in record.arrivals]
    report.steps[index] = replace(record, arrivals=tuple(nice))
    assert report.describe(Phase.PLACE) == (
        "2 ranks on 2 nodes; at nice 15, behind other processes: start Ray with RAY_worker_niceness=0"
    )


def test_table():
    lines = [line for line in report_of().table().splitlines() if line.strip()]
    assert lines[0].strip().startswith("tiny: ready after ")
    assert lines[1].split() == ["phase", "s", "rank", "0", "rank", "1", "what"]
    rows = {line.split()[0]: line for line in lines[3:]}
    assert list(rows) == [phase.name for phase in Phase if phase is not Phase.SERVE]
    assert rows["CONNECT"].split()[1:4] == ["6.30", "3.00", "6.00"]


def test_table_of_a_launch_that_has_said_nothing_yet():
    assert LaunchReport("tiny").table().startswith("tiny: not ready")


def test_brackets_in_a_reason_are_shown_as_they_are():
    report = report_of()
    facts = CommunicatorFacts("gloo", "cannot map [/proc/7/fd/3] [denied]", 0, 2)
    index = next(i for i, record in enumerate(report.steps) if record.step.gate is Gate.CONNECTED)
    record = report.steps[index]
    report.steps[index] = replace(record, arrivals=tuple(replace(one, facts=facts) for one in record.arrivals))
    assert "cannot map [/proc/7/fd/3] [denied]" in report.table(width=200)


def test_plain_data_survive_json():
    data = json.loads(json.dumps(report_of().to_dict(), allow_nan=False))
    assert data["ranks"][1] == {
        "rank": 1,
        "node": "10.0.0.1",
        "pid": 11,
        "device": "cpu",
        "adopted": False,
        "since": 0.0,
    }
    assert list(data["phases"]) == [phase.name for phase in Phase if phase is not Phase.SERVE]
    assert data["kv_tokens"] == 8192
    assert data["capture_memory"]["prefill 32"] == [32 << 20, 32 << 20]
    assert data["phases"]["LOAD"]["busy"] == pytest.approx([1.0, 2.0], abs=1e-3)
    assert [one["step"] for one in data["steps"]] == [str(step) for step in PLAN.steps()]
    assert all(len(one["arrived"]) == 2 for one in data["steps"])


@pytest.mark.parametrize("report", [LaunchReport("empty"), report_of(), report_of(LaunchPlan(5))], ids=str)
def test_chrome_trace_is_valid(report, tmp_path):
    report.write_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    named = {event["tid"] for event in events if event["ph"] == "M"}
    assert len(named) == 1 + len(report.places)
    for event in events:
        assert event["ph"] in "MX"
        assert event["pid"] == 1
        assert event["tid"] in named
        if event["ph"] == "X":
            assert isinstance(event["name"], str)
            assert event["ts"] >= 0
            assert event["dur"] >= 0


def test_a_clock_that_runs_behind_gives_no_negative_duration():
    report = report_of()
    first = report.steps[0]
    report.steps[0] = replace(first, released=first.arrivals[1].arrived - 0.5)
    assert all(event["dur"] >= 0 for event in report.chrome_trace()["traceEvents"] if event["ph"] == "X")


def test_the_all_reduce_is_told_with_its_routes_and_times():
    report = report_of()
    measured = (MeasuredSize(1024, {"gloo": 90.0, "shared-memory": 4.25}, "shared-memory"),)
    routes = (Route(1024, "shared-memory"), Route(None, "gloo"))
    facts = CommunicatorFacts("shared-memory+gloo", "the fastest", 8 << 20, 2, None, routes, measured)
    index = next(i for i, record in enumerate(report.steps) if record.step.gate is Gate.CONNECTED)
    record = report.steps[index]
    report.steps[index] = replace(record, arrivals=tuple(replace(one, facts=facts) for one in record.arrivals))
    assert report.describe(Phase.CONNECT).splitlines() == [
        "all-reduce: shared-memory up to 1.0 KiB, gloo beyond (the fastest)",
        "  1.0 KiB: shared-memory 4.2 us, gloo 90.0 us",
    ]
    assert json.loads(json.dumps(report.to_dict()))["all_reduce"]["measured"][0]["chosen"] == "shared-memory"
