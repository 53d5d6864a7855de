"""What is left out of SGLang's start."""

from __future__ import annotations

import gc
import weakref

import pytest
from raylaunch_actors.sglang_engine.shorter import collect_what_is_new, once


class Ring:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.me = self


def test_the_same_files_are_read_once_for_both_who_ask():
    made, asked = {}, []

    def get_tokenizer(path, *, mode="auto"):
        asked.append((path, mode))
        return object()

    def get_processor(path, *, mode="auto"):
        return object()

    scheduler, worker = once(get_tokenizer, made), once(get_tokenizer, made)
    first = scheduler("/models/one", mode="auto")
    assert worker("/models/one", mode="auto") is first
    assert worker("/models/one", mode="slow") is not first
    assert worker("/models/two", mode="auto") is not first
    assert once(get_processor, made)("/models/one", mode="auto") is not first
    assert asked == [("/models/one", "auto"), ("/models/one", "slow"), ("/models/two", "auto")]


def test_one_that_cannot_be_read_is_tried_again():
    def get_tokenizer(path):
        tried.append(path)
        raise OSError(path)

    made, tried = {}, []
    for _ in range(2):
        with pytest.raises(OSError, match="none"):
            once(get_tokenizer, made)("none")
    assert tried == ["none", "none"]


@pytest.mark.parametrize("collects", [False, True])
def test_what_was_frozen_stays_so_and_new_garbage_is_found(collects):
    begun, old = gc.isenabled(), gc.get_freeze_count()  # some of what is frozen may end by itself meanwhile
    gc.enable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    try:
        before, after = Ring(), Ring()
        gone, later = weakref.ref(before), weakref.ref(after)
        del before
        with collect_what_is_new(collects):
            assert gone() is None
            assert gc.isenabled() is collects
            del after
            assert gc.get_freeze_count() > frozen // 2
        assert later() is None
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen // 2
    finally:
        if not old:
            gc.unfreeze()
        if not begun:
            gc.disable()
