"""Standby ranks: a rebuild adopts them, whoever dies, and none is left behind."""

from __future__ import annotations

import os
import signal
import time

import pytest

from raylaunch import Engine, LaunchConfig
from tests.standing import lose, pids_of, said, spare_pids, streaming, without_spares

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("clean")
def test_a_rebuild_adopts_them_and_makes_new_ones(tiny: LaunchConfig, capsys: pytest.CaptureFixture[str]) -> None:
    pauses = []
    with Engine(tiny.override("recovery.rebuilds=5", "recovery.standby=1")) as engine:
        right = engine.generate("12+30=", max_new_tokens=8).token_ids
        with streaming(engine, 200) as came:
            for rank in (0, 1):
                spares = spare_pids(engine, 2)
                pauses.append(lose(engine, rank, came))
                assert sorted(pids_of(engine)) == sorted(spares)
                assert "2 ranks on 1 node, 2 of which stood by" in engine.report.table()
            nbytes, with_spares = spare_pids(engine, 2) and engine.report.standby.nbytes, engine.report.table(140)
            without_spares(engine)
            pauses.append(lose(engine, 0, came))
        assert engine.generate("12+30=", max_new_tokens=8).token_ids == right
        with capsys.disabled():
            print(f"\n{with_spares}\n{engine.report.table(140)}\n{said(pauses)}; {nbytes >> 20} MiB")


@pytest.mark.usefixtures("clean")
def test_one_that_is_killed_is_replaced_and_the_group_serves_on(
    tiny: LaunchConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing when the group is lost is started anew."""
    settings = ("capture.enabled=false", "recovery.rebuilds=5", "recovery.standby=1")
    with Engine(tiny.override(*settings)) as engine, streaming(engine, 200) as came:
        first = spare_pids(engine, 2)
        os.kill(first[0], signal.SIGKILL)
        while engine.report.standby.ranks == 2:
            time.sleep(0.01)
        second = spare_pids(engine, 2)
        assert len({*first, *second}) == 3
        assert (engine.health().ready, engine.restarts) == (True, 0)
        with capsys.disabled():
            print(f"\na standby rank has {engine.report.standby.nbytes >> 21} MiB in memory")
        os.kill(second[0], signal.SIGSTOP)
        lose(engine, 1, came)
        assert [place.adopted for place in engine.report.places].count(True) == 1
        spare_pids(engine, 2)
