"""The supervisor of a group: whatever goes wrong, it ends in a condition that says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RaySystemError

from raylaunch import LaunchConfig, LaunchError
from raylaunch.background import Background
from raylaunch.cluster.placement import Placement, Seat
from raylaunch.cluster.session import RaySession
from raylaunch.engine import recovery, supervisor
from raylaunch.engine.health import Condition
from raylaunch.engine.recovery import Budget
from raylaunch.engine.supervisor import Supervisor
from raylaunch.errors import shut_down
from raylaunch.group import launch as launching
from raylaunch.group import node_loss, serving
from raylaunch.group.launch import Launched
from raylaunch.group.outcome import StepOutcome
from raylaunch.group.runtime import EngineRuntime
from raylaunch.group.teardown import Teardown
from raylaunch.model_check import check_model
from raylaunch.report import LaunchReport, Span
from raylaunch.resolved import ResolvedLaunch, launch_of
from raylaunch.tracing.spans import SpanFacts
from tests.busy import patient
from tests.protocol.builders import PLAN
from tests.scripted_group import ScriptedGroup
from tests.waiting import wait_until

CONFIG = LaunchConfig.default(["recovery.rebuilds=1"])
RESOLVED = launch_of(CONFIG, check_model(CONFIG))


class Kept:
    """A supervisor whose launches are written in the test: each is a group, or a function that is run for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *launches: ScriptedGroup | Callable[..., Any]) -> None:
        self.left = list(launches)
        self.told: list[LaunchError] = []
        self.may_wait: list[bool] = []
        self.spans: list[Span] = []
        self.failed: LaunchError | None = None
        self.keeper = Supervisor(CONFIG, lambda *_: None, self)
        monkeypatch.setattr(supervisor, "WATCH_S", 0.01)
        monkeypatch.setattr(supervisor, "enter", lambda *_: RaySession())
        monkeypatch.setattr(supervisor, "launch", self._launch)
        monkeypatch.setattr(serving, "explain_failure", lambda *_: LaunchError("rank 1 died", "F07", "SERVE"))

    # ---- the supervisor's frontend, as far as it is asked here

    def begin(self, resolved: object) -> None: ...

    def up(self, offer: object, resolved: object) -> None: ...

    def down(self, error: LaunchError, rebuilding: bool = False) -> None:
        self.told.append(error)
        self.may_wait.append(rebuilding)

    def close(self) -> None: ...

    def trouble(self) -> str:
        return ""

    def failure(self) -> LaunchError | None:
        return self.failed

    def __len__(self) -> int:
        return 0

    # ---- the test's own

    def _launch(self, resolved: ResolvedLaunch, report: LaunchReport, *_: object, **more: Any) -> Launched:
        one = self.left.pop(0)
        group = one if isinstance(one, ScriptedGroup) else one(**more)
        return Launched(group, report, None, resolved)  # type: ignore[arg-type]

    def wait_for(self, condition: Condition, restarts_left: int = 0) -> None:
        wait_until(lambda: (self.keeper.condition, self.keeper.restarts_left) == (condition, restarts_left), 5)


def lose(group: ScriptedGroup) -> None:
    group.lives.put(StepOutcome(deaths={1: "killed"}))


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: object, **__: object) -> Any:
        raise error

    return function


def test_a_lost_group_is_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ScriptedGroup(PLAN), ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, second)
    kept.keeper.start(RESOLVED)
    lose(first)
    kept.wait_for(Condition.READY)
    assert [error.headline() for error in kept.told] == ["LaunchError F07 [SERVE] a rank of the group is lost"]
    assert [str(error.summary) for _, error in kept.keeper.failures] == ["rank 1 died"]
    assert kept.may_wait == [True]
    lose(second)
    kept.wait_for(Condition.FAILED)
    assert kept.may_wait == [True, False, False], "nobody waits when nothing is left of the budget"
    kept.keeper.stop()
    assert (first.closed, second.closed, kept.keeper.condition) == (1, 1, Condition.FAILED)


