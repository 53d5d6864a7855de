"""The rules of a launch: what must hold before ranks are released from a gate, each tied to its fault number.

A rule is a function of plain data that returns the violation it found, or None. ``RULES`` says at which gates it
is asked; a new rule is one function and one row there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raylaunch.protocol.phases import Arrival, Gate, LaunchPlan, Step, Violation
from raylaunch.protocol.rules.arrivals import everyone_is_here, facts_belong_here
from raylaunch.protocol.rules.capture import (
    all_reduces_recorded,
    all_registered,
    every_piece_holds_a_graph,
    no_replay_yet,
    same_inputs,
)
from raylaunch.protocol.rules.common import History, Rule
from raylaunch.protocol.rules.connect import (
    a_gpu_each,
    nothing_captured_yet,
    same_cache,
    same_communicator,
    same_fingerprint,
    same_pieces,
    same_rounds,
    same_tensors,
    table_is_large_enough,
)
from raylaunch.protocol.rules.verify import (
    every_piece_replayed,
    every_shape_verified,
    no_graph_after_register,
    replay_equals_eager,
    same_request,
)


def check(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], history: History) -> Violation | None:
    """The first violation at ``step``, or None if all ranks may be released."""
    violation = everyone_is_here(plan, step, arrivals, history) or facts_belong_here(plan, step, arrivals, history)
    if violation is not None:
        return violation
    ordered = sorted(arrivals, key=lambda arrival: arrival.rank)
    for rule in RULES[step.gate]:
        violation = rule(plan, step, ordered, history)
        if violation is not None:
            return violation
    return None


RULES: Mapping[Gate, tuple[Rule, ...]] = {
    Gate.MEET: (same_fingerprint, a_gpu_each),
    Gate.ATTACH: (),
    Gate.PROBED: (),
    Gate.MEASURED: (),
    Gate.CONNECTED: (same_communicator,),
    Gate.LOADED: (same_tensors,),
    Gate.WARMED: (nothing_captured_yet, same_rounds, same_pieces, same_cache, table_is_large_enough),
    Gate.ITERATION: (no_replay_yet, same_inputs),
    Gate.CAPTURED: (
        no_replay_yet,
        same_inputs,
        all_reduces_recorded,
        every_piece_holds_a_graph,
    ),
    Gate.REGISTERED: (no_replay_yet, all_registered),
    Gate.VERIFIED: (every_shape_verified, every_piece_replayed, replay_equals_eager, same_request),
    Gate.READY: (no_graph_after_register,),
    Gate.LATER: (every_piece_replayed, replay_equals_eager),
}
