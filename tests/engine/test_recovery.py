"""Whether a lost group is launched again, and after which pause."""

from __future__ import annotations

import math

import pytest

from raylaunch.engine.recovery import Budget, Loss, Verdict, launches_left, restart_policy, same_cause
from raylaunch.errors import LaunchError

BUDGET = Budget(3, 600)
SPENT, HOPELESS = "it was rebuilt 3 times within 600 s already", "it failed twice in the same way"


def served(summary: str = "rank 1 died: killed by SIGKILL") -> LaunchError:
    """A group that had answered requests."""
    return LaunchError(summary, "F07", "SERVE", rank=1, retryable=True)


def tried(phase: str = "LOAD", rank: int = 0, summary: str = "rank 0 died after 3.2 s") -> LaunchError:
    """A launch that did not come to serve."""
    return LaunchError(summary, "F06", phase, rank=rank, retryable=True)


def losses(*errors: LaunchError, every_s: float = 10.0) -> list[Loss]:
    return [Loss(number * every_s, error) for number, error in enumerate(errors)]


@pytest.mark.parametrize(
    ("error", "earlier", "verdict"),
    [
        (served(), [], Verdict(True)),
        (served(), losses(served(), served()), Verdict(True)),
        (served(), losses(served(), served(), served()), Verdict(False, why_not=SPENT)),
        (served(), losses(tried(), served(), served(), every_s=-300), Verdict(True)),
        (LaunchError("a rule is broken", "F03", "CAPTURE"), [], Verdict(False)),
        # The pause grows from one launch that does not come to serve to the next, and begins anew after one that did.
        (tried(), [], Verdict(True, 1.0)),
        (tried(), losses(served()), Verdict(True, 1.0)),
        (tried("CAPTURE"), losses(served(), tried()), Verdict(True, 2.0)),
        (tried("VERIFY"), losses(tried(), tried("CAPTURE")), Verdict(True, 4.0)),
        (served(), losses(tried(), tried("CAPTURE")), Verdict(True)),
        # What fails in the same way twice would never work, unless it has served meanwhile.
        (tried(), losses(tried()), Verdict(False, why_not=HOPELESS)),
        (tried(), losses(tried(), tried("CAPTURE")), Verdict(False, why_not=HOPELESS)),
        (tried(summary="rank 0 died after 4 s"), losses(served(), tried()), Verdict(False, why_not=HOPELESS)),
        (tried(), losses(tried(), served()), Verdict(True, 1.0)),
        (tried(rank=1), losses(tried()), Verdict(True, 2.0)),
        (tried(summary="out of memory"), losses(tried()), Verdict(True, 2.0)),
        (served(), losses(served()), Verdict(True)),
    ],
)  # fmt: skip
def test_what_follows_a_loss(error: LaunchError, earlier: list[Loss], verdict: Verdict) -> None:
    assert restart_policy(error, earlier, 500.0, BUDGET) == verdict


def test_the_longest_pause() -> None:
    earlier = losses(*(tried(f"phase {chr(65 + number)}") for number in range(9)))
    assert restart_policy(tried(), earlier, 100.0, Budget(50, 600)).pause_s == 30.0


def test_no_rebuilds_are_nothing_to_speak_of() -> None:
    assert restart_policy(served(), [], 0.0, Budget(0, 600)) == Verdict(False)


@pytest.mark.parametrize(
    ("now", "window_s", "left"), [(40, math.inf, 0), (40, 600, 0), (600, 600, 1), (615, 600, 2), (700, 600, 3)]
)
def test_the_budget_is_refilled_with_time(now: float, window_s: float, left: int) -> None:
    assert launches_left(losses(served(), served(), served()), now, Budget(3, window_s)) == left


def test_the_same_place_is_phase_round_shape_and_iteration() -> None:
    one = LaunchError("out of memory", "F23", "CAPTURE", "prefill", 128, 1)
    assert same_cause(one, LaunchError("out of memory", "F23", "CAPTURE", "prefill", 128, 1))
    assert not same_cause(one, LaunchError("out of memory", "F23", "CAPTURE", "prefill", 512, 1))
