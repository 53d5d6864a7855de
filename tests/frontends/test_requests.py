"""Requests on the driver's side: outputs in, chunks out, one end each."""

from __future__ import annotations

import pytest

from raylaunch.errors import RequestError, RequestFailed
from raylaunch.frontends.requests import Chunk, RequestTable, RunningRequest
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.wire import Output


class Letters:
    """Token 1 is ``a``, token 2 is ``b`` and so on."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(96 + one) for one in ids)


def request(tokenizer=Letters(), name="r", **params):  # noqa: B008
    """A request, and the list its chunks arrive in."""
    arrived = []
    return RunningRequest(name, [1], SamplingParams(**params), tokenizer, arrived.append), arrived


def out(*tokens, finish=None, message=""):
    return Output("r", list(tokens), finish, message)


def test_chunks_of_an_answer():
    running, arrived = request()
    assert not running.receive(out(1, 2))
    assert not running.finished
    assert not running.receive(out(3, finish="length"))
    assert arrived == [Chunk("r", "ab", (1, 2)), Chunk("r", "c", (3,), "length")]
    assert running.finished


def test_without_a_tokenizer_there_are_tokens_only():
    running, arrived = request(tokenizer=None)
    running.receive(out(1, finish="stop"))
    assert arrived == [Chunk("r", "", (1,), "stop")]


def test_a_stop_string_ends_the_request_and_asks_for_an_abort():
    running, arrived = request(stop="cd")
    assert not running.receive(out(1, 3))
    assert running.receive(out(4, 5)), "the rank goes on unless it is told"
    assert arrived == [Chunk("r", "a", (1, 3)), Chunk("r", "", (4, 5), "stop", matched="cd")]
    assert not running.receive(out(6, finish="abort"))
    assert len(arrived) == 2


def test_a_stop_string_in_the_last_output_needs_no_abort():
    running, arrived = request(stop="b")
    assert not running.receive(out(1, 2, finish="length"))
    assert arrived == [Chunk("r", "a", (1, 2), "stop", matched="b")]


def test_what_was_held_back_for_a_stop_string_is_shown_at_the_end():
    running, arrived = request(stop="bx")
    running.receive(out(1, 2))
    running.receive(out(finish="length"))
    assert [chunk.text for chunk in arrived] == ["a", "b"]


@pytest.mark.parametrize("finish", ["stop", "length", "abort"])
def test_an_end_without_tokens_is_a_chunk(finish):
    running, arrived = request()
    running.receive(out(finish=finish))
    assert arrived == [Chunk("r", "", (), finish)]


def test_an_output_that_adds_nothing_is_no_chunk():
    running, arrived = request()
    running.receive(out())
    assert arrived == []
    assert not running.finished


def test_an_error_of_the_rank_ends_the_request():
    running, arrived = request()
    running.receive(out(1))
    assert not running.receive(out(finish="error", message="cannot sample: NaN"))
    assert isinstance(arrived[1], RequestFailed)
    assert str(arrived[1]) == "request r: cannot sample: NaN"
    assert running.finished


def test_tokens_that_cannot_be_made_text_end_the_request_and_are_aborted():
    class Broken:
        def decode(self, ids, skip_special_tokens=True):
            raise KeyError(3)

    running, arrived = request(tokenizer=Broken())
    assert running.receive(out(3))
    assert [str(one) for one in arrived] == ["request r: its tokens cannot be made text: 3"]
    assert running.finished


def test_only_the_first_end_counts():
    running, arrived = request()
    running.receive(out(1, finish="stop"))
    running.fail(RequestFailed("too late"))
    running.receive(out(2))
    assert arrived == [Chunk("r", "a", (1,), "stop")]


def test_table_refuses_a_name_in_use_and_too_many():
    table = RequestTable(limit=2)
    one, two, three = (request(name=name)[0] for name in "abc")
    table.add(one)
    with pytest.raises(RequestError, match="request id 'a' is in use"):
        table.add(request(name="a")[0])
    table.add(two)
    with pytest.raises(RequestError, match="2 requests are running or waiting already"):
        table.add(three)
    table.remove("a")
    table.remove("a")
    table.add(three)
    assert (len(table), table.get("a"), table.get("b")) == (2, None, two)
    assert table.pop_all() == [two, three]
    assert len(table) == 0


def test_a_table_without_a_limit():
    table = RequestTable()
    for number in range(2000):
        table.add(request(name=str(number))[0])
    assert len(table.pop_all()) == 2000