@pytest.mark.parametrize(("more", "imports"), [([], True), (["recovery.standby=1"], False)])
def test_the_next_ranks_import_while_the_lost_ones_are_torn_down(
    monkeypatch: pytest.MonkeyPatch, more: list[str], imports: bool
) -> None:
    """What imports is there before anybody is asked why, given to the launch, and ended after it."""
    seen = list[tuple[str, bool]]()
    resolved = replace(RESOLVED, config=CONFIG.override(*more))

    class Imports:
        open = False

        def __enter__(self) -> Imports:
            self.open = True
            return self

        def __exit__(self, *_: object) -> None:
            self.open = False

    one = Imports()
    kept = Kept(monkeypatch, ScriptedGroup(PLAN), ScriptedGroup(PLAN))
    monkeypatch.setattr(supervisor, "preload", lambda _: None)
    monkeypatch.setattr(supervisor, "preloading", lambda *_: one)
    monkeypatch.setattr(serving, "explain_failure", lambda *_: seen.append(("why", one.open)) or LaunchError("gone"))
    monkeypatch.setattr(
        supervisor,
        "launch",
        lambda resolved, *rest, **named: (
            seen.append(("launch", resolved.preloaded is one and one.open)) or kept._launch(resolved, *rest, **named)
        ),
    )
    first = kept.left[0]
    kept.keeper.start(resolved)
    lose(first)
    kept.wait_for(Condition.READY)
    assert seen == [("launch", False), ("why", imports), ("launch", imports)]
    wait_until(lambda: not one.open, 5)
    kept.keeper.stop()


def test_every_launch_has_a_span_and_a_loss_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spans: list[SpanFacts] = []
    tracer = SimpleNamespace(send=spans.append, closed=0)
    tracer.close = lambda: setattr(tracer, "closed", tracer.closed + 1)
    monkeypatch.setattr(supervisor, "open_tracer", lambda _: tracer)
    monkeypatch.setattr(recovery, "FIRST_PAUSE_S", 0.01)
    first, second = ScriptedGroup(PLAN), ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, raising(LaunchError("rank 0 died", "F06", "LOAD", rank=0, retryable=True)), second)
    kept.keeper.budget = Budget(2)
    caplog.set_level("INFO", "raylaunch")
    kept.keeper.start(RESOLVED)
    lose(first)
    wait_until(lambda: kept.keeper.rebuilds == 2 and kept.keeper.condition is Condition.READY, 5)
    kept.keeper.stop()
    assert [one.error for one in spans] == ["", "LaunchError F06 [LOAD] rank 0 died", ""]
    assert [one.attributes["raylaunch.rebuilds"] for one in spans] == [0, 1, 2]
    assert spans[1].attributes["error.type"] == "F06"
    assert tracer.closed
    lost, failed, again = [(one.getMessage(), vars(one)["about"]) for one in caplog.records]
    assert lost[0] == "it is launched again: LaunchError F07 [SERVE] rank 1 died"
    assert (lost[1]["fault"], lost[1]["phase"]) == ("F07", "SERVE")
    assert (failed[1]["fault"], failed[1]["rank"]) == ("F06", 0)
    assert again[0].startswith("ready again after ")


