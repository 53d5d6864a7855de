"""What is read of SGLang's scheduler while it serves."""

from __future__ import annotations

from types import SimpleNamespace

from raylaunch_actors.sglang_engine.versions import SchedulerCounters, watch_unless_paused


def scheduler(running=2, waiting=1, steps=5, paused=False):
    """What is read of SGLang's ``Scheduler``."""
    batch = SimpleNamespace(reqs=[object()] * running)
    return SimpleNamespace(
        running_batch=batch,
        cur_batch_for_debug=batch,
        waiting_queue=[object()] * waiting,
        forward_ct=steps,
        _engine_paused=paused,
        watchdog=SimpleNamespace(is_active=lambda: True),
    )


def test_requests_that_an_operator_holds_wait():
    one = scheduler()
    counters = SchedulerCounters(one, compilers=float)
    assert counters.read() == {"running": 2, "waiting": 1, "steps": 5, "compiling": 0}
    one._engine_paused = True
    assert counters.read() == {"running": 0, "waiting": 3, "steps": 5, "compiling": 0}


def test_compilers_are_looked_for_only_where_a_step_takes_long():
    one, asked = scheduler(), []
    counters = SchedulerCounters(one, compilers=lambda: asked.append(1) or 1.5)
    for one.forward_ct in (5, 6, 7):
        counters.read()
    assert asked == []
    assert counters.read()["compiling"] == 150
    one._engine_paused = True
    assert counters.read()["compiling"] == 0
    assert asked == [1]


def test_sglangs_watchdog_lets_a_paused_scheduler_be():
    one = scheduler()
    watch_unless_paused(one)
    assert one.watchdog.is_active()
    one._engine_paused = True
    assert not one.watchdog.is_active()
