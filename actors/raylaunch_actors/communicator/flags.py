"""Sequence words in shared memory: how ranks wait for one another inside an all-reduce.

Each word has one writer and only grows. Stores are aligned and 8 bytes wide, and x86-64 does not reorder
stores, so data written before a word is seen by whoever has seen the word. Elsewhere Python has no fence, and
this must not be used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch

from raylaunch.errors import CollectiveAborted
from raylaunch_actors.communicator.arena import Segment

WORDS = 32
LINE = 8  # words in a cache line
START, DONE, ABORT = 0, LINE, 2 * LINE

SPINS = 200  # reads before the first yield
YIELDS_PER_CHECK = 64
SLEEP_AFTER_S = 0.05  # nobody is that late in a healthy step: leave the core to others
SLEEP_S = 0.0005


class Flags:
    """The words of all ranks, seen from one rank."""

    def __init__(self, rank: int, segments: Sequence[Segment], deadline_s: float) -> None:
        self.rank = rank
        self.deadline_s = deadline_s
        self._words = [memoryview(s.view(0, (WORDS,), torch.int64).numpy()) for s in segments]
        self._mine = self._words[rank]
        self._peers = [(r, words) for r, words in enumerate(self._words) if r != rank]

    def publish(self, word: int, value: int) -> None:
        """Tells the peers that this rank has come to `value`."""
        self._mine[word] = value

    def wait(self, word: int, value: int) -> None:
        """Returns when every peer has come to `value`.

        Raises:
            CollectiveAborted: a rank aborted, or a peer did not come within the deadline.
        """
        for peer, words in self._peers:
            for _ in range(SPINS):
                if words[word] >= value:
                    break
            else:
                self._wait_long(peer, words, word, value)

    def abort(self) -> None:
        """Ends all waits of all ranks, now and later."""
        self._mine[ABORT] = 1

    def raise_if_aborted(self, what: str = "") -> None:
        """Raises CollectiveAborted if any rank aborted."""
        for rank, words in enumerate(self._words):
            if words[ABORT]:
                who = "this rank" if rank == self.rank else f"rank {rank}"
                raise CollectiveAborted(None, f"rank {self.rank}: {who} aborted{what}")

    def _wait_long(self, peer: int, words: memoryview, word: int, value: int) -> None:
        start = time.monotonic()
        while True:
            for _ in range(YIELDS_PER_CHECK):
                if words[word] >= value:
                    return
                os.sched_yield()
            self.raise_if_aborted(f" (while waiting for rank {peer} at all-reduce #{value})")
            waited = time.monotonic() - start
            if waited > self.deadline_s:
                step = "to finish" if word == DONE else "to reach"
                raise CollectiveAborted(
                    None,
                    f"rank {self.rank}: waited {self.deadline_s:g} s for rank {peer} {step} all-reduce "
                    f"#{value}; it is at all-reduce #{words[START]}",
                )
            if waited > SLEEP_AFTER_S:
                time.sleep(SLEEP_S)
