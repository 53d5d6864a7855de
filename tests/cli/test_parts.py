"""The parts of commands that need no launch: scores, error texts, the bar, results."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from pathlib import Path

import pytest
import typer
from rich.console import Console

from raylaunch.benchmarks.allreduce import bench_config, compare
from raylaunch.benchmarks.launch import cost_of, medians, noop_config
from raylaunch.benchmarks.plot import require_drawable
from raylaunch.commands.questions import Question, Reply, read_questions, score
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError, RankEvidence, RequestError, RequestFailed
from raylaunch.model_check import check_device
from raylaunch.protocol import Gate, LaunchPlan, RoundPlan, Step
from raylaunch.report import LaunchReport, StepRecord
from raylaunch.terminal.outcome import explain, interruptible, reported, signals_held
from raylaunch.terminal.progress import LaunchProgress


@pytest.mark.parametrize(
    ("answer", "text", "finish", "valid", "correct"),
    [
        ("42", "42", "stop", True, True),
        ("42", " 42\n", "stop", True, True),
        ("42", "43", "stop", True, False),
        ("42", "", "stop", False, False),
        ("42", "4+2", "stop", False, False),
        ("42", "42", "length", False, False),
        ("blue", "42", "stop", True, False),
        ("blue", "blue", "stop", True, True),
        ("1,000", "1000", "stop", True, False),
    ],
)
def test_validity_and_correctness(answer: str, text: str, finish: str, valid: bool, correct: bool) -> None:
    reply = Reply(Question("?", answer), text, (1,), finish)
    assert (reply.valid, reply.correct) == (valid, correct)


def test_score() -> None:
    question = Question("1+1=", "2")
    replies = [Reply(question, text, (5, 6), "stop") for text in ("2", "3", "", "2")]
    results = score(replies, 4.0)
    assert (results.questions, results.accuracy, results.invalid, results.throughput) == (4, 0.5, 0.25, 2.0)


def test_shipped_data_by_its_bare_name_and_a_limit() -> None:
    assert len(read_questions("sums-heldout.jsonl")) == 200
    assert read_questions("sums-heldout", 3) == read_questions("configs/data/sums-heldout.jsonl")[:3]


def test_a_launch_error_ends_with_its_headline_in_one_line() -> None:
    error = LaunchError("ranks differ\n  in two lines", "F03", "CAPTURE", ranks=[RankEvidence(0, state="at a gate")])
    lines = explain(error).splitlines()
    assert lines[0] == lines[-1] == "LaunchError F03 [CAPTURE] ranks differ"
    assert any("at a gate" in line for line in lines)
    assert explain(LaunchError("no cluster")) == "LaunchError no cluster"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a.b", 1, "must be 2"), 2),
        (LaunchError("no"), 1),
        (RequestError("too long"), 3),
        (RequestFailed("lost"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, reported():
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err


def test_an_error_that_nobody_expected_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_the_first_signal_interrupts_and_the_second_waits(number: signal.Signals) -> None:
    before, undone = signal.getsignal(number), []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
            undone.append(True)

    with pytest.raises(typer.Exit) as ended, reported(), interruptible():
        work()
    assert (ended.value.exit_code, undone) == (130, [True])
    assert signal.getsignal(number) is before


def test_a_second_signal_waits_also_where_the_work_has_put_its_handler_back() -> None:
    undone = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            signal.signal(signal.SIGTERM, before)  # as the start of Ray does, which has a handler of its own
            os.kill(os.getpid(), signal.SIGTERM)
            undone.append(True)

    with pytest.raises(typer.Exit), reported(), interruptible():
        work()
    assert undone == [True]


@pytest.mark.parametrize("error", [None, ImportError("half of it is there"), typer.Exit(1)])
def test_an_interrupt_that_was_dropped_or_made_another_error_of_is_one_all_the_same(error: Exception | None) -> None:
    def work() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        if error is not None:
            raise error

    with pytest.raises(typer.Exit) as ended, reported(), interruptible():
        work()
    assert ended.value.exit_code == 130


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_held_signal_interrupts_afterwards() -> None:
    done = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(True)

    with pytest.raises(KeyboardInterrupt), signals_held():
        work()
    assert done == [True]


def _show(console: Console) -> None:
    steps = list(LaunchPlan(2, (RoundPlan("prefill", (8,)),)).steps())
    with LaunchProgress(console) as progress:
        for index, step in enumerate(steps):
            progress.step(step, index, len(steps))


def test_a_line_for_each_phase_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    _show(Console(file=out, width=100))
    phases = ["PLACE", "CONNECT", "LOAD", "WARMUP", "CAPTURE", "REGISTER", "VERIFY"]
    assert [line.split()[-1] for line in out.getvalue().splitlines()] == phases


def test_a_bar_on_a_terminal_is_gone_afterwards() -> None:
    out = io.StringIO()
    _show(Console(file=out, width=100, force_terminal=True))
    assert "VERIFY" in out.getvalue()
    assert "\x1b[2K" in out.getvalue().rpartition("VERIFY")[2]


def test_step_cost_leaves_out_the_steps_between_rounds() -> None:
    report = LaunchReport("x")
    at = 0.0
    for step in LaunchPlan(2, (RoundPlan("prefill", (8, 4)), RoundPlan("decode", (2,)))).steps():
        at += 0.002 if step.gate is Gate.ITERATION else 1.0
        report.steps.append(StepRecord(step, (), at))
    cost = cost_of(2, report)
    assert (cost.steps, round(cost.median, 3), round(cost.p99, 3), round(cost.per_rank, 3)) == (6, 2.0, 2.0, 1.0)


def test_medians() -> None:
    launches = [{"seconds": s, "phases": {"LOAD": {"seconds": s / 2}}} for s in (3.0, 1.0, 2.0)]
    assert medians(launches) == {"LOAD": 1.0, "ready": 2.0}
    assert medians([]) == {}


def test_the_bar_says_the_step() -> None:
    out = io.StringIO()
    with LaunchProgress(Console(file=out, width=100, force_terminal=True)) as progress:
        progress.step(Step(Gate.ITERATION, "prefill", 128, 2), 7, 20)
    assert "iteration prefill 128 tokens iteration 2" in out.getvalue()


def test_bandwidths_and_ratios_of_an_all_reduce() -> None:
    times = {"sgl_kernel in graph": {8192: 4.0}, "nccl in graph": {8192: 8.0}}
    ours, library = compare(times, ranks=4, link=100e9)
    assert (ours.nbytes, ours.of_best, ours.of_library, library.of_best) == (8192, 1.0, 0.5, 2.0)
    assert ours.bus_bandwidth == pytest.approx(2 * 3 / 4 * 8192 / 4e-6)
    assert ours.of_link == pytest.approx(ours.bus_bandwidth / 100e9)
    (alone,) = compare({"shared-memory in graph": {8192: 4.0}}, ranks=2, link=None)
    assert (alone.of_link, alone.of_library) == (None, None)


def test_idle_ranks_are_asked_for_nothing_that_only_gpus_have() -> None:
    gpus = ["engine.device=cuda", "debug=cuda", "capture.compiler=inductor", "faults=[{action: illegal_access}]"]
    check_device(noop_config(LaunchConfig.default(gpus), 4), "cpu")


def test_ranks_that_time_all_reduces_open_all_that_is_possible_whatever_the_engine() -> None:
    made = bench_config(LaunchConfig.default(["engine=sglang", "environment={NCCL_DEBUG: INFO}"]), [8192], 5)
    assert (made.engine.kind, made.communicator.kind, made.capture.enabled) == ("reference", "auto", False)
    assert made.environment == {
        "NCCL_DEBUG": "INFO",
        "RAYLAUNCH_BENCH_SIZES": "[8192]",
        "RAYLAUNCH_BENCH_REPEATS": "5",
    }


def test_a_drawing_needs_matplotlib_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"raylaunch\[bench\]"):
        require_drawable(Path("x.SVG"))
