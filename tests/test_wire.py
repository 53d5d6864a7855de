"""Messages cross the wire whole, and what is no message is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylaunch import wire

SUBMIT = wire.Submit("r", [1, 2], wire.Sampling(seed=3, stop_token_ids=[2]))
PLAN = wire.StepPlan("prefill", 8, [1, 2], [0, 1], [wire.SequencePart(0, 2, 0, 0, True)])
OUTPUTS = [wire.Output("r", [5], "stop"), wire.Output("s", [], "error", "why")]
DECODERS = (wire.decode_to_rank, wire.decode_outputs, wire.decode_plan)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (wire.decode_to_rank, SUBMIT),
        (wire.decode_to_rank, wire.Abort("é")),
        (wire.decode_to_rank, wire.Stop()),
        (wire.decode_plan, PLAN),
        (wire.decode_plan, wire.Stop()),
        (wire.decode_outputs, OUTPUTS),
        (wire.decode_outputs, []),
    ],
)
def test_round_trip(decode, message):
    assert decode(wire.encode(message)) == message


@given(st.text("aé€", max_size=10), st.lists(st.integers(0, 2**31)), st.none() | st.integers(0, 2**63))
def test_any_submission(name, prompt, seed):
    submit = wire.Submit(name, prompt, wire.Sampling(seed=seed))
    assert wire.decode_to_rank(wire.encode(submit)) == submit


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (wire.decode_to_rank, PLAN),
        (wire.decode_plan, SUBMIT),
        (wire.decode_outputs, SUBMIT),
        (wire.decode_to_rank, {"type": "submit", "request_id": 3, "prompt": [], "sampling": {}}),
        (wire.decode_to_rank, {"type": "submit", "request_id": "r", "prompt": ["a"], "sampling": {}}),
        (wire.decode_to_rank, {"type": "exec", "request_id": "r"}),
        (wire.decode_outputs, [{"request_id": "r", "tokens": [1], "finish": "whenever"}]),
        (wire.decode_plan, {"type": "step", "round": "verify", "shape": 1, "tokens": [], "positions": []}),
    ],
)
def test_a_message_of_another_kind_is_refused(decode, message):
    with pytest.raises(msgspec.ValidationError):
        decode(msgspec.msgpack.encode(message))


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(st.binary(max_size=40))
def test_garbage_is_refused(decode, data):
    try:
        decoded = decode(data)
    except msgspec.DecodeError:
        return
    assert decode(wire.encode(decoded)) == decoded


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
def test_every_message_cut_short_is_refused(decode):
    for message in (SUBMIT, PLAN, OUTPUTS):
        data = wire.encode(message)
        for length in range(len(data)):
            with pytest.raises(msgspec.DecodeError):
                decode(data[:length])
