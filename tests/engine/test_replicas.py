"""Several groups behind one port: who gets a request, and what becomes of it when a group is lost."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from raylaunch import ConfigError, Engine, LaunchConfig, LaunchError, Replicas, RequestError, RequestFailed
from raylaunch.engine.health import Condition, Health, joined
from raylaunch.engine.replicas import one_of, replicas_of
from raylaunch.engine.router import Router
from raylaunch.errors import EngineBusy, RaylaunchError, ReplicaLost
from raylaunch.frontends.base import Listener, Prepared
from raylaunch.frontends.reference import ReferenceFrontend
from raylaunch.frontends.requests import Chunk
from raylaunch.frontends.sampling import SamplingParams

READY = Health(True, "ready", "", (), restarts_left=1, requests=0)
LOST = replace(READY, ready=False, condition="launching", reason="rank 1 died")
PREPARED = Prepared([1, 2], SamplingParams())


def of(condition: str, ready: bool = False) -> Health:
    return replace(READY, ready=ready, condition=condition, reason="" if ready else condition, requests=2)


@pytest.mark.parametrize(
    ("healths", "ready", "condition"),
    [
        ([of("ready", True), of("failed")], True, "ready"),
        ([of("failed"), of("ready", True)], True, "ready"),
        ([of("failed"), of("launching")], False, "launching"),
        ([of("ready"), of("ready", True)], True, "ready"),  # the first one's ranks are stuck
        ([of("ready"), of("failed")], False, "ready"),
        ([of("failed"), of("failed")], False, "failed"),
        ([of("stopped"), of("failed")], False, "stopped"),
    ],
)
def test_all_are_as_ready_as_the_best_of_them(healths: list[Health], ready: bool, condition: str) -> None:
    whole = joined(healths)
    assert (whole.ready, whole.condition, whole.reason == "") == (ready, condition, ready)
    assert (whole.requests, whole.restarts_left, whole.ranks) == (4, 2, ())
    assert whole.replicas == tuple(healths)


@dataclass
class Running:
    request_id: str
    listener: Listener
    prompt_tokens: int = 2


@dataclass
class Group:
    """Takes the place of an engine and of its frontend."""

    config: LaunchConfig = field(default_factory=lambda: LaunchConfig.default(["engine.max_waiting_requests=2"]))
    now: Health = READY
    refuses: RaylaunchError | None = None
    continued: int = 0
    restarts: int = 0
    kv_tokens: int = 4096
    running: dict[str, Running] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    @property
    def frontend(self) -> Group:
        return self

    def health(self, ask_ranks: bool = True) -> Health:
        return replace(self.now, requests=len(self.running))

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Running:
        if self.refuses is not None:
            raise self.refuses
        self.running[request_id] = Running(request_id, listener)
        return self.running[request_id]

    def forget(self, request: Running) -> None:
        self.forgotten.append(request.request_id)
        self.running.pop(request.request_id, None)

    def abort(self, request_id: str) -> bool:
        self.aborted += [one for one in self.running if one == request_id]
        return request_id in self.running

    def give(self, request_id: str, text: str, end: bool = False) -> None:
        request = self.running.pop(request_id) if end else self.running[request_id]
        request.listener(Chunk(request_id, text, (1,), "stop" if end else None))

    def lose(self) -> None:
        self.now, taken, self.running = LOST, list(self.running.values()), {}
        for request in taken:
            request.listener(RequestFailed(f"request {request.request_id} was lost: rank 1 died"))


@pytest.fixture
def groups() -> list[Group]:
    return [Group(), Group()]


@pytest.fixture
def router(groups: list[Group]) -> Router:
    return Router(groups)  # type: ignore[arg-type]


class Client(list[Any]):
    """What a caller hears."""

    @property
    def said(self) -> list[str]:
        return [one.text if isinstance(one, Chunk) else type(one).__name__ for one in self]


def test_requests_are_shared_out(router: Router, groups: list[Group]) -> None:
    for number in range(6):
        router.submit(PREPARED, Client().append, f"r{number}")
    assert [sorted(one.running) for one in groups] == [["r0", "r2", "r4"], ["r1", "r3", "r5"]]
    for name in ("r0", "r2"):
        groups[0].give(name, "x", end=True)
    assert len(router) == 4
    assert router.submit(PREPARED, Client().append, "r6").at == 0


def test_a_prompt_goes_where_its_beginning_was_until_that_group_is_another(router: Router, groups: list[Group]) -> None:
    groups[0].config = LaunchConfig.default(["parallel.routing=prefix"])
    long, other = Prepared(list(range(50)), SamplingParams()), Prepared(list(range(1, 50)), SamplingParams())
    for number, (prepared, at) in enumerate([(long, 0), (other, 1), (long, 0), (other, 1), (other, 1), (long, 0)]):
        assert router.submit(prepared, Client().append, f"r{number}").at == at
    groups[1].restarts = 1
    groups[0].give("r0", "x", end=True)
    assert router.submit(other, Client().append, "forgotten").at == 0, "by the load"


def test_a_prompt_does_not_go_where_its_beginning_is_and_no_room(groups: list[Group]) -> None:
    settings = ["parallel.routing=prefix", "engine.max_running_requests=4", "engine.max_waiting_requests=2"]
    groups[0].config = LaunchConfig.default(settings)
    router = Router(groups)  # type: ignore[arg-type]
    prompt, client = Prepared(list(range(50)), SamplingParams()), Client()
    assert [router.submit(prompt, client.append, f"r{number}").at for number in range(5)] == [0] * 5
    groups[1].running = {f"own{number}": Running(f"own{number}", client.append) for number in range(4)}
    assert [router.submit(prompt, client.append, name).at for name in "abc"] == [0, 1, 1]
    assert router.submit(prompt, client.append, "one too many").at in (0, 1), "which refuses it"


def test_a_group_that_is_not_ready_gets_none(router: Router, groups: list[Group]) -> None:
    groups[0].now = LOST
    for number in range(3):
        router.submit(PREPARED, Client().append, f"r{number}")
    assert [len(one.running) for one in groups] == [0, 3]
    groups[1].now = LOST
    with pytest.raises(RequestFailed, match="the engine is not ready: rank 1 died"):
        router.submit(PREPARED, Client().append, "late")
    assert len(router) == 3


def test_a_request_without_a_token_goes_on_at_another_group(router: Router, groups: list[Group]) -> None:
    heard = Client()
    request = router.submit(PREPARED, heard.append, "r")
    groups[0].lose()
    assert (heard, request.at, list(groups[1].running)) == ([], 1, ["r"])
    assert router.continued == 1
    groups[1].give("r", "4")
    groups[1].give("r", "2", end=True)
    assert heard.said == ["4", "2"]
    assert len(router) == 0


def test_a_request_that_has_brought_tokens_is_lost_with_its_group_alone(router: Router, groups: list[Group]) -> None:
    first, second = Client(), Client()
    router.submit(PREPARED, first.append, "a")
    router.submit(PREPARED, second.append, "b")
    groups[0].give("a", "4")
    groups[0].lose()
    assert first.said == ["4", "ReplicaLost"]
    assert "request a was lost: rank 1 died" in str(first[-1])
    groups[1].give("b", "42", end=True)
    assert second.said == ["42"]
    assert len(router) == 0


def test_a_request_that_every_group_has_lost_ends_with_the_loss(router: Router, groups: list[Group]) -> None:
    heard = Client()
    router.submit(PREPARED, heard.append, "r")
    groups[0].lose()
    groups[1].lose()
    assert heard.said == ["ReplicaLost"]
    assert len(router) == 0


def test_a_request_waits_once_for_ranks_whatever_the_number_of_groups(router: Router, groups: list[Group]) -> None:
    """A group has it for as long as it may wait: the next one would have it wait as long again."""
    for one in groups:
        one.config = LaunchConfig.default(["recovery.while_rebuilding=wait", "recovery.give_up_s=0.01"])
        one.now = replace(LOST, condition=Condition.REBUILDING)
    heard = Client()
    router.submit(PREPARED, heard.append, "r")
    time.sleep(0.02)
    groups[0].running.pop("r").listener(RequestFailed("no group took its place within 0.01 s"))
    assert heard.said == ["ReplicaLost"]
    assert (groups[1].running, router.continued, len(router)) == ({}, 0, 0)


@pytest.mark.parametrize("other", [READY, replace(LOST, condition=Condition.REBUILDING)], ids=lambda one: one.condition)
def test_a_request_that_has_not_waited_yet_does_so_at_another_group(
    router: Router, groups: list[Group], other: Health
) -> None:
    """However long it has been in a queue of ranks that were there."""
    groups[0].config = LaunchConfig.default(["recovery.while_rebuilding=wait", "recovery.give_up_s=0.01"])
    router.submit(PREPARED, Client().append, "r")
    time.sleep(0.02)
    groups[1].now = other
    groups[0].lose()
    assert list(groups[1].running) == ["r"]


def test_a_request_that_fails_for_a_reason_of_its_own_goes_nowhere_else(router: Router, groups: list[Group]) -> None:
    heard = Client()
    router.submit(PREPARED, heard.append, "r")
    groups[0].running["r"].listener(RequestFailed("its logits are not finite"))
    assert heard.said == ["RequestFailed"]
    assert groups[1].running == {}
    assert not isinstance(heard[0], ReplicaLost)


def test_a_group_that_is_lost_between_the_choice_and_the_request_is_passed_over(
    router: Router, groups: list[Group]
) -> None:
    groups[0].refuses = RequestFailed("it has no ranks")
    assert router.submit(PREPARED, Client().append, "r").at == 1
    groups[1].refuses = EngineBusy("too many")
    with pytest.raises(EngineBusy):
        router.submit(PREPARED, Client().append, "s")
    assert list(router.requests._running) == ["r"]


def test_who_leaves_is_forgotten_where_the_request_is(router: Router, groups: list[Group]) -> None:
    heard = Client()
    request = router.submit(PREPARED, heard.append, "r")
    assert router.abort("r")
    assert not router.abort("another")
    groups[0].lose()
    router.forget(request)
    assert [one.forgotten for one in groups] == [[], ["r"]]
    assert not router.abort("r")
    assert len(router) == 0


def test_a_caller_that_cannot_be_told_any_more_leaves_nothing_behind(router: Router, groups: list[Group]) -> None:
    """Such as one whose event loop is closed: frontends end the request of whoever raises."""

    def closed(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    router.submit(PREPARED, closed, "r")
    with pytest.raises(RuntimeError):
        groups[0].give("r", "4")
    assert len(router) == 0


def test_who_leaves_while_the_request_is_lost_leaves_nothing_behind(router: Router, groups: list[Group]) -> None:
    request = router.submit(PREPARED, Client().append, "r")
    submitted = groups[1].submit

    def leave_meanwhile(*arguments: Any) -> Running:
        router.forget(request)
        return submitted(*arguments)

    groups[1].submit = leave_meanwhile  # type: ignore[method-assign]
    groups[0].lose()
    assert [one.running for one in groups] == [{}, {}]


def test_an_abort_while_the_request_is_lost_ends_it_where_it_goes_on(router: Router, groups: list[Group]) -> None:
    router.submit(PREPARED, Client().append, "r")
    submitted = groups[1].submit

    def abort_meanwhile(*arguments: Any) -> Running:
        assert router.abort("r")
        return submitted(*arguments)

    groups[1].submit = abort_meanwhile  # type: ignore[method-assign]
    groups[0].lose()
    assert [one.aborted for one in groups] == [[], ["r"]]


@pytest.mark.parametrize("takes", [True, False])
def test_an_abort_while_a_begun_answer_moves_ends_it_where_it_stays(groups: list[Group], takes: bool) -> None:
    own = ReferenceFrontend(groups[1].config)

    class Other(Group):
        frontend = own  # type: ignore[assignment]

    router = Router([groups[0], other := Other()])  # type: ignore[list-item]
    router.submit(PREPARED, Client().append, "r")

    def continue_request(request: Any) -> bool:
        assert router.abort("r")
        if takes:
            other.running["r"] = groups[0].running.pop("r")
        return takes

    own.continue_request = continue_request  # type: ignore[method-assign]
    assert router.move_elsewhere(SimpleNamespace(request_id="r")) == takes  # type: ignore[arg-type]
    assert [one.aborted for one in (groups[0], other)] == ([[], ["r"]] if takes else [["r"], []])


def test_an_id_is_in_use_at_whatever_group(router: Router) -> None:
    router.submit(PREPARED, Client().append, "r")
    with pytest.raises(RequestError, match="in use"):
        router.submit(PREPARED, Client().append, "r")


def test_together_they_take_as_many_as_each_alone(router: Router, groups: list[Group]) -> None:
    engine = groups[0].config.engine
    most = 2 * (engine.max_running_requests + engine.max_waiting_requests)
    for number in range(most):
        router.submit(PREPARED, Client().append, f"r{number}")
    with pytest.raises(EngineBusy):
        router.submit(PREPARED, Client().append, "one too many")


CONFIG = LaunchConfig.default(["parallel.replicas=3"])


def test_each_replica_is_a_launch_of_its_own() -> None:
    replicas = Replicas(CONFIG)
    assert [engine.config.name for engine in replicas.engines] == ["tiny-0", "tiny-1", "tiny-2"]
    assert {engine.config.parallel.replicas for engine in replicas.engines} == {1}
    assert replicas_of(replicas) == replicas.engines
    one = replicas.engines[0]
    assert replicas_of(one) == (one,)
    assert (replicas.health(ask_ranks=False).condition, len(replicas.health().replicas)) == ("new", 3)
    assert (replicas.failures, replicas.last_error, replicas.restarts) == ((), None, 0)
    assert not replicas.wait_ready(1)


@pytest.mark.parametrize("fails", [0, 1])
def test_ray_is_left_when_every_group_has_ended_though_one_could_not(
    monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    events: list[str] = []
    engine = Replicas(LaunchConfig.default(["parallel.replicas=2"]))

    def shutdown(one: Engine) -> None:
        if one is engine.engines[fails]:
            raise RuntimeError("it could not")
        time.sleep(0.2)
        events.append("ended")

    monkeypatch.setattr(Engine, "shutdown", shutdown)
    engine._session = SimpleNamespace(close=lambda: events.append("left Ray"))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="it could not"):
        engine.shutdown()
    assert events == ["ended", "left Ray"]


def test_failures_say_which_replica() -> None:
    replicas = Replicas(CONFIG)
    first, second, known = (LaunchError(text, "F07", "SERVE") for text in ("first", "second", "third"))
    replicas.engines[2]._supervisor.failures.append((1.0, first))
    replicas.engines[0]._supervisor.failures.append((2.0, second))
    assert [(when, str(error)) for when, error in replicas.failures] == [
        (1.0, "LaunchError F07 [SERVE, replica 2] first"),
        (2.0, "LaunchError F07 [SERVE, replica 0] second"),
    ]
    assert replicas.last_error is second
    replicas.engines[2]._supervisor.error = known  # lost again, and not explained yet
    assert replicas.last_error is known
    assert known.headline() == "LaunchError F07 [SERVE, replica 2] third"


def test_the_bar_shows_the_replica_that_is_furthest_behind() -> None:
    seen: list[int] = []
    replicas = Replicas(CONFIG, listener=lambda step, index, steps: seen.append(index))
    for number, index in [(0, 0), (0, 1), (0, 2), (1, 1), (2, 1), (1, 2), (1, 3), (2, 2)]:
        replicas._listener_of(number)(None, index, 9)  # type: ignore[arg-type]
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "key", "text"),
    [
        (
            ["engine=sglang", "engine.sglang.args={enable_metrics: true}"],
            "engine.sglang.args.enable_metrics",
            "SGLang's metrics are of one engine",
        ),
        (["placement.placement_group=mine"], "parallel.replicas", "a placement group of its own"),
        (["parallel.rendezvous_port=7000"], "parallel.rendezvous_port", "binds a port of its own"),
    ],
)
def test_what_a_process_can_have_once_only_is_refused(settings: list[str], key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        Replicas(CONFIG.override(*settings)).start()
    assert caught.value.key == key


def test_an_engine_is_one_group() -> None:
    with pytest.raises(ConfigError, match=r"raylaunch\.Replicas\(config\)"):
        Engine(CONFIG).start()
    for number in itertools.islice(itertools.count(), 2):
        assert one_of(CONFIG, number).parallel.tensor_parallel_size == CONFIG.parallel.tensor_parallel_size


def test_ray_serve_has_replicas_of_its_own() -> None:
    deployment = pytest.importorskip("raylaunch.serve.deployment")
    with pytest.raises(ConfigError, match="Ray Serve has replicas of its own"):
        deployment.application(CONFIG)