def test_a_launch_that_finds_no_ray_has_a_span_too(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[SpanFacts] = []
    tracer = SimpleNamespace(send=spans.append, close=lambda: None)
    kept = Kept(monkeypatch)
    monkeypatch.setattr(supervisor, "open_tracer", lambda _: tracer)
    monkeypatch.setattr(supervisor, "enter", raising(LaunchError("no Ray cluster", phase="PLACE")))
    with pytest.raises(LaunchError):
        kept.keeper.start(RESOLVED)
    (span,) = spans
    assert (span.error, [one.name for one in span.inside]) == ("LaunchError [PLACE] no Ray cluster", ["PLACE"])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such key"), "ValueError: no such key"),
        (GetTimeoutError("late"), "GetTimeoutError: late"),
        (LaunchError("a rule is broken", "F03", "CAPTURE"), "F03 [CAPTURE] a rule is broken"),
    ],
)
def test_a_rebuild_that_raises_anything_ends_in_failed_by_what_came_first(
    monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    first = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, raising(error))
    kept.keeper.start(RESOLVED)
    lose(first)
    kept.wait_for(Condition.FAILED)
    reason = f"LaunchError F07 [SERVE] rank 1 died; the rebuild then failed: {text}"
    assert kept.keeper.health().reason == kept.told[-1].headline() == reason
    assert [one.summary for _, one in kept.keeper.failures] == ["rank 1 died"]
    kept.keeper.stop()


def test_the_first_cause_stays_while_a_rebuild_is_tried_and_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    first, trying, go_on = ScriptedGroup(PLAN), threading.Event(), threading.Event()

    def tried(**_: Any) -> Any:
        trying.set()
        assert go_on.wait(5)
        raise LaunchError("rank 0 died", "F06", "LOAD", retryable=True)

    kept = Kept(monkeypatch, first, tried, raising(LaunchError("no node has 1 CPU", "F13", "PLACE")))
    kept.keeper.budget = Budget(2)
    kept.keeper.start(RESOLVED)
    lose(first)
    assert trying.wait(5)
    assert kept.keeper.health().reason == "LaunchError F07 [SERVE] rank 1 died"
    go_on.set()
    kept.wait_for(Condition.FAILED)
    assert kept.keeper.health().reason == kept.told[-1].headline() == (
        "LaunchError F07 [SERVE] rank 1 died; the rebuild then failed: F06 [LOAD] rank 0 died; after that it failed: "
        "F13 [PLACE] no node has 1 CPU"
    )  # fmt: skip
    kept.keeper.stop()


def test_a_rebuild_that_is_cut_off_is_begun_anew_and_one_that_never_works_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """F28: each try is a launch like any other. The second that fails by the same cause at the same place is the last,
    whatever the budget holds."""
    groups = ScriptedGroup(PLAN), ScriptedGroup(PLAN)
    cut_off = [LaunchError("rank 0 died", "F06", phase, retryable=True) for phase in ("LOAD", "CAPTURE", "LOAD")]
    kept = Kept(monkeypatch, groups[0], raising(cut_off[0]), groups[1], *map(raising, cut_off), groups[0])
    monkeypatch.setattr(recovery, "FIRST_PAUSE_S", 0.01)
    kept.keeper.budget = Budget(100)
    kept.keeper.start(RESOLVED)
    lose(groups[0])
    wait_until(lambda: kept.keeper.condition is Condition.READY and kept.keeper.rebuilds == 2, 5)
    lose(groups[1])
    wait_until(lambda: kept.keeper.condition is Condition.FAILED, 5)
    assert kept.keeper.rebuilds == 5
    assert kept.keeper.error is not None
    assert kept.keeper.error.followers == cut_off, "tries after which the group has served do not count"
    assert "not launched again: it failed twice in the same way" in str(kept.keeper.error)
    kept.keeper.stop()


def test_a_pause_between_two_tries_ends_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ScriptedGroup(PLAN)
    failed = LaunchError("rank 0 died", "F06", "LOAD", retryable=True)
    kept = Kept(monkeypatch, first, raising(failed), until_stopped)
    monkeypatch.setattr(recovery, "FIRST_PAUSE_S", 30.0)
    kept.keeper.budget = Budget(100)
    kept.keeper.start(RESOLVED)
    lose(first)
    wait_until(lambda: kept.keeper.rebuilds == 2, 5)
    began = time.monotonic()
    kept.keeper.stop()
    assert time.monotonic() - began < patient(1.0)
    assert kept.keeper.condition is Condition.STOPPED


