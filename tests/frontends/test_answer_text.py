"""An answer's text beside what decoding prompt and answer at once gives, and its end at a stop string."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raylaunch.frontends.text import AnswerText
from raylaunch.frontends.vocabulary import vocabulary_of
from tests.small_tokenizers import KINDS, byte_level, metaspace, word_pieces

PROMPTS = ("the", "a Paris", "x", "do n")


def answer(tokenizer, prompt, tokens, stops=(), sizes=(1,), ended_by=None):
    """The pieces of an answer whose tokens come ``sizes`` at a time, the last one at its end; what it stopped at."""
    text, pieces, at = AnswerText(tokenizer, prompt, stops), [], 0
    while at < len(tokens):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text.push(tokens[at : at + size]))
        at += size
    return [*pieces, text.finish(ended_by)], text.matched


def whole(tokenizer, prompt, tokens):
    """What the tokens add to the prompt when all are decoded at once."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    both = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
    assume(both.startswith(before))  # the answer has changed the prompt's own text: there is no difference to show
    return both[len(before) :]


def mixed_rows(tokenizer, tokens):
    """Whether a row of single bytes has both whole characters and something invalid: decoding drops the characters."""
    row, rows = b"", []
    # What decoding leaves out joins the bytes on its two sides.
    seen = [token for token in tokens if not vocabulary_of(tokenizer).hidden(token)]
    for name in [*tokenizer.convert_ids_to_tokens(seen), ""]:
        if name.startswith("<0x"):
            row += bytes.fromhex(name[3:5])
        else:
            rows.append(row)
            row = b""
    return any("\ufffd" in one.decode(errors="replace") and one.decode(errors="ignore") for one in rows)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=150)
def test_the_text_of_any_tokens_is_that_of_decoding_them_behind_the_prompt(kind, data):
    tokenizer = kind()
    ids = st.integers(0, len(tokenizer) - 1)
    prompt = tokenizer(data.draw(st.sampled_from(PROMPTS)))["input_ids"]
    tokens = data.draw(st.lists(ids, max_size=24))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    assume(kind is not metaspace or not mixed_rows(tokenizer, prompt + tokens))
    assert "".join(answer(tokenizer, prompt, tokens, sizes=sizes)[0]) == whole(tokenizer, prompt, tokens)


@pytest.mark.parametrize("kind", [byte_level, metaspace], ids=lambda kind: kind.__name__)
@given(text=st.text(" abx.é日😀\n", max_size=12), data=st.data())
def test_characters_of_several_tokens_are_whole_wherever_the_prompt_ends(kind, text, data):
    ids = kind()("the " + text)["input_ids"]
    at = data.draw(st.integers(1, len(ids)))
    pieces = answer(kind(), ids[:at], ids[at:])[0]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == ("the " + text)[-len("".join(pieces)) :] or not any(pieces)


@pytest.mark.parametrize("kind", [byte_level, metaspace], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("row", [b"\x98", b"\xf0", b"\xf0\x9f", b"\xe6\x97\xff", b"\xc3\x28"], ids=repr)
def test_a_row_of_invalid_bytes_is_shown_as_it_comes(kind, row):
    tokenizer = kind()
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    of = tokenizer.convert_tokens_to_ids(names) if kind is metaspace else range(256)
    tokens = [of[byte] for byte in row * (120 // len(row))]
    pieces = answer(tokenizer, tokenizer("x")["input_ids"], tokens)[0]
    silent = longest = 0
    for piece in pieces:
        silent = 0 if piece else silent + 1
        longest = max(longest, silent)
    assert longest <= 3
    if row == b"\x98":
        assert pieces[:3] == ["\ufffd"] * 3, "it can be no character's beginning"


def test_the_space_before_the_first_word_is_kept():
    tokenizer = metaspace()
    paris = tokenizer.convert_tokens_to_ids("▁Paris")
    assert answer(tokenizer, tokenizer("the")["input_ids"], [paris])[0] == [" Paris", ""]
    special = tokenizer.convert_tokens_to_ids(["<s>", "<|im_start|>"])
    assert answer(tokenizer, special, [paris])[0] == ["Paris", ""], "nothing comes before it"
    with_special = [*tokenizer("the")["input_ids"], *special]
    assert answer(tokenizer, with_special, [paris])[0] == [" Paris", ""]


def test_what_cleaning_up_may_take_back_is_not_shown_yet():
    tokenizer = word_pieces()
    tokens = tokenizer.convert_tokens_to_ids(["n", "'", "t"])
    assert "".join(answer(tokenizer, tokenizer("do")["input_ids"], tokens)[0]) == "n't"  # as in "don't"


def ids_of(tokenizer, *names):
    """Tokens by their text; special ones by name."""
    return [token for name in names for token in tokenizer(name, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize(
    ("names", "stops", "shown", "matched"),
    [
        (("G", "<|im_end|>", "<|im_start|>", "H"), ["<|im_end|>"], "G", "<|im_end|>"),
        (("G", "<|im_end|>", "H"), ["<|im_start|>"], "GH", None),
        (("G", "\n", "<|im_end|>", "H"), ["\n<|im_end|>"], "G", "\n<|im_end|>"),
        (("G", "<|im_end|>", "<|im_start|>", "H"), ["<|im_end|><|im_start|>"], "G", "<|im_end|><|im_start|>"),
        (("G", "<|im_end|>", "us", "er"), ["<|im_end|>user"], "G", "<|im_end|>user"),
        (("G", "<|im_end|>", "us", "x"), ["<|im_end|>user"], "Gusx", None),
        (("a", "<|im_end|>", "b"), ["ab"], "", "ab"),
        (("G", "<tool_call>", "H"), ["<tool_call>"], "G", "<tool_call>"),
        (("G", "<tool", "_call", ">"), ["<tool_call>"], "G", "<tool_call>"),
        (("G", "<|im", "_end|>", "H"), ["<|im_end|>"], "G", "<|im_end|>"),
        (("G", "é", "H"), ["é"], "G", "é"),
        (("G", "<|im_start|>"), ["<|im_end|>", "start|>"], "G", "start|>"),
    ],
)
def test_stop_strings_are_found_in_special_tokens_too(names, stops, shown, matched):
    tokenizer = byte_level()
    tokens = ids_of(tokenizer, *names)
    for size in (1, 2, len(tokens)):
        pieces, found = answer(tokenizer, [256], tokens, stops, (size,))
        assert ("".join(pieces), found) == (shown, matched)


def test_a_broken_character_before_a_stop_string_is_shown_and_whole_ones_behind_special_tokens_are_kept():
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "".join(answer(tokenizer, [65], [0xE2, 0x82, end, 0xAC], ["<|im_end|>"])[0]) == "\ufffd"
    assert "".join(answer(tokenizer, [65], [0xE2, 0x82, end, 0xAC])[0]) == "€"


def test_a_stop_string_may_end_with_the_token_that_ended_the_answer():
    tokenizer = byte_level()
    (end,) = ids_of(tokenizer, "</s>")
    tokens = ids_of(tokenizer, "FG")
    assert answer(tokenizer, [65], tokens, ["G</s>"], ended_by=end) == (["F", "", ""], "G</s>")
    assert answer(tokenizer, [65], tokens, ["</s>"], ended_by=end)[1] == "</s>"
    assert answer(tokenizer, [65], tokens, ["H</s>"], ended_by=end) == (["F", "G", ""], None)
