"""How long a step may take: a deadline that progress extends, up to a ceiling."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raylaunch.group.driver import Deadline


def deadline(window=10.0, ceiling=100.0):
    return Deadline(window, ceiling, began=1000.0)


def ended(limit, now):
    return limit.left(now) <= 0


def test_without_progress_a_step_ends_after_its_window():
    limit = deadline()
    for now in (1005.0, 1009.9):
        limit.note_progress(now, {0: 3, 1: 4})
        assert not ended(limit, now)
    assert ended(limit, 1010.0)


def test_progress_of_one_rank_extends_it():
    limit = deadline()
    limit.note_progress(1005.0, {0: 1, 1: 1})
    limit.note_progress(1009.0, {0: 1, 1: 2})
    assert not ended(limit, 1018.9)
    assert ended(limit, 1019.0)


def test_a_count_seen_for_the_first_time_is_no_progress():
    limit = deadline()
    limit.note_progress(1005.0, {0: 7})
    limit.note_progress(1009.0, {1: 7})
    assert ended(limit, 1010.0)


def test_a_rank_that_does_not_answer_is_no_progress():
    limit = deadline()
    limit.note_progress(1005.0, {0: 7})
    limit.note_progress(1009.0, {})
    assert ended(limit, 1010.0)


def test_progress_does_not_extend_it_beyond_the_ceiling():
    limit = deadline(ceiling=15.0)
    limit.note_progress(1005.0, {0: 1})
    limit.note_progress(1009.0, {0: 2})
    assert not ended(limit, 1014.9)
    assert ended(limit, 1015.0)


def test_progress_is_looked_at_four_times_per_window():
    limit = deadline()
    assert not limit.is_due(1002.4)
    assert limit.left(1000.0) == 2.5
    assert limit.is_due(1002.5)
    limit.note_progress(1002.5, {})
    assert not limit.is_due(1004.9)
    assert limit.is_due(1005.0)


def test_a_rank_that_works_from_the_start_is_seen_before_the_first_window_ends():
    limit, now = deadline(), 1000.0
    while now < 1015.0:
        now += limit.left(now) + 0.001  # a wait returns a little late
        assert limit.is_due(now)
        limit.note_progress(now, {0: int(now * 10)})
    assert not ended(limit, now)


@given(st.lists(st.floats(0.01, 30), max_size=40), st.integers(0, 20))
def test_a_rank_that_stops_is_noticed_within_two_windows_and_one_that_works_by_the_ceiling(pauses, stops_after):
    limit, now, looks = deadline(), 1000.0, 0
    last_progress = now
    while not ended(limit, now):
        assert 0 < limit.left(now) <= 10.0
        now += min(limit.left(now), pauses[looks % len(pauses)] if pauses else 10.0)
        if limit.is_due(now):
            looks += 1
            last_progress = now if looks <= stops_after else last_progress
            limit.note_progress(now, {0: min(looks, stops_after)})
        assert now <= 1100.0 + 1e-6
    assert now <= last_progress + 20.0