def test_a_first_launch_that_is_tried_again_fails_by_what_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    died = LaunchError("rank 0 died", "F06", "LOAD", retryable=True)
    kept = Kept(monkeypatch, raising(died), raising(ZeroDivisionError("division by zero")))
    with pytest.raises(LaunchError) as caught:
        kept.keeper.start(RESOLVED)
    assert caught.value.headline() == (
        "LaunchError F06 [LOAD] rank 0 died; another attempt then failed: ZeroDivisionError: division by zero"
    )
    assert kept.keeper.health().reason == caught.value.headline()


def test_a_group_that_serves_again_has_no_cause_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next loss is a first cause of its own; both are kept, in their order."""
    first, second = ScriptedGroup(PLAN), ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, second)
    kept.keeper.start(RESOLVED)
    lose(first)
    kept.wait_for(Condition.READY)
    lose(second)
    kept.wait_for(Condition.FAILED)
    assert len(kept.keeper.failures) == 2
    assert kept.keeper.error is kept.keeper.failures[1][1]
    assert kept.keeper.error.followers == []
    kept.keeper.stop()


def test_health_does_not_wait_for_the_answers_of_a_group_that_is_lost_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group, asked = ScriptedGroup(PLAN), threading.Event()

    def silent(*_: object, **__: object) -> dict[int, Any]:
        asked.set()
        time.sleep(1.0)
        return {}

    kept = Kept(monkeypatch, group, until_stopped)
    monkeypatch.setattr(group, "states", silent)
    kept.keeper.start(RESOLVED)
    seen: list[Any] = []
    asking = threading.Thread(target=lambda: seen.append((kept.keeper.health(), time.monotonic())))
    asking.start()
    assert asked.wait(5)
    lose(group)
    lost = time.monotonic()
    asking.join(5)
    ((health, answered),) = seen
    assert (health.ready, health.ranks, "rank 1" in health.reason) == (False, (), True)
    assert answered - lost < patient(0.3)
    began = time.monotonic()
    assert not kept.keeper.health().ready
    assert time.monotonic() - began < patient(0.1), "what is known is not asked"
    kept.keeper.stop()


def test_a_lost_raylet_is_the_cause_whatever_its_ranks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def __init__(self) -> None:
            self.nodes: set[str] = set()

        def lost(self) -> set[str]:
            return self.nodes

        def close(self) -> None:
            self.nodes = set()

    group = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, group, raising(LaunchError("no node has 1 CPU", "F13", "PLACE")))
    places = {member.rank: f"n{member.rank}" for member in group.members}
    for member in group.members:
        member.process = SimpleNamespace(
            node_id=places[member.rank], address="10.0.0.4", pid=1, device="cpu", log_files=()
        )
        member.spec = SimpleNamespace(core_file="")
    ended = Ended()
    monkeypatch.setattr(serving, "raylets_around", lambda _: ended)
    monkeypatch.setattr(node_loss.ray, "nodes", list)
    kept.keeper.start(RESOLVED)
    assert kept.keeper._runtime is not None
    ended.nodes = {"n1"}
    lose(group)
    kept.wait_for(Condition.FAILED)
    assert kept.keeper.health().reason == (
        "LaunchError F15 [SERVE] node 10.0.0.4 is lost: its raylet, Ray's process there, has ended; rank 1 ran there; "
        "the rebuild then failed: F13 [PLACE] no node has 1 CPU"
    )
    assert kept.keeper._runtime.lost_nodes == {"n1"}
    kept.keeper.stop()


def test_a_lost_node_that_is_used_again_is_lost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares and keepers of weights are made on those that are not lost: who does both would make them for ever."""
    group = ScriptedGroup(PLAN)
    group.placement = Placement(None, (Seat(0, 0, "n0", "10.0.0.3", 0), Seat(1, 1, "n1", "10.0.0.4", 0)), owned=True)

    def lost_before(runtime: EngineRuntime, **_: Any) -> ScriptedGroup:
        runtime.lost_nodes.update({"n1", "n2"})
        return group

    kept = Kept(monkeypatch, lost_before)
    kept.keeper.start(RESOLVED)
    kept.keeper.stop()
    runtime = kept.keeper._runtime
    assert runtime is not None
    assert runtime.standby.lost_nodes is runtime.keepers.lost_nodes is runtime.lost_nodes
    assert runtime.lost_nodes == {"n2"}


