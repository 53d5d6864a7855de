"""Signals from outside to real ranks of the reference engine: each is named, whoever spoke first (F06, F07, F27)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from signal import Signals

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.group.evidence import explain_failure
from raylaunch.group.launch import launch
from raylaunch.group.serving import known_of
from raylaunch.model.shape import ModelShape
from raylaunch.protocol import Phase, Step
from raylaunch.report import LaunchReport
from raylaunch.resolved import launch_of
from tests.busy import patient
from tests.launch.conftest import rank_processes
from tests.signals import WORDS, clients, cut_off, resume, strike_each, within_s

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("clean")]

HEALTH_S = 6.0
AGAIN_S = 200.0
BOTH = (0, 1)


def config_of(*more: str) -> LaunchConfig:
    return LaunchConfig.default(["capture.enabled=false", f"deadlines.health={HEALTH_S}", *more])


def asks(engine: Engine) -> Callable[[], object]:
    return lambda: engine.generate("1+1=", max_new_tokens=50, ignore_eos=True)


@pytest.mark.parametrize(
    "number",
    [pytest.param(one, id=one.name, marks=pytest.mark.slow if one is not Signals.SIGTERM else ()) for one in WORDS],
)
def test_what_is_seen_of_each_signal(number: Signals, session: None) -> None:
    """Of ranks that do nothing, by those who watch them: within 0.3 s, and with words before anybody is asked."""
    config = LaunchConfig.default(["capture.enabled=false", "deadlines.health=2"])
    launched = launch(launch_of(config, ModelShape("none", 0, 0, 0, 0), "noop"), LaunchReport("signals"))
    group, rank = launched.group, 1
    try:
        sent = time.monotonic()
        os.kill(launched.report.places[rank].pid, number)
        outcome = group.ended(5.0)
        noticed = time.monotonic() - sent
        outcome.pending = tuple({0, 1} - set(outcome.deaths))
        error = explain_failure(group, outcome, None, Phase.SERVE, outcome.waited_s)
    finally:
        group.close(10.0)
    print(f"{number.name}: seen after {noticed:.3f} s; {known_of(outcome)}; {error.headline()}")
    assert set(outcome.seen) == {rank}
    assert error.rank == rank
    assert WORDS[number] in error.headline()
    if number is Signals.SIGSTOP:
        assert 1.5 < noticed < patient(2)
        assert known_of(outcome) == f"rank {rank} does not run: {WORDS[number]}"
    else:
        assert noticed < patient(within_s(number, 2.0))
        assert known_of(outcome) in (f"rank {rank} {WORDS[number]}", "a rank of the group is lost")


@pytest.mark.slow
@pytest.mark.parametrize("number", WORDS, ids=lambda one: one.name)
def test_each_signal_while_serving(number: Signals) -> None:
    """To rank 0, to rank 1, and to both at once; the last loss is named as the first."""
    with Engine(config_of("recovery.rebuilds=3")) as engine, clients(asks(engine), 4):
        strike_each(engine, [(number, (0,)), (number, (1,)), (number, BOTH)], AGAIN_S, HEALTH_S)
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"


@pytest.mark.slow
@pytest.mark.parametrize("rank", BOTH)
def test_a_rank_that_is_slow_to_die(rank: int) -> None:
    """F27: its peer's error comes long before its own end."""
    slow = f"faults=[{{action: slow_to_die, rank: {rank}}}]"
    with Engine(config_of("recovery.rebuilds=2", slow)) as engine, clients(asks(engine), 4):
        strike_each(engine, [(Signals.SIGKILL, (rank,)), (Signals.SIGTERM, (rank,))], AGAIN_S, HEALTH_S)


@pytest.mark.slow
def test_what_ends_nothing() -> None:
    """A Ctrl-C is the driver's to answer, and a process that is stopped for a moment may go on."""
    with Engine(config_of()) as engine:
        pids = [place.pid for place in engine.report.places]
        for pid in pids:
            os.kill(pid, Signals.SIGINT)
        os.kill(pids[1], Signals.SIGSTOP)
        time.sleep(0.5 * HEALTH_S)
        assert engine.health(ask_ranks=False).ready
        resume(pids)
        time.sleep(HEALTH_S)
        assert engine.health().ready
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(Signals.SIGKILL, 0), (Signals.SIGTERM, 1)])
def test_in_each_phase_of_the_launch(number: Signals, rank: int, tiny: LaunchConfig) -> None:
    phases = [Phase.CONNECT, Phase.LOAD, Phase.WARMUP, Phase.CAPTURE, Phase.REGISTER, Phase.VERIFY]
    cut_off(lambda listener: Engine(tiny.replace({"recovery.rebuilds": 6}), listener=listener), number, rank, phases)


@pytest.mark.slow
@pytest.mark.parametrize("number", [Signals.SIGKILL, Signals.SIGTERM])
def test_while_the_group_is_rebuilt(number: Signals) -> None:
    """The rank that was lost first and the one lost in the rebuild are both named."""
    struck: list[LaunchError | None] = []

    def listener(step: Step, index: int, steps: int) -> None:
        if not engine.failures:
            return
        if step.phase is Phase.LOAD and not struck:
            struck.append(None)
            os.kill(engine.report.places[0].pid, number)
        elif index == 0 and struck == [None]:
            struck[:] = [engine.last_error]

    engine = Engine(config_of("recovery.rebuilds=2"), listener=listener)
    with engine, clients(asks(engine), 4):
        strike_each(engine, [(number, (1,))], AGAIN_S, HEALTH_S)
    (error,) = struck
    assert error is not None
    assert (error.rank, error.phase) == (1, "SERVE"), error
    (after,) = error.followers
    assert (after.rank, after.phase) == (0, "LOAD"), error
    assert WORDS[number] in after.headline()


@pytest.mark.slow
@pytest.mark.parametrize("number", [Signals.SIGKILL, Signals.SIGTERM])
def test_while_it_starts(number: Signals) -> None:
    """Before it has said which process it is, only Ray knows of it, and says no more than that it is gone."""
    done = threading.Event()

    def kill_the_first() -> None:
        while not done.wait(0.005):
            for pid in rank_processes():
                os.kill(pid, number)
                return

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    try:
        with pytest.raises(LaunchError) as caught:
            Engine(config_of()).start()
    finally:
        done.set()
        killer.join()
    error = caught.value
    assert error.code == "F06", error
    assert error.rank in BOTH
    assert f"rank {error.rank} died: " in error.headline()
    assert "native code" not in str(error)
