"""The embedded default gives the same tokens however it is run, and leaves nothing however often it is launched."""

from __future__ import annotations

import json

import pytest

from raylaunch import Engine, LaunchConfig
from raylaunch.config import shipped_configs

pytestmark = pytest.mark.usefixtures("clean")


def held_out() -> list[dict[str, str]]:
    text = (shipped_configs() / "data" / "sums-heldout.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def answers(*settings: str) -> tuple[list[tuple[int, ...]], list[str], str]:
    """Token ids and texts of the 200 held-out sums, and what was said of the all-reduce."""
    with Engine(LaunchConfig.default(settings)) as engine:
        done = engine.generate([row["prompt"] for row in held_out()], max_new_tokens=8)
        table = engine.report.table(200)
    return [answer.token_ids for answer in done], [answer.text for answer in done], table


@pytest.mark.slow
def test_graphs_and_eager_one_rank_and_two() -> None:
    ids, texts, table = answers()
    assert texts == [row["answer"] for row in held_out()]
    assert "shared-memory" in table
    eager_ids, _, _ = answers("capture.enabled=false", "parallel.tensor_parallel_size=1")
    assert eager_ids == ids


@pytest.mark.slow
def test_the_library_where_it_is_asked_for() -> None:
    ids, texts, table = answers("communicator=library")
    assert texts == [row["answer"] for row in held_out()]
    assert "gloo" in table
    assert "asked for by communicator.kind" in table
    assert len(ids) == 200


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["true", "false"])
def test_the_fastest_where_it_is_measured(capture: str) -> None:
    """The times are in the report, for every size of the shapes."""
    _, texts, table = answers("communicator=auto", f"capture.enabled={capture}")
    assert texts == [row["answer"] for row in held_out()]
    assert "the fastest of what is possible here" in table
    assert "1.0 KiB: shared-memory" in table or "1.0 KiB: gloo" in table


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["true", "false"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_way_of_running_gives_the_same_tokens(capture: str, ranks: int) -> None:
    ids, texts, _ = answers(f"capture.enabled={capture}", f"parallel.tensor_parallel_size={ranks}")
    assert texts == [row["answer"] for row in held_out()]
    assert len(ids) == 200


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_launches_leave_nothing(tiny: LaunchConfig) -> None:
    """What ``clean`` checks after every test, after twenty launches of which every fourth fails."""
    from raylaunch import LaunchError

    for number in range(20):
        if number % 4 == 3:
            with pytest.raises(LaunchError, match="F06"):
                Engine(tiny.replace({"faults": [{"action": "kill", "rank": 1, "at": "capture prefill 8 1"}]})).start()
        else:
            with Engine(tiny) as engine:
                assert engine.generate("12+30=", max_new_tokens=8).text == "42"
