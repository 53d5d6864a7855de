"""The thread that Ray is started on, and waits that signals do not end."""

from __future__ import annotations

import threading
import time

import pytest

from raylaunch import ray_private
from raylaunch.background import outlast
from raylaunch.cluster.ray_thread import RayThread
from raylaunch.ray_private import signals_left_alone


def test_start_and_end_are_on_one_thread_that_stays_between_them() -> None:
    on: list[threading.Thread] = []
    one = RayThread(lambda: on.append(threading.current_thread()), lambda: on.append(threading.current_thread()))
    assert one.up(5)
    time.sleep(0.05)
    assert len(on) == 1
    assert on[0].is_alive()
    assert one.over(5)
    assert on == [on[0], on[0]]
    assert on[0] not in (threading.main_thread(), threading.current_thread())


def test_what_the_start_raises_is_kept_and_what_the_end_raises_dropped() -> None:
    def fail() -> None:
        raise SystemExit("no GCS")

    one = RayThread(fail, fail)
    assert one.up(5)
    assert isinstance(one.error, SystemExit)
    assert one.over(5)


def test_ray_takes_no_signals_while_it_starts_here() -> None:
    """That this version of Ray has the switch; what it does is tested where signals are sent to commands."""
    taken = ray_private.handlers_installed()
    assert taken is not None
    before = taken.value
    with signals_left_alone():
        assert taken.value
    assert taken.value is before
    taken.value = True  # a session that was there before
    try:
        with signals_left_alone():
            pass
        assert taken.value
    finally:
        taken.value = before


@pytest.mark.parametrize("errors", [0, 1, 2])
def test_a_wait_outlasts_what_signals_raise_and_tells_the_first_afterwards(errors: int) -> None:
    raised: list[KeyboardInterrupt] = []
    looks = 0

    def done(_: float) -> bool:
        nonlocal looks
        looks += 1
        if len(raised) < errors:
            raised.append(KeyboardInterrupt(len(raised)))
            raise raised[-1]
        return looks >= 4

    if errors == 0:
        assert outlast(done, 5.0)
    else:
        with pytest.raises(KeyboardInterrupt) as told:
            outlast(done, 5.0)
        assert told.value is raised[0]
    assert looks == 4


def test_a_wait_has_its_end() -> None:
    began = time.monotonic()
    assert not outlast(lambda _: time.sleep(0.01) is not None, 0.1)
    assert time.monotonic() - began < 2
