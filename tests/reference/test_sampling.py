from __future__ import annotations

from itertools import accumulate

import msgspec
import pytest
import torch
from raylaunch_actors.reference.cache_size import LOGIT_COPIES
from raylaunch_actors.reference.sampling import NO_TOKEN, make_generator, sample, token_logprobs
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from raylaunch.wire import Sampling

CPU = torch.device("cpu")


def draw(logits: Tensor, *params: Sampling) -> list[int]:
    return sample(logits, params, [make_generator(p, CPU) for p in params]).tolist()


def series(logits: Tensor, params: Sampling, steps: int, mates: int = 0) -> list[int]:
    """Tokens of one request over several steps, beside ``mates`` others."""
    own = make_generator(params, CPU)
    others = [Sampling(temperature=1.0 + i, seed=i, top_k=3 * i, top_p=0.5 if i % 2 else 1.0) for i in range(mates)]
    generators = [make_generator(p, CPU) for p in others]
    noise = torch.randn(mates, logits.shape[-1])
    out = []
    for _ in range(steps):
        place = mates // 2
        rows = torch.cat([noise[:place], logits[None], noise[place:]])
        ids = sample(rows, [*others[:place], params, *others[place:]], [*generators[:place], own, *generators[place:]])
        out.append(int(ids[place]))
    return out


def test_no_more_copies_of_the_logits_are_alive_than_memory_is_kept_for() -> None:
    """From the gathered logits on: bfloat16, half of them this rank's, as they are where the head is divided."""
    rows, vocab = 8, 20_000
    own = torch.randn(rows, vocab // 2).bfloat16()
    params = [Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=row) for row in range(rows)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        full = own.new_zeros((rows, vocab))
        full[:, : vocab // 2] = own
        draw(full.clone().float(), *params)
    changes = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = max(accumulate(changes)) / (rows * vocab * 4)
    assert 8 < most < LOGIT_COPIES


def test_greedy_takes_the_lowest_index_of_equal_ones() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [2.0, 2.0, 2.0, 2.0], [-torch.inf, -1.0, -1.0, -2.0]])
    assert draw(logits, *[Sampling()] * 3) == [1, 0, 1]
    wide = torch.zeros(3, 5000)
    wide[:, [17, 901, 4000]] = 3.0
    assert draw(wide, *[Sampling()] * 3) == [17] * 3


def test_a_seed_goes_on_behind_tokens_that_another_group_has_drawn() -> None:
    logits, params = torch.randn(50), Sampling(temperature=1.0, seed=5, max_new_tokens=9)
    whole = series(logits, params, 9)
    for drawn in range(9):
        later = make_generator(msgspec.structs.replace(params, drawn=drawn), CPU, 50)
        assert [sample(logits[None], [params], [later]).item() for _ in range(9 - drawn)] == whole[drawn:]


@pytest.mark.parametrize(
    "params", [Sampling(temperature=0.8, seed=3), Sampling(temperature=1.3, top_k=40, top_p=0.9, seed=7)]
)
def test_a_seed_gives_the_same_tokens_whatever_is_beside_it(params: Sampling) -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    alone = series(logits, params, 20)
    assert len(set(alone)) > 5
    assert series(logits, params, 20) == alone
    for mates in (1, 4, 9):
        assert series(logits, params, 20, mates) == alone
    assert series(logits, Sampling(temperature=params.temperature, seed=99), 20) != alone


def test_without_a_seed_tokens_differ() -> None:
    logits = torch.zeros(1000)
    assert series(logits, Sampling(temperature=1.0), 8) != series(logits, Sampling(temperature=1.0), 8)


def test_seeds_of_any_size() -> None:
    for seed in (-1, 0, 2**63 - 1, 2**64 - 1):
        make_generator(Sampling(temperature=1.0, seed=seed), CPU)


