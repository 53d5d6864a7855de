"""Where VERIFY's batches lie: rows of the cache, of its part for windows, and places for states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from raylaunch_actors.sglang_engine.slots import PREFIX_TOKENS, Slots, decode_rows, wanted_rows


@pytest.mark.parametrize(
    ("shape", "page", "last", "context", "longest"),
    [
        (8, 1, 4096, 4096, 200),
        (8, 64, 4096, 4096, 192),
        (8, 1, 4096, 30, 29),
        (8, 1, 25, 4096, 8),
        (8, 16, 300, 4096, 16),
        (8, 1, 17, 4096, 0),
    ],
)
def test_decoded_tokens_have_rows_of_their_own_after_whole_pages(shape, page, last, context, longest):
    last -= max(1, page)  # for padding
    turns = [decode_rows(shape, page, last, context, again=again) for again in (False, True)]
    for prefix, lengths, new in turns:
        assert prefix == max(lengths) == longest
        assert max(lengths) < context
        assert all(length % page == 0 for length in lengths)
        assert len(set(lengths)) == min(shape, longest // page // 2 + 1)
        assert min(new) >= prefix
        assert max(new) < last
        assert all(row % page == 0 for row in new)
    assert turns[0][:2] == turns[1][:2]
    assert len({*turns[0][2], *turns[1][2]}) == 2 * shape, "the replay cannot find what eager has written"


def test_a_cache_without_room_takes_new_tokens_alone():
    assert decode_rows(8, 1, 5, 100, again=True) == (0, [0] * 8, [0, 1, 2, 3, 4, 0, 1, 2])


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("shape", [1, 8, 100])
def test_rows_that_are_lent_are_enough(shape, page):
    wanted = wanted_rows("decode", shape, page)
    prefix, _, new = decode_rows(shape, page, wanted, 4096, again=True)
    assert prefix == PREFIX_TOKENS // page * page
    assert max(new) < wanted == max(new) + page
    assert wanted_rows("prefill", shape, page) in range(shape, shape + page, 1)
    assert wanted_rows("prefill", shape, page) % page == 0


class States:
    """What Slots uses of SGLang's pool of states."""

    size = 3

    def __init__(self):
        self.cleared = []

    def clear_slots(self, places):
        self.cleared.append(places.tolist())


def runner(**more):
    requests = SimpleNamespace(req_to_token=torch.arange(40, dtype=torch.int32).view(4, 10), **more.pop("requests", {}))
    cache = SimpleNamespace(**more.pop("cache", {}))
    return SimpleNamespace(
        req_to_token_pool=requests,
        token_to_kv_pool=cache,
        page_size=1,
        max_total_num_tokens=8,
        model_config=SimpleNamespace(context_len=100),
    )


def test_what_is_borrowed_is_given_back():
    windows = torch.tensor([0] * 9 + [-1])
    states = torch.zeros(4, dtype=torch.int32)
    requests = {"req_index_to_mamba_index_mapping": states, "mamba_pool": States()}
    made = runner(requests=requests, cache={"full_to_swa_index_mapping": windows, "size_swa": 3})
    with Slots(made).borrowed() as slots:
        assert (slots.rows.tolist(), slots.context) == ([1, 2, 3, 4, 5, 6, 7], 10)
        slots.save_rows(2, 3)
        slots.table[1, :3] = 7
        slots.save_rows(2, 3)
        slots.clear_states(4)
        assert windows.tolist() == [0, 1, 2, 3, 1, 2, 3, 1, 0, -1]
        assert states.tolist() == [1, 2, 3, 1]
        assert requests["mamba_pool"].cleared == [[1, 2, 3, 1]]
    assert torch.equal(made.req_to_token_pool.req_to_token, torch.arange(40, dtype=torch.int32).view(4, 10))
    assert windows.tolist() == [0] * 9 + [-1]
    assert states.tolist() == [0] * 4


def test_lent_rows_have_their_windows_already():
    windows = torch.arange(10)
    rows = torch.tensor([6, 2])
    with Slots(runner(cache={"full_to_swa_index_mapping": windows, "size_swa": 3}), rows).borrowed() as slots:
        assert slots.rows.tolist() == [6, 2]
        assert windows.tolist() == list(range(10))


def test_most_models_have_neither_windows_nor_states():
    with Slots(runner()).borrowed() as slots:
        slots.clear_states(4)
