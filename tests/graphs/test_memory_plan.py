from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from raylaunch_actors.graphs.memory_plan import ALIGNMENT, Lifetime, place


@st.composite
def lifetimes(draw):
    spans = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 1000)), max_size=30))
    return [Lifetime(key, nbytes, min(a, b), max(a, b)) for key, (a, b, nbytes) in enumerate(spans)]


def rounded(block):
    return max(-(-block.nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)


@given(lifetimes())
def test_blocks_alive_together_never_overlap(blocks):
    placed = place(blocks)
    assert set(placed.offsets) == {b.key for b in blocks}
    for a in blocks:
        start = placed.offsets[a.key]
        assert start % ALIGNMENT == 0
        assert start + rounded(a) <= placed.nbytes
        for b in blocks:
            together = a.key != b.key and a.first <= b.last and b.first <= a.last
            other = placed.offsets[b.key]
            assert not together or start + rounded(a) <= other or other + rounded(b) <= start


@given(lifetimes())
def test_the_total_lies_between_the_peak_and_the_sum(blocks):
    total = place(blocks).nbytes
    peak = max((sum(rounded(b) for b in blocks if b.first <= t <= b.last) for t in range(31)), default=0)
    assert peak <= total <= sum(rounded(b) for b in blocks)


def test_a_chain_needs_two_blocks_however_long_it_is():
    chain = [Lifetime(step, 1000, step, step + 1) for step in range(20)]
    assert place(chain).nbytes == 2 * 1024


def test_a_steps_output_never_shares_with_its_input():
    placed = place([Lifetime(0, 64, 0, 1), Lifetime(1, 64, 1, 2)])
    assert placed.offsets[0] != placed.offsets[1]


def test_nothing():
    assert place([]).nbytes == 0