def test_every_bit_of_a_seed_counts() -> None:
    logits = torch.zeros(1000)

    def of(seed: int) -> list[int]:
        return series(logits, Sampling(temperature=1.0, seed=seed), 4)

    seeds = [1, *(1 + 2**bit for bit in range(1, 63))]
    assert len({tuple(of(seed)) for seed in seeds}) == len(seeds)
    for seed in (0, 1, 2**32 - 1):  # draws as they were
        noise = torch.empty(1000).exponential_(generator=torch.Generator().manual_seed(seed))
        assert of(seed)[0] == (logits.softmax(-1) / noise).argmax()


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    n = 20_000
    params = Sampling(temperature=1.0, seed=1)
    generator = make_generator(params, CPU)
    counts = torch.zeros(4)
    for _ in range(20):
        counts += torch.bincount(
            sample(probabilities.log().expand(n // 20, 4), [params] * (n // 20), [generator] * (n // 20)),
            minlength=4,
        )
    assert torch.allclose(counts / n, probabilities, atol=0.015)


def test_temperature_sharpens() -> None:
    logits = torch.tensor([1.0, 0.0])
    cold = series(logits, Sampling(temperature=0.1, seed=0), 200)
    hot = series(logits, Sampling(temperature=10.0, seed=0), 200)
    assert sum(cold) <= 2
    assert 70 < sum(hot) < 130


def test_top_k_and_top_p_limit_the_choice() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0, -1.0])
    assert set(series(logits, Sampling(temperature=5.0, top_k=2, seed=0), 200)) == {1, 2}
    assert set(series(logits, Sampling(temperature=5.0, top_k=1, seed=0), 50)) == {1}
    assert set(series(logits, Sampling(temperature=1.0, top_p=0.7, seed=0), 200)) == {1, 2}
    assert set(series(logits, Sampling(temperature=1.0, top_p=1e-9, seed=0), 50)) == {1}
    assert set(series(logits, Sampling(temperature=5.0, top_k=100, seed=0), 400)) == {0, 1, 2, 3, 4}
    ties = torch.zeros(10)
    assert set(series(ties, Sampling(temperature=1.0, top_k=3, seed=0), 200)) == {0, 1, 2}


def test_extreme_values() -> None:
    big = torch.tensor([[1e30, 0.0, -1e30]])
    assert draw(big, Sampling(temperature=1e-4, seed=0)) == [0]
    assert draw(torch.tensor([[1.0, 2.0]]), Sampling(temperature=1e-30, seed=0)) == [1]
    assert draw(torch.tensor([[1.0, 2.0]]), Sampling(temperature=1e30, seed=0))[0] in (0, 1)


def test_broken_logits_spoil_their_own_row_only() -> None:
    good = torch.tensor([0.0, 9.0, 0.0])
    rows = torch.stack([good, torch.full((3,), torch.nan), torch.tensor([0.0, torch.inf, 0.0]), good])
    drawn = Sampling(temperature=0.01, seed=0)
    assert draw(rows, Sampling(), Sampling(), Sampling(), drawn) == [1, NO_TOKEN, NO_TOKEN, 1]
    assert draw(rows, drawn, drawn, drawn, drawn) == [1, NO_TOKEN, NO_TOKEN, 1]
    assert draw(torch.full((1, 3), -torch.inf), Sampling()) == [NO_TOKEN]


def test_nothing_to_sample() -> None:
    assert draw(torch.empty(0, 10)) == []
    with pytest.raises(ValueError, match="2 rows"):
        sample(torch.zeros(2, 3), [Sampling()], [None])


def test_a_bias_is_of_its_row_and_leaves_the_logits_as_they_were() -> None:
    logits = torch.randn(3, 50)
    before = logits.clone()
    params = [
        Sampling(logit_bias=[(7, 100.0)]),
        Sampling(),
        Sampling(temperature=1.0, logit_bias=[(9, 1e30)]),
    ]
    found = draw(logits, *params)
    assert torch.equal(logits, before)
    assert found[0] == 7
    assert found[1] == before[1].argmax()
    assert found[2] == 9
    assert draw(logits[:1], Sampling(logit_bias=[(int(before[0].argmax()), -1e30)]))[0] != before[0].argmax()


def test_a_rows_log_probabilities_do_not_depend_on_the_rows_beside_it() -> None:
    logits = torch.randn(16, 3000, generator=torch.Generator().manual_seed(0)).bfloat16().float()  # many are equal
    tokens, wanted = list(range(16)), [0, 1, 5, 20, 5000, 1, 0, 7] * 2
    together = token_logprobs(logits, tokens, wanted)
    for row, found in enumerate(together):
        assert token_logprobs(logits[[row]], [tokens[row]], [wanted[row]]) == [found]
        logprobs = logits[row].log_softmax(-1)
        values, ids = logprobs.topk(min(wanted[row], 3000))
        assert (found.token_id, found.logprob) == (tokens[row], float(logprobs[tokens[row]]))
        assert found.top == list(zip(ids.tolist(), values.tolist(), strict=True))
