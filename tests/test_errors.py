"""Errors: how they read, and that they cross process borders whole."""

from __future__ import annotations

import pickle

import pytest

from raylaunch import errors
from raylaunch.errors import LaunchError, RankEvidence, in_order


def f03():
    """The example of the design."""
    return LaunchError(
        "ranks recorded different all-reduce inputs",
        "F03",
        "CAPTURE",
        "prefill",
        1152,
        2,
        rank=1,
        ranks=[
            RankEvidence(0, "10.0.0.4", 70, "gpu 0", "73 inputs, 612 MiB"),
            RankEvidence(1, "10.0.0.4", 71, "gpu 1", "72 inputs, 603 MiB", log_tail="one\ntwo\n"),
        ],
        teardown="torn down in 0.8 s; 2 actors, 1 placement group released",
    )


def test_text_of_a_launch_error():
    assert str(f03()).splitlines() == [
        "LaunchError F03 [CAPTURE prefill, 1152 tokens, iteration 2] ranks recorded different all-reduce inputs",
        "  rank 0  node 10.0.0.4  pid 70  gpu 0  73 inputs, 612 MiB",
        "  rank 1  node 10.0.0.4  pid 71  gpu 1  72 inputs, 603 MiB   <- cause",
        "  rank 1, last log lines:",
        "    one",
        "    two",
        "  torn down in 0.8 s; 2 actors, 1 placement group released",
    ]


def test_evidence_is_shown_in_order_and_only_where_there_is_some():
    error = LaunchError("s", ranks=[RankEvidence(0, traceback="t"), RankEvidence(1, stacks="k", log_tail="l")])
    shown = [line.strip() for line in str(error).splitlines()[3:]]
    assert shown == ["rank 0, traceback:", "t", "rank 1, stacks:", "k", "rank 1, last log lines:", "l"]


@pytest.mark.parametrize(
    ("error", "headline"),
    [
        (LaunchError("no cluster"), "LaunchError no cluster"),
        (LaunchError("x", "F13", "PLACE"), "LaunchError F13 [PLACE] x"),
        (LaunchError("x", "F20", "VERIFY", "decode", 8), "LaunchError F20 [VERIFY decode, 8 requests] x"),
        (LaunchError("x", "F07", "SERVE", replica=1), "LaunchError F07 [SERVE, replica 1] x"),
        (LaunchError("x", replica=0), "LaunchError [replica 0] x"),
    ],
)
def test_headline(error, headline):
    assert error.headline() == headline == str(error)


EVERY_ERROR = [
    errors.RaylaunchError("text"),
    errors.ConfigError("a.b", [1], "right", "file.yaml"),
    errors.UnknownKey("a.c", 1, "unknown key", "file.yaml"),
    errors.EngineBusy("text"),
    errors.RequestError("text"),
    errors.RequestFailed("text"),
    errors.ReplicaLost("text"),
    errors.RankFault("F01", "text"),
    errors.RankFault(None, "text"),
    errors.CaptureError(None, "text"),
    errors.CollectiveAborted("F08", "text"),
    f03(),
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_every_error_is_in_that_list():
    kinds = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)}
    assert kinds == {type(error) for error in EVERY_ERROR}


def test_a_config_error_names_key_value_and_what_would_be_right():
    assert str(EVERY_ERROR[1]) == "file.yaml: a.b = [1]: right"


def test_errors_can_be_kept_in_sets_and_are_caught_by_their_bases():
    assert len({f03(), f03()}) == 2
    assert isinstance(errors.RequestError("x"), ValueError)
    assert all(isinstance(error, errors.RaylaunchError) for error in EVERY_ERROR)


@pytest.mark.parametrize(
    ("followers", "line"),
    [
        ([], "F15 gone"),
        (["F13 no room"], "F15 gone; the rebuild then failed: F13 no room"),
        (["F06 died", "F13 no room"], "F15 gone; the rebuild then failed: F06 died; after that it failed: F13 no room"),
        (["F06 died"] * 3, "F15 gone; the rebuild then failed (3 times): F06 died"),
        (
            ["F06 died", "F13 no room", "F06 died"],
            "F15 gone; the rebuild then failed: F06 died; after that it failed: F13 no room; after that it failed: "
            "F06 died",
        ),
    ],
)
def test_the_first_cause_comes_first_and_what_followed_in_its_order(followers, line):
    assert in_order("F15 gone", followers) == line


def test_an_error_with_followers():
    """The evidence is the first cause's; that of what followed comes after it."""
    error = LaunchError("node a is lost", "F15", "SERVE", rank=1, ranks=[RankEvidence(1, "a", state="lost")])
    error.followers.append(LaunchError("no room\nthe cluster has\n  nothing", "F13", "PLACE"))
    error.followers.append(LaunchError("the engine was shut down"))
    assert str(error).splitlines() == [
        "LaunchError F15 [SERVE] node a is lost; the rebuild then failed: F13 [PLACE] no room; after that it failed: "
        "the engine was shut down",
        "  rank 1  node a  lost   <- cause",
        "  attempt 1 after it: F13 [PLACE] no room",
        "  the cluster has",
        "    nothing",
    ]
    first = LaunchError("rank 1 died", "F06", "LOAD", followers=[LaunchError("rank 0 died", "F06", "CONNECT")])
    assert first.headline() == (
        "LaunchError F06 [LOAD] rank 1 died; another attempt then failed: F06 [CONNECT] rank 0 died"
    )
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, again.rank) == (str(error), "F15", 1)
