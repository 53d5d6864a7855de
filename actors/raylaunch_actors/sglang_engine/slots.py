"""Where tokens and states of SGLang's requests lie while VERIFY runs batches that no scheduler has placed, before it
serves or between its requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PREFIX_TOKENS = 200  # before a decoded token: several blocks of keys, of which the last is not full


class Slots:
    """SGLang's places for requests, which nobody else uses.

    Args:
        rows: whole pages of the KV cache that the scheduler has lent; None takes all, as long as it has none in use.

    Attributes:
        page: rows of a page of the KV cache.
        rows: those that tokens may be written to, ascending within each page; the first page is for padding.
        context: tokens of a request, at most.
        table: ``[requests, positions]``: the row of each token.
    """

    def __init__(self, model_runner: Any, rows: torch.Tensor | None = None) -> None:
        self._requests = model_runner.req_to_token_pool
        self._cache = model_runner.token_to_kv_pool
        self.table: torch.Tensor = self._requests.req_to_token
        self.page = int(model_runner.page_size)
        self._lent = rows is not None
        first = max(1, self.page)
        last = max(first + 1, int(model_runner.max_total_num_tokens))
        self.rows = torch.arange(first, last, device=self.table.device) if rows is None else rows
        self._before: torch.Tensor | None = None
        self.context = min(self.table.shape[1], int(model_runner.model_config.context_len))

    @contextmanager
    def borrowed(self) -> Iterator[Slots]:
        """What is entered inside is undone afterwards."""
        windows = None if self._lent else getattr(self._cache, "full_to_swa_index_mapping", None)
        kept = windows.clone() if windows is not None else None
        if windows is not None:
            self._map_windows(windows)
        yield self
        if windows is not None:
            windows.copy_(kept)
        if self._states is not None:
            self._states.zero_()
        if self._before is not None:
            requests, tokens = self._before.shape
            self.table[:requests, :tokens] = self._before

    def save_rows(self, requests: int, tokens: int) -> None:
        """Notes that the first requests get that many tokens each, at most."""
        if self._before is None:
            self._before = self.table[:requests, :tokens].clone()

    def _map_windows(self, windows: torch.Tensor) -> None:
        """Layers with a sliding window have a smaller cache of their own: each row gets one there, or all would share
        the one for padding."""
        size = int(self._cache.size_swa) // self.page * self.page
        windows[self.rows] = (self.rows[0] + (self.rows - self.rows[0]) % size).to(windows.dtype)

    @property
    def _states(self) -> torch.Tensor | None:
        """``[requests]``: the place of each request's state, of models that keep one instead of keys."""
        return getattr(self._requests, "req_index_to_mamba_index_mapping", None)

    def clear_states(self, count: int) -> None:
        """Gives the first ``count`` requests states of their own, of zeros: eager and replay must begin alike."""
        if self._states is None:
            return
        pool = self._requests.mamba_pool
        places = 1 + torch.arange(count, device=self._states.device) % int(pool.size)
        self._states[:count] = places.to(self._states.dtype)
        pool.clear_slots(places)


def wanted_rows(round_name: str, shape: int, page: int) -> int:
    """Rows of the cache, in whole pages, that a batch has room in: of prefill one for each token, for decode as
    :func:`decode_rows` has it."""
    return -(-shape // page) * page if round_name == "prefill" else (PREFIX_TOKENS // page + 2 * shape) * page


def decode_rows(shape: int, page: int, last: int, context: int, *, again: bool) -> tuple[int, list[int], list[int]]:
    """How many rows all requests have in common, of how many of them each sees the first, and where its new token goes.

    Whole pages are common, as those of equal beginnings are, and each new token begins a page. A small cache has room
    for less, down to new tokens alone, in rows that are used more than once.

    Args:
        shape: requests.
        page: rows of a page.
        last: rows 0 to ``last - 1`` may be used; 0 begins a page.
        context: tokens of a request, at most.
        again: takes other rows for the new tokens, where there are any.
    """
    room = last - 2 * shape * page
    if room < 0:
        return 0, [0] * shape, [request % last for request in range(shape)]
    pages = min(PREFIX_TOKENS, context - 1, room) // page
    lengths = [(pages - request % (pages // 2 + 1)) * page for request in range(shape)]
    start = pages * page + (shape * page if again else 0)
    return pages * page, lengths, [start + request * page for request in range(shape)]
