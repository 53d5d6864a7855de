"""What becomes of keepers by what they answer, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from raylaunch_actors.weight_keeper import Kept

from raylaunch.cluster.placement import Placement, Seat
from raylaunch.cluster.session import RaySession
from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError
from raylaunch.group import member, remote, weights
from raylaunch.group.weights import WeightKeepers, by_node, require_loadable
from raylaunch.model.shape import ModelShape
from raylaunch.report import KeptWeights
from raylaunch.resolved import launch_of
from tests.group.test_standby import Actor, Call, FakeRay

CONFIG = LaunchConfig.default(["parallel.tensor_parallel_size=2"])
BEGUN, HALF, ALL = Kept(7, 0, 100), Kept(7, 50, 100), Kept(7, 100, 100)


class Ray(FakeRay):
    def get(self, ref: Call | Sequence[Call], timeout: float | None = None) -> Any:
        return [super(Ray, self).get(one) for one in ref] if isinstance(ref, list) else super().get(ref)


class Made:
    """Keepers on the nodes of two ranks, each with the answers that the test gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.coming, self.actors, self.lost = list[Actor](), list[Actor](), set[str]()
        self.keepers = WeightKeepers(True, RaySession(), self.lost)
        for module in (member, weights):
            monkeypatch.setattr(module, "ray", Ray())
        monkeypatch.setattr(weights, "LOOK_EVERY_S", -1.0)
        monkeypatch.setattr(weights, "pause_after", lambda deaths: -1.0)
        monkeypatch.setattr(remote, "weight_keeper_on", self._keeper)

    def _keeper(self, node: str, environment: dict[str, str]) -> Actor:
        self.actors.append(self.coming.pop(0) if self.coming else Actor(prepare=BEGUN, kept=ALL))
        return self.actors[-1]

    def launch(self, nodes: str) -> None:
        self.keepers.make(on(nodes), {})
        self.keepers.begin(5.0)

    def tend(self, times: int = 3) -> KeptWeights:
        return [self.keepers.tend() for _ in range(times)][-1]


def on(nodes: str, config: LaunchConfig = CONFIG) -> dict[str, Any]:
    seats = tuple(Seat(rank, rank, node, "10.0.0.1", rank) for rank, node in enumerate(nodes))
    resolved = launch_of(config, ModelShape("tiny", 2048, 16, 4, 4))
    return by_node(resolved, Placement(None, seats, owned=False))  # type: ignore[arg-type]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


def test_each_node_has_shards_of_its_ranks() -> None:
    sharded = CONFIG.replace({"model.load_format": "sharded_state"})
    assert {node: one.ranks for node, one in on("aba", sharded).items()} == {"a": (0, 2), "b": (1,)}
    assert on("aba")["a"] == on("ab")["b"]


def test_one_a_node_outlives_groups_and_ends_with_a_node_that_is_left(made: Made) -> None:
    made.coming = [Actor(prepare=BEGUN, kept=HALF)]
    made.launch("aa")
    assert made.tend() == KeptWeights(1, 50)
    made.actors[0].answers["kept"] = ALL
    assert made.tend() == KeptWeights(1, 100)
    made.launch("aa")
    assert len(made.actors) == 1
    made.launch("bc")
    assert (len(made.actors), made.actors[0].killed) == (3, True)
    assert made.tend() == KeptWeights(2, 200)
    made.keepers.close(1.0)
    assert [actor.killed for actor in made.actors] == [True] * 3
    assert made.keepers.standing() == KeptWeights()


def test_none_is_made_where_none_is_wanted(made: Made) -> None:
    made.keepers.wanted = False
    made.launch("ab")
    assert (made.tend(), made.actors) == (KeptWeights(), [])


@pytest.mark.parametrize("died_of", ["prepare", "hold", "kept"])
def test_f25_one_that_dies_is_named_and_another_is_made(
    made: Made, died_of: str, caplog: pytest.LogCaptureFixture
) -> None:
    made.coming = [Actor(**{"prepare": BEGUN, "kept": ALL, died_of: ActorDiedError()})]
    made.launch("a")
    assert made.tend(5) == KeptWeights(1, 100)
    assert (len(made.actors), made.actors[0].killed) == (2, True)
    assert "F25: " in caplog.text
    assert "which keeps the weights on node a, has ended" in caplog.text


def test_a_lost_node_is_no_dead_keeper(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    made.launch("ab")
    made.lost.add("a")
    made.actors[0].answers["hold"] = ActorDiedError()
    made.tend()
    made.keepers.make(on("bb"), {})
    assert made.tend() == KeptWeights(1, 100)
    assert (len(made.actors), "F25" in caplog.text) == (2, False)


def test_a_node_without_the_memory_ends_the_first_launch_and_no_later_one(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    short = Actor(prepare=Kept(7, problem="the weights take 2 B of memory, and 1 B are available"))
    made.coming = [short]
    with pytest.raises(LaunchError, match="keep_weights: on node a the weights take 2 B") as caught:
        made.launch("a")
    assert (caught.value.code, short.killed, caught.value.retryable) == ("F23", True, False)
    made.launch("a")
    made.tend()
    made.coming = [short]
    made.launch("b")
    assert made.tend() == KeptWeights()
    assert "the group goes on without" in caplog.text


def test_one_that_does_not_start_delays_no_later_launch_for_ever(made: Made) -> None:
    made.coming = [Actor(), Actor()]
    made.keepers.make(on("a"), {})
    with pytest.raises(LaunchError, match="no process on 1 node within 0 s") as caught:
        made.keepers.begin(0.0)
    assert (caught.value.code, caught.value.retryable) == ("F08", True)
    made.tend()
    made.keepers.begin(0.0)


@pytest.mark.parametrize(("load_format", "asked"), [("sharded_state", True), ("auto", False)])
def test_what_a_node_lacks_is_said_before_ranks_begin(made: Made, load_format: str, asked: bool) -> None:
    its = {node: SimpleNamespace(load_format=load_format) for node in "ab"}
    agents = {"a": Actor(problem_with=""), "b": Actor(problem_with="needs the package x")}
    if not asked:
        require_loadable(agents, its, 1.0)  # type: ignore[arg-type]
        return
    with pytest.raises(LaunchError, match="load_format = sharded_state needs the package x") as caught:
        require_loadable(agents, its, 1.0)  # type: ignore[arg-type]
    assert caught.value.code == "F19"


def test_memory_that_cannot_be_locked_is_said(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made.coming = [Actor(prepare=BEGUN, kept=Kept(7, 100, 100, locked=False))]
    made.launch("a")
    assert made.tend() == KeptWeights(1, 100, locked=False)
    assert "100 B of weights are kept on node a, unless the kernel takes them back: the limit of" in caplog.text
