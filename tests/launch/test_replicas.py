"""Two groups of one rank each, launched at once: they answer together, and leave nothing."""

from __future__ import annotations

import pytest

from raylaunch import LaunchConfig, LaunchError, Replicas
from raylaunch.engine import replicas as module
from raylaunch.engine.replicas import one_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]
ALONE = ("parallel.tensor_parallel_size=1", "parallel.replicas=2")


def test_both_answer_and_give_everything_back(tiny: LaunchConfig) -> None:
    sums = {f"{a}+{b}=": str(a + b) for a, b in ((1, 2), (30, 4), (5, 60), (77, 8), (9, 9), (40, 2))}
    with Replicas(tiny.override(*ALONE)) as replicas:
        health = replicas.health()
        assert health.ready
        assert [[rank.answers for rank in one.ranks] for one in health.replicas] == [[True], [True]]
        assert [one.text for one in replicas.generate(list(sums), max_new_tokens=8)] == list(sums.values())
        taken = [one.ranks[0].counters["tokens"] for one in replicas.health().replicas]
        assert min(taken) > 0, "each has answered some"
        assert "".join(chunk.text for chunk in replicas.stream("12+30=", max_new_tokens=8)) == "42"
        assert len({engine.report.places[0].pid for engine in replicas.engines}) == 2
        assert replicas.max_context > 0
    assert replicas.health().condition == "stopped"


def test_one_that_cannot_be_launched_ends_the_others_and_is_named(
    tiny: LaunchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "faults=[{action: raise, rank: 0, at: capture prefill 8 1}]"
    monkeypatch.setattr(module, "one_of", lambda config, at: one_of(config, at).override(*[fault] * at))
    replicas = Replicas(tiny.override(*ALONE))
    with pytest.raises(LaunchError, match="raised on purpose") as caught:
        replicas.start()
    assert (caught.value.code, caught.value.replica) == ("F05", 1)
    assert [one.health().ready for one in replicas.engines] == [False, False]
