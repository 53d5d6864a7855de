"""One rank answers as transformers' generate() does, eagerly and with graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from raylaunch_actors.communicator.base import pending_inputs, register_inputs
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs.context import Mode
from raylaunch_actors.reference.rows import RowRanges
from raylaunch_actors.reference.runner import ModelRunner
from raylaunch_actors.reference.scheduler import Scheduler
from raylaunch_actors.reference.worker import RankZeroWorker
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from raylaunch.errors import RankFault
from raylaunch.wire import Output, Sampling, SequencePart, StepPlan, Submit
from tests.models import BUILDERS, save
from tests.reference.engines import compile_and_capture, make_runner, prompts, submits, tokens

NEW = 16


def reference(path: Path, texts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens by transformers, one prompt at a time."""
    kind = AutoModelForImageTextToText if "vl" in path.name else AutoModelForCausalLM
    model = kind.from_pretrained(path, dtype=torch.float32).eval()
    answers = []
    for prompt in texts:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        answers.append(model.generate(ids, max_new_tokens=NEW, **options)[0, len(prompt) :].tolist())
    return answers


def run(runner: ModelRunner, *requests: Submit) -> list[Output]:
    worker = RankZeroWorker(runner, Scheduler(runner.limits), None)
    for request in requests:
        assert worker.submit(request) == []
    outputs = worker.run_until_idle()
    assert worker.counters.tokens == sum(len(output.tokens) for output in outputs)
    assert (worker.counters.running, worker.counters.waiting) == (0, 0)
    return outputs


def random_plan(runner: ModelRunner, round_: str, seed: int) -> StepPlan:
    """A step of several sequences, some of them with a past, over rows with random keys and values."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    for tensor in (*runner.cache.keys, *runner.cache.values):
        tensor.normal_(generator=generator)
    shapes = runner.limits.prefill_shapes if round_ == "prefill" else runner.limits.decode_shapes
    shape = shapes[number(0, len(shapes) - 1)]
    rows = RowRanges(runner.limits.capacity)
    parts, ids, positions = [], [], []
    while len(ids) < shape and len(parts) < 5:
        new = 1 if round_ == "decode" else number(1, shape - len(ids))
        past = number(0, 100)
        start = rows.allocate(new + past)
        assert start is not None
        parts.append(SequencePart(len(ids), new, start, past, True))
        ids += [number(0, 900) for _ in range(new)]
        positions += range(past, past + new)
    return StepPlan(round_, shape, ids, positions, parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BUILDERS)
def test_tokens_equal_generate_and_replay_equals_eager(name: str, models: Path) -> None:
    path = save(name, models)
    texts = prompts(1025, 128)
    expected = reference(path, texts)
    communicator = SingleRank()
    runner = make_runner(path, communicator=communicator)
    eager = run(runner, *submits(texts, Sampling(max_new_tokens=NEW)))
    assert [tokens(eager, 0), tokens(eager, 1)] == expected

    backend = compile_and_capture(runner, communicator)
    register_inputs(communicator, [pending_inputs(communicator)])
    for again in range(2):  # the same request twice
        replayed = run(runner, *submits(texts, Sampling(max_new_tokens=NEW)))
        assert replayed == eager, f"run {again}"
    assert all(piece.replays for piece in backend.pieces)
    assert backend.compiles == 1

    for seed in range(6):
        plan = random_plan(runner, "prefill" if seed % 3 == 0 else "decode", seed)
        before = [tensor.clone() for tensor in (*runner.cache.keys, *runner.cache.values)]
        one = runner.hidden(plan, Mode.EAGER).clone()
        for tensor, old in zip((*runner.cache.keys, *runner.cache.values), before, strict=True):
            tensor.copy_(old)
        two = runner.hidden(plan, Mode.REPLAY)
        assert torch.equal(one, two), f"seed {seed}: {plan.round} {plan.shape}"


@pytest.fixture(scope="module")
def small(models: Path) -> ModelRunner:
    return make_runner(save("qwen3_tied", models), prefill=(16, 64), decode=(2, 4), capacity=800)


def test_chunked_prompts_answer_as_whole_ones(models: Path, small: ModelRunner) -> None:
    texts = prompts(300, 129, 64, 1)
    expected = reference(save("qwen3_tied", models), texts)
    outputs = run(small, *submits(texts, Sampling(max_new_tokens=NEW)))
    assert [tokens(outputs, i) for i in range(4)] == expected


def test_tokens_beyond_the_positions_that_yarn_scales(models: Path) -> None:
    path = save("qwen3_yarn", models)
    runner = make_runner(path, prefill=(16, 128), decode=(2, 4), capacity=1024)
    assert runner.limits.max_context == 256
    texts = prompts(60, 150, 224)
    outputs = run(runner, *submits(texts, Sampling(max_new_tokens=NEW)))
    assert [tokens(outputs, i) for i in range(3)] == reference(path, texts)


def test_more_requests_than_fit(small: ModelRunner) -> None:
    texts = prompts(*range(5, 65, 3), seed=2)
    sampling = Sampling(max_new_tokens=6)
    together = run(small, *submits(texts, sampling))
    for number, request in enumerate(submits(texts, sampling)):
        if number % 5 == 0:
            assert tokens(run(small, request), number) == tokens(together, number)


def test_a_seed_gives_the_same_tokens_in_company(small: ModelRunner) -> None:
    texts = prompts(20, 33, 47, 9)
    seeded = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.95, top_k=50, seed=11)
    alone = tokens(run(small, Submit("1", texts[1], seeded)), 1)
    others = submits(texts, Sampling(max_new_tokens=9, temperature=0.7))
    company = run(small, others[0], Submit("1", texts[1], seeded), *others[2:])
    assert tokens(company, 1) == alone
    assert tokens(run(small, Submit("1", texts[1], seeded)), 1) == alone


def test_dummy_passes_leave_the_cache_alone(small: ModelRunner) -> None:
    small.cache.keys[0].fill_(3.0)
    small.dummy(Mode.EAGER, "prefill", 16)
    assert bool((small.cache.keys[0] == 3.0).all())


def test_unknown_shape_is_named(small: ModelRunner) -> None:
    with pytest.raises(RankFault, match=r"17 is no prefill shape; there are \[16, 64\]"):
        small.dummy(Mode.EAGER, "prefill", 17)


def test_padding_rows_are_zero_where_nothing_attends(small: ModelRunner) -> None:
    plan = StepPlan("decode", 4, [5], [0], [SequencePart(0, 1, 0, 0, False)])
    assert small.hidden(plan, Mode.EAGER).shape == (4, 128)
    nothing = small.forward(plan)
    assert nothing.shape == (0, 128)
    logits = small.logits(nothing)
    assert logits is not None
    assert logits.shape == (0, 1024)
