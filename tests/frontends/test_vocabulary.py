"""Single tokens: their text, their bytes, which are hidden, which end an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylaunch.frontends.vocabulary import Vocabulary, pending_bytes
from raylaunch.serve.reference.token_text import TextOffsets
from tests.small_tokenizers import byte_level, metaspace

EMOJI = "😀".encode()


@pytest.mark.parametrize(
    ("data", "pending"),
    [(b"", 0), (b"a", 0), (EMOJI, 0), (EMOJI[:1], 1), (EMOJI[:2], 2), (b"a" + EMOJI[:3], 3), (b"\x98", 0), (b"\xff", 0),
     (b"\xf0\x80", 0), (b"\xed\xa0", 0), (b"\xe2\x82\xe2", 1), (b"\xc3(", 0), (b"\xf4\x90", 0)],
    ids=repr,
)  # fmt: skip
def test_which_bytes_may_become_a_character(data, pending):
    assert pending_bytes(data) == pending


@pytest.mark.parametrize("byte", [0x41, 0x20, 0xF0, 0x9F, 0x98, 0x80, 0xC3])
def test_each_byte_of_a_byte_level_tokenizer(byte):
    vocabulary = Vocabulary(byte_level())
    assert vocabulary.bytes_of(byte) == bytes([byte])
    assert vocabulary.label(byte) == (chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}")


@pytest.mark.parametrize(
    ("name", "data", "label"),
    [
        ("▁Paris", b" Paris", " Paris"),
        ("ing", b"ing", "ing"),
        ("▁", b" ", " "),
        ("<0xF0>", b"\xf0", "bytes:\\xf0"),
        ("<0x41>", b"A", "A"),
        ("日本", "日本".encode(), "日本"),
        ("</s>", b"</s>", "</s>"),
        ("<tool_call>", b"<tool_call>", "<tool_call>"),
    ],
)
def test_tokens_of_a_tokenizer_with_spaces_and_single_bytes(name, data, label):
    vocabulary, token = Vocabulary(metaspace()), metaspace().convert_tokens_to_ids(name)
    assert (vocabulary.bytes_of(token), vocabulary.label(token)) == (data, label)


def test_special_tokens_are_hidden_and_added_ones_are_not():
    for tokenizer in (byte_level(), metaspace()):
        vocabulary = Vocabulary(tokenizer)
        ids = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>", "<tool_call>"])
        assert [vocabulary.hidden(token) for token in ids] == ["</s>", "<|im_end|>", ""]
    assert vocabulary.hidden(metaspace().convert_tokens_to_ids("▁")) == ""


def test_a_token_beyond_the_tokenizer_has_a_name_of_its_own():
    vocabulary = Vocabulary(byte_level())
    assert (vocabulary.label(100_000), vocabulary.bytes_of(100_000)) == ("token_id:100000", b"")


def test_ends_are_the_tokenizers_own():
    assert Vocabulary(byte_level()).ends == (byte_level().eos_token_id,)
    assert Vocabulary(object()).ends == ()


@given(st.text(" ab日é😀\ufffd", max_size=10))
def test_bytes_of_the_tokens_are_those_of_the_text(text):
    vocabulary = Vocabulary(byte_level())
    assert b"".join(map(vocabulary.bytes_of, byte_level()(text)["input_ids"])) == text.encode()


@pytest.mark.parametrize(
    ("data", "offsets"),
    [
        (b"ab", [0, 1]),
        (b"a" + EMOJI + b"b", [0, 1, 1, 1, 1, 2]),
        ("é日".encode(), [0, 0, 1, 1, 1]),
        (EMOJI[:2] + b"a", [0, 0, 1]),
        (b"\x98\x98a", [0, 1, 2]),
        (b"\xe2\x82" + EMOJI, [0, 0, 1, 1, 1, 1]),
        (b"\xf0\xf0", [0, 1]),
    ],
    ids=repr,
)
def test_where_tokens_begin_in_the_text(data, offsets):
    places = TextOffsets(Vocabulary(byte_level()), [65])
    assert [places.next(byte) for byte in data] == offsets
    text = data.decode("utf-8", "replace")
    for at, byte in zip(offsets, data, strict=True):
        if byte < 0x80:
            assert text[at] == chr(byte)


def test_single_bytes_that_stay_broken_are_a_character_each():
    names = ["<0xF0>", "<0x9F>", "x", "<0xC3>", "<0xA9>", "x"]
    places = TextOffsets(Vocabulary(metaspace()), [65])
    tokens = metaspace().convert_tokens_to_ids(names)
    assert [places.next(token) for token in tokens] == [0, 0, 2, 3, 3, 4]
    assert metaspace().decode(tokens) == "\ufffd\ufffdxéx"


def test_special_tokens_move_no_offset_and_a_first_word_may_have_no_space():
    tokenizer = metaspace()
    paris, end, start = tokenizer.convert_tokens_to_ids(["▁Paris", "<|im_end|>", "<s>"])
    for prompt, offsets in (([paris], [0, 0, 6]), ([start], [0, 0, 5])):
        places = TextOffsets(Vocabulary(tokenizer), prompt)
        assert [places.next(token) for token in (end, paris, paris)] == offsets