def test_a_user_that_cannot_be_told_of_a_loss_does_not_keep_the_group_from_being_rebuilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, ScriptedGroup(PLAN))
    monkeypatch.setattr(kept, "down", raising(RuntimeError("Event loop is closed")))
    kept.keeper.start(RESOLVED)
    lose(first)
    kept.wait_for(Condition.READY)
    kept.keeper.stop()


def test_a_loss_that_cannot_be_explained_is_made_good_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, ScriptedGroup(PLAN))
    monkeypatch.setattr(serving, "explain_failure", raising(RaySystemError("no answer")))
    kept.keeper.start(RESOLVED)
    lose(first)
    kept.wait_for(Condition.READY)
    assert first.closed == 1
    assert kept.keeper.failures[0][1].summary == "a rank of the group is lost"
    kept.keeper.stop()


def test_a_watcher_that_raises_ends_in_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, group)
    monkeypatch.setattr(RaySession, "lost", raising(OSError("too many open files")))
    kept.keeper.start(RESOLVED)
    kept.wait_for(Condition.FAILED, restarts_left=1)
    assert "too many open files" in kept.keeper.health().reason
    wait_until(lambda: group.closed == 1, 5)
    monkeypatch.undo()
    kept.keeper.stop()
    assert group.closed == 1


@pytest.mark.parametrize("a_rank_too", [False, True], ids=["the ranks are well", "a rank is lost too"])
def test_ranks_whose_user_has_failed_for_good_are_torn_down(monkeypatch: pytest.MonkeyPatch, a_rank_too: bool) -> None:
    """Without a rebuild, which could not be used, and without waiting for the user to shut down."""
    group = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, group)
    kept.keeper.start(RESOLVED)
    kept.failed = failed = LaunchError("the detokenizer was killed, after it was started again 3 times", None, "SERVE")
    if a_rank_too:
        lose(group)
    kept.wait_for(Condition.FAILED, restarts_left=1)
    wait_until(lambda: group.closed == 1, 5)
    assert kept.keeper.health().reason == failed.headline()
    assert kept.told == [failed]
    kept.keeper.stop()
    assert (group.closed, kept.keeper.condition, kept.keeper.error) == (1, Condition.FAILED, failed)
    assert "2 actors" in failed.teardown
    assert [error for _, error in kept.keeper.failures] == [failed]


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_group_that_cannot_be_watched_is_torn_down(monkeypatch: pytest.MonkeyPatch, rebuilt: bool) -> None:
    """Such as one that stands ready when a signal comes."""
    first, second = ScriptedGroup(PLAN), ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, second)
    if rebuilt:
        kept.keeper.start(RESOLVED)
    monkeypatch.setattr(supervisor, "ServingWatch", raising(SystemExit(143)))
    if rebuilt:
        lose(first)
        kept.wait_for(Condition.FAILED)
    else:
        with pytest.raises(SystemExit):
            kept.keeper.start(RESOLVED)
    wait_until(lambda: (first.closed, second.closed) == (1, int(rebuilt)), 5)
    kept.keeper.stop()
    assert (first.closed, second.closed) == (1, int(rebuilt))


