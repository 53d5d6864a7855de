"""Text from tokens that arrive a few at a time: nothing lost, nothing taken back, nothing after a stop string."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from raylaunch.config import LaunchConfig
from raylaunch.frontends.text import Detokenizer, StopScanner
from tests.busy import patient


class Bytes:
    """A byte-level tokenizer: token ids are bytes, 256 is special; a piece may end inside a character."""

    def decode(self, ids, skip_special_tokens=True):
        plain = bytes(one for one in ids if one < 256)
        return plain.decode("utf-8", errors="replace") + ("" if skip_special_tokens else "<end>" * (256 in ids))


class Spaces:
    """Like SentencePiece: every token brings a space before it, and decoding drops the first one."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(f" w{one}" for one in ids).lstrip()


def cut(draw_from, sequence):
    """``sequence`` in random pieces."""
    cuts = sorted(draw_from.draw(st.lists(st.integers(0, len(sequence)), max_size=6)))
    return [sequence[a:b] for a, b in zip([0, *cuts], [*cuts, len(sequence)], strict=True)]


def streamed(tokenizer, pieces):
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(piece) for piece in pieces), detokenizer.flush()]


@given(st.text("aé€😀\ufffd\u0301", max_size=20), st.data())
def test_characters_split_over_tokens_arrive_whole(text, data):
    ids = list(text.encode())
    shown = streamed(Bytes(), cut(data, ids))
    assert "".join(shown) == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in shown)


@given(st.lists(st.integers(0, 256), max_size=30), st.data())
def test_any_bytes_give_what_decoding_them_at_once_gives(ids, data):
    assert "".join(streamed(Bytes(), cut(data, ids))) == Bytes().decode(ids)


def test_a_special_token_inside_a_character_does_not_part_it():
    assert "".join(streamed(Bytes(), [[194], [256], [128]])) == Bytes().decode([194, 256, 128]) == "\x80"


@given(st.lists(st.integers(0, 9), max_size=12), st.data())
def test_spaces_between_tokens_are_kept(ids, data):
    assert "".join(streamed(Spaces(), cut(data, ids))) == Spaces().decode(ids)


def test_a_character_is_held_back_until_it_is_complete():
    detokenizer = Detokenizer(Bytes())
    assert [detokenizer.push([byte]) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    assert detokenizer.flush() == ""


def test_an_incomplete_character_at_the_end_is_shown_as_such():
    assert streamed(Bytes(), [[0x61], [0xE2]]) == ["a", "", "\ufffd"]


def test_special_tokens_are_left_out_unless_asked_for():
    assert streamed(Bytes(), [[0x61], [256]]) == ["a", "", ""]
    assert Detokenizer(Bytes(), skip_special_tokens=False).push([0x61, 256]) == "a<end>"


@pytest.fixture(scope="module")
def shipped():
    return Tokenizer.from_file(f"{LaunchConfig.default().model.path}/tokenizer.json")


@given(st.data())
def test_the_shipped_tokenizer(shipped, data):
    text = data.draw(st.text("0123456789+=", max_size=12))
    ids = shipped.encode(text).ids + [2]
    assert "".join(streamed(shipped, cut(data, ids))) == text


# ---- stop strings


def scan(stops, pieces):
    scanner = StopScanner(stops)
    shown = [*(scanner.push(piece) for piece in pieces), scanner.flush()]
    return shown, scanner.stopped


def up_to_first_stop(text, stops):
    """The text before the stop string that is complete first; of several that end together, before the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_shown_is_the_text_up_to_the_first_stop_string_however_it_is_cut(text, stops, data):
    shown, stopped = scan(stops, cut(data, text))
    assert ("".join(shown), stopped) == up_to_first_stop(text, stops)


@given(st.text("ab", max_size=24), st.lists(st.text("ab", min_size=1, max_size=12), min_size=1, max_size=3), st.data())
def test_no_more_is_held_back_than_may_become_a_stop_string(text, stops, data):
    scanner, seen, shown = StopScanner(stops), "", ""
    for piece in cut(data, text):
        seen, shown = seen + piece, shown + scanner.push(piece)
        if scanner.stopped:
            break
        begun = [size for stop in stops for size in range(len(stop)) if seen.endswith(stop[:size])]
        assert shown == seen[: len(seen) - max(begun)]


def test_stop_strings_that_repeat_themselves_cost_no_more_than_others():
    """Each token with 64 of 1024 characters took milliseconds of the one thread that delivers all answers."""
    stops = ["a" * 1023 + chr(200 + number) for number in range(64)]
    scanner, began = StopScanner(stops), time.process_time()
    for _ in range(1000):
        scanner.push("ab"[len(scanner._held) > 900])
    assert time.process_time() - began < patient(1.5)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        ([], ["a", "b"], ["a", "b", ""]),
        (["END"], ["aE", "N", "x"], ["a", "", "ENx", ""]),
        (["END"], ["aE", "ND", "x"], ["a", "", "", ""]),
        (["END"], ["aEN"], ["a", "EN"]),
        (["\n"], ["1\n2"], ["1", ""]),
        (["aab"], ["aa", "ab"], ["", "a", ""]),
        (["abc", "b"], ["a", "b", "c"], ["", "a", "", ""]),
        (["abc", "b"], ["abc"], ["a", ""]),
        (["bc", "abc"], ["abc"], ["", ""]),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(stops, pieces, shown):
    assert scan(stops, pieces)[0] == shown