@pytest.mark.parametrize("how", ["the user fails", "a rank is lost"])
def test_a_teardown_that_raises_does_not_replace_the_cause(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Nor is a group rebuilt beside one that may still hold its GPUs."""
    group = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, group)
    monkeypatch.setattr(group, "close", raising(KeyError("node 3")))
    kept.keeper.start(RESOLVED)
    if how == "a rank is lost":
        lose(group)
    else:
        kept.failed = LaunchError("rank 1 died", "F07")
    wait_until(lambda: kept.keeper.error is not None and kept.keeper.error.teardown != "", 5)
    kept.wait_for(Condition.FAILED, restarts_left=1)
    told = kept.told[-1:]
    kept.keeper.stop()
    assert kept.keeper.error is not None
    assert "rank 1 died" in kept.keeper.error.headline()
    assert kept.keeper.error.teardown == "could not be torn down: KeyError: 'node 3'"
    assert [error for _, error in kept.keeper.failures] == [kept.keeper.error] == told


def test_a_first_launch_that_raises_anything_is_failed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(monkeypatch, raising(ZeroDivisionError("division by zero")))
    with pytest.raises(ZeroDivisionError):
        kept.keeper.start(RESOLVED)
    assert kept.keeper.health().reason == "LaunchError ZeroDivisionError: division by zero"


def test_what_ray_fails_with_is_a_launch_error_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "place", raising(RaySystemError("the control service is gone")))
    with pytest.raises(LaunchError, match=r"RaySystemError.*the control service is gone") as caught:
        launching.launch(RESOLVED, LaunchReport("x"))
    assert caught.value.retryable


def until_stopped(stopped: Callable[[], bool], **_: Any) -> Any:
    """A launch that has hours to go."""
    end = time.monotonic() + 5.0
    while not stopped() and time.monotonic() < end:
        time.sleep(0.005)
    raise shut_down("LOAD")


def test_a_rebuild_is_ended_when_the_engine_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, first, until_stopped)
    kept.keeper.start(RESOLVED)
    lose(first)
    kept.wait_for(Condition.REBUILDING)
    began = time.monotonic()
    kept.keeper.stop()
    assert time.monotonic() - began < patient(2.0)
    assert kept.keeper.condition is Condition.STOPPED
    assert len(kept.keeper.failures) == 1


def test_a_stop_leaves_ray_after_the_launch_that_another_thread_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def slow_to_end(stopped: Callable[[], bool], **_: Any) -> Any:
        try:
            until_stopped(stopped)
        finally:
            time.sleep(0.1)
            events.append("given back")

    kept = Kept(monkeypatch, slow_to_end)
    monkeypatch.setattr(RaySession, "close", lambda _: events.append("left Ray"))

    def start() -> None:
        with pytest.raises(LaunchError, match="shut down"):
            kept.keeper.start(RESOLVED)

    starter = threading.Thread(target=start)
    starter.start()
    kept.wait_for(Condition.LAUNCHING, restarts_left=1)
    kept.keeper.stop()
    starter.join()
    assert events[:2] == ["given back", "left Ray"]
    assert kept.keeper.condition is Condition.STOPPED


def test_a_second_stop_leaves_ray_after_the_first_has_ended_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class SlowToEnd(ScriptedGroup):
        def close(self, deadline_s: float) -> Teardown:
            events.append("ending")
            time.sleep(0.2)
            events.append("ended")
            return super().close(deadline_s)

    kept = Kept(monkeypatch, SlowToEnd(PLAN))
    monkeypatch.setattr(RaySession, "close", lambda _: events.append("left Ray"))
    kept.keeper.start(RESOLVED)
    first = Background(kept.keeper.stop)
    wait_until(lambda: events == ["ending"], 5)
    kept.keeper.stop()
    first.result(5)
    assert events[:3] == ["ending", "ended", "left Ray"]


def test_requests_fail_before_the_ranks_are_asked_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leave their loops with an end for each request that still runs: that it was aborted."""
    group = ScriptedGroup(PLAN)
    kept = Kept(monkeypatch, group)
    kept.keeper.start(RESOLVED)
    told: list[str] = []
    group.stop = lambda _: bool(told.extend(one.summary for one in kept.told))  # type: ignore[method-assign]
    kept.keeper.stop()
    assert told == ["the engine was shut down"]


def test_a_stop_that_a_signal_interrupts_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    group, left = ScriptedGroup(PLAN), list[str]()
    kept = Kept(monkeypatch, group)
    monkeypatch.setattr(RaySession, "close", lambda _: left.append("Ray"))
    kept.keeper.start(RESOLVED)
    group.stop = raising(KeyboardInterrupt())  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        kept.keeper.stop()
    assert (group.closed, left, kept.keeper.condition) == (1, ["Ray"], Condition.STOPPED)


def test_a_start_that_is_interrupted_before_it_begins_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(monkeypatch)
    monkeypatch.setattr(supervisor, "preload", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        kept.keeper.start(RESOLVED)
    Background(kept.keeper.stop).result(5)
    assert kept.keeper.condition is Condition.STOPPED


def test_a_stop_from_within_the_launch_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def listener_stops(stopped: Callable[[], bool], **_: Any) -> Any:
        kept.keeper.stop()
        assert stopped()
        raise shut_down("PLACE")

    kept = Kept(monkeypatch, listener_stops)
    with pytest.raises(LaunchError, match="shut down"):
        kept.keeper.start(RESOLVED)
    assert kept.keeper.condition is Condition.STOPPED


class Gone(RaySession):
    """A session that the test ends."""

    why = ""

    def lost(self, patience_s: float = 0.0) -> str:
        return self.why


@pytest.mark.parametrize("error", [LaunchError("rank 0 died", "F07", "LOAD", retryable=True), RuntimeError("no head")])
def test_a_launch_without_ray_says_so_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    session = Gone()

    def loses_ray(stopped: Callable[[], bool], **_: Any) -> Any:
        assert not stopped()
        session.why = "Ray's head is gone"
        assert stopped()
        raise error

    kept = Kept(monkeypatch, loses_ray)
    monkeypatch.setattr(supervisor, "enter", lambda *_: session)
    with pytest.raises(LaunchError, match="Ray's head is gone") as caught:
        kept.keeper.start(RESOLVED)
    assert caught.value.code == "F15"
    assert "Ray's head is gone" in kept.keeper.health().reason


@pytest.mark.parametrize("says", ["ray.wait", "the session"])
def test_an_engine_whose_ray_is_shut_down_fails_and_starts_none(monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """Ray's calls end the thread that made them, or start a new session."""
    group, session = ScriptedGroup(PLAN), Gone()
    kept = Kept(monkeypatch, group)
    monkeypatch.setattr(supervisor, "enter", lambda *_: session)
    kept.keeper.start(RESOLVED)
    assert kept.keeper.health(ask_ranks=False).ready
    if says == "the session":
        session.why = "Ray was shut down"
    monkeypatch.setattr(group, "ended", raising(SystemExit("Ray was shut down")))
    kept.wait_for(Condition.FAILED, restarts_left=1)
    monkeypatch.setattr(group, "states", raising(SystemExit("never asked")))
    assert "Ray was shut down" in kept.keeper.health().reason
    assert "Ray was shut down" in kept.told[-1].summary
    kept.keeper.stop()


def test_health_asks_no_rank_in_another_session(monkeypatch: pytest.MonkeyPatch) -> None:
    group, session = ScriptedGroup(PLAN), Gone()
    kept = Kept(monkeypatch, group)
    monkeypatch.setattr(supervisor, "enter", lambda *_: session)
    kept.keeper.start(RESOLVED)
    monkeypatch.setattr(supervisor.Supervisor, "_keep_until_lost_for_good", lambda _: None)
    monkeypatch.setattr(session, "current", lambda: False)
    session.why = "Ray was shut down"
    monkeypatch.setattr(group, "states", raising(AssertionError("asked")))
    health = kept.keeper.health()
    assert not health.ready
    assert "Ray was shut down" in health.reason
    kept.keeper.stop()
