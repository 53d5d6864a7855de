from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raylaunch_actors.reference.limits import Limits
from raylaunch_actors.reference.scheduler import ScheduledBatch, Scheduler

from raylaunch.wire import Output, Sampling, Submit

EOS, STOP = 90, 91
LIMITS = Limits(
    prefill_shapes=(4, 8, 16),
    decode_shapes=(2, 4),
    max_running=6,
    max_context=64,
    capacity=100,
    vocab_size=100,
    eos_token_ids=frozenset({EOS}),
)


def ask(name: str, prompt: int = 3, new: int = 4, **sampling: object) -> Submit:
    return Submit(name, list(range(1, prompt + 1)), Sampling(max_new_tokens=new, **sampling))  # type: ignore[arg-type]


def token_of(name: str, index: int) -> int:
    """The token that the fake model gives a request at a place: ordinary, and different for each."""
    return (hash((name, index)) % 80) + 1


class FakeModel:
    """Checks every step against a cache kept by hand, and answers with :func:`token_of`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cache: dict[int, tuple[str, int, int]] = {}  # row -> (request, position, token)
        self.outputs: dict[str, list[Output]] = {}

    def book(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.outputs.setdefault(output.request_id, []).append(output)

    def run(self, step: ScheduledBatch) -> list[int]:
        plan, limits = step.plan, self.scheduler.limits
        assert plan.shape in limits.shapes_of(plan.round)
        assert len(plan.tokens) == len(plan.positions) == sum(part.rows for part in plan.sequences) <= plan.shape
        smaller = [shape for shape in limits.shapes_of(plan.round) if shape < plan.shape]
        assert all(shape < len(plan.tokens) for shape in smaller), "a smaller shape would do"
        for request, part in zip(step.requests, plan.sequences, strict=True):
            taken = self.scheduler._rows.taken[part.kv_start]
            assert part.kv_length + part.rows <= taken
            everything = [*request.submit.prompt, *request.generated]
            for row in range(part.rows):
                position, token = plan.positions[part.start + row], plan.tokens[part.start + row]
                assert position == part.kv_length + row
                assert token == everything[position]
                self.cache[part.kv_start + position] = (request.id, position, token)
            for position in range(part.kv_length + part.rows):
                held = self.cache[part.kv_start + position]
                assert held == (request.id, position, everything[position]), "another request wrote here"
            if part.wants_token:
                assert part.kv_length + part.rows == len(everything)
        return [token_of(request.id, len(request.generated)) for request in step.wanting]

    def step(self) -> bool:
        step = self.scheduler.next_step()
        if step is None:
            return False
        self.book(self.scheduler.complete(step, self.run(step)))
        return True

    def run_out(self) -> None:
        for _ in range(10_000):
            if not self.step():
                return
        raise AssertionError("does not come to an end")

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs.get(name, []) for token in output.tokens]


def test_one_request() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    assert scheduler.submit(ask("a")) is None
    model.run_out()
    assert model.tokens("a") == [token_of("a", i) for i in range(4)]
    assert [output.finish for output in model.outputs["a"]] == [None, None, None, "length"]
    assert scheduler.idle
    assert scheduler._rows.taken == {}


def test_prompts_are_packed_and_chunked_with_a_decode_step_between() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    for name, length in (("a", 5), ("b", 20), ("c", 3)):
        scheduler.submit(ask(name, prompt=length))
    seen = []
    for _ in range(4):
        step = scheduler.next_step()
        assert step is not None
        seen.append([(r.id, part.rows) for r, part in zip(step.requests, step.plan.sequences, strict=True)])
        model.book(scheduler.complete(step, model.run(step)))
    assert seen == [[("a", 5), ("b", 11)], [("a", 1)], [("b", 9), ("c", 3)], [("b", 1), ("a", 1), ("c", 1)]]


def test_a_stream_of_prompts_keeps_no_running_request_from_its_tokens() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    scheduler.submit(ask("long", new=20))
    asked = 0
    for _ in range(2 * 20):
        while scheduler.waiting < 2:  # each ends with its first token and leaves room for the next
            asked += 1
            scheduler.submit(ask(f"short{asked}", prompt=16, new=1))
        model.step()
    assert len(model.tokens("long")) == 20
    assert sum(len(model.tokens(f"short{number}")) for number in range(1, asked + 1)) >= 19


def test_a_long_prompt_keeps_no_running_request_from_its_tokens() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    scheduler.submit(ask("running", new=20))
    model.step()
    model.step()
    scheduler.submit(ask("long", prompt=60, new=2))
    rounds = []
    while "long" not in model.outputs:
        step = scheduler.next_step()
        assert step is not None
        rounds.append((step.plan.round, [request.id for request in step.requests]))
        model.book(scheduler.complete(step, model.run(step)))
    chunk, token = ("prefill", ["long"]), ("decode", ["running"])
    assert rounds == [chunk, token, chunk, token, chunk, token, chunk]
    model.run_out()
    assert [len(model.tokens(name)) for name in ("running", "long")] == [20, 2]


def test_prefill_goes_on_where_nothing_can_decode() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    scheduler.submit(ask("long", prompt=60))
    for _ in range(4):
        step = scheduler.next_step()
        assert step is not None
        assert step.plan.round == "prefill"
        model.book(scheduler.complete(step, model.run(step)))
    assert len(model.tokens("long")) == 1


def test_decode_takes_turns_when_more_run_than_a_batch_holds() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    for name in "abcdef":
        scheduler.submit(ask(name, prompt=2))
    model.step()
    groups = []
    for _ in range(3):
        step = scheduler.next_step()
        assert step is not None
        groups.append("".join(request.id for request in step.requests))
        model.book(scheduler.complete(step, model.run(step)))
    assert groups == ["abcd", "efab", "cdef"]
    model.run_out()
    assert all(len(model.tokens(name)) == 4 for name in "abcdef")


def test_a_large_request_is_not_overtaken() -> None:
    scheduler = Scheduler(replace(LIMITS, capacity=20))
    model = FakeModel(scheduler)
    for request in (ask("a", 8, 4), ask("big", 10, 10), ask("c", 2, 2)):
        scheduler.submit(request)
    model.step()
    assert (scheduler.running, scheduler.waiting) == (1, 2)
    model.run_out()
    assert [len(model.tokens(name)) for name in ("a", "big", "c")] == [4, 10, 2]


@pytest.mark.parametrize(
    ("sampling", "token", "finish", "tokens"),
    [
        ({}, EOS, "stop", 0),
        ({"ignore_eos": True}, EOS, None, 1),
        ({"stop_token_ids": [STOP]}, STOP, "stop", 0),
        ({}, STOP, None, 1),
        ({"ignore_eos": True, "stop_token_ids": [EOS]}, EOS, "stop", 0),
    ],
)
def test_stop_tokens(sampling: dict, token: int, finish: str | None, tokens: int) -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(ask("a", **sampling))
    step = scheduler.next_step()
    assert step is not None
    (output,) = scheduler.complete(step, [token])
    assert (output.finish, len(output.tokens)) == (finish, tokens)
    assert output.matched == (token if finish else None)
    assert scheduler.idle == (finish is not None)


def test_the_end_of_the_context_ends_a_request() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    scheduler.submit(ask("a", prompt=60, new=1000))
    model.run_out()
    assert len(model.tokens("a")) == 4
    assert model.outputs["a"][-1].finish == "length"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Submit("a", [], Sampling()), "empty"),
        (Submit("a", [100], Sampling()), "token id 100 is outside the vocabulary of 100"),
        (Submit("a", [-1], Sampling()), "token id -1"),
        (ask("a", prompt=64), "64 tokens and the context ends at 64"),
        (ask("a", new=-1), "max_new_tokens"),
        (ask("a", prompt=65, new=0), "65 tokens and the context ends at 64"),
        (ask("a", logit_bias=[(100, 1.0)]), "logit_bias: token id 100 is outside the vocabulary of 100"),
        (ask("a", temperature=-1.0), "temperature"),
        (ask("a", temperature=float("nan")), "temperature"),
        (ask("a", temperature=float("inf")), "temperature"),
        (ask("a", top_p=0.0), "top_p"),
        (ask("a", top_p=float("nan")), "top_p"),
        (ask("a", top_k=-1), "top_k"),
    ],
)
def test_what_can_never_run_is_refused(request_: Submit, reason: str) -> None:
    refused = Scheduler(LIMITS).submit(request_)
    assert refused is not None
    assert refused.finish == "error"
    assert reason in refused.message


def test_too_large_for_the_cache_is_refused_and_a_used_id_too() -> None:
    scheduler = Scheduler(replace(LIMITS, capacity=10))
    refused = scheduler.submit(ask("a", 8, 3))
    assert refused is not None
    assert "need 11 rows of the KV cache, which has 10" in refused.message
    assert scheduler.submit(ask("a", 8, 2)) is None
    again = scheduler.submit(ask("a", 1, 1))
    assert again is not None
    assert "in use" in again.message
    FakeModel(scheduler).run_out()
    assert scheduler.submit(ask("a", 1, 1)) is None, "the id is free again"


def test_steps_are_completed_in_order() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(ask("a"))
    step = scheduler.next_step()
    assert step is not None
    with pytest.raises(RuntimeError, match="before complete"):
        scheduler.next_step()
    with pytest.raises(ValueError, match="2 tokens for 1 requests"):
        scheduler.complete(step, [1, 2])
    scheduler.complete(step, [1])
    with pytest.raises(RuntimeError, match="not the one"):
        scheduler.complete(step, [1])


action = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 40), st.integers(1, 30)),
    st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("abort"), st.integers(0, 20), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(action, max_size=40), st.sampled_from([30, 64, 100, 400]), st.integers(1, 7))
def test_every_request_gets_exactly_its_tokens(
    actions: list[tuple[str, int, int]], capacity: int, max_running: int
) -> None:
    scheduler = Scheduler(replace(LIMITS, capacity=capacity, max_running=max_running))
    model = FakeModel(scheduler)
    asked: dict[str, Submit] = {}
    aborted: set[str] = set()
    for kind, first, second in actions:
        if kind == "submit":
            request = ask(f"r{len(asked)}", first, second)
            refused = scheduler.submit(request)
            assert (refused is not None) == (min(first + second, 64) > capacity)
            if refused is None:
                asked[request.request_id] = request
        elif kind == "step":
            for _ in range(first):
                model.step()
        elif asked:
            name = f"r{first % len(asked)}"
            step = scheduler.next_step() if second else None  # abort while a step is being run
            tokens = model.run(step) if step else []
            output = scheduler.abort(name)
            if output is not None:
                aborted.add(name)
                model.book([output])
            if step:
                model.book(scheduler.complete(step, tokens))
        assert scheduler.running <= max_running
        assert scheduler.running == len(scheduler._rows.taken)
        assert scheduler.kv_used == sum(scheduler._rows.taken.values())
    model.run_out()
    assert scheduler.idle
    assert scheduler._rows.taken == {}
    for name, request in asked.items():
        outputs = model.outputs[name]
        assert [output.finish for output in outputs[:-1]] == [None] * (len(outputs) - 1)
        expected = min(request.sampling.max_new_tokens, 64 - len(request.prompt))
        assert model.tokens(name) == [token_of(name, i) for i in range(len(model.tokens(name)))]
        if name in aborted:
            assert outputs[-1].finish == "abort"
        else:
            assert outputs[-1].finish == "length"
            assert len(model.tokens(name)) == expected


def test_abort_all() -> None:
    scheduler = Scheduler(LIMITS)
    for name in "abc":
        scheduler.submit(ask(name))
    scheduler.next_step()
    ended = scheduler.abort_all("going down")
    assert [(o.request_id, o.finish, o.message) for o in ended] == [(n, "abort", "going down") for n in "abc"]
    assert scheduler.idle
    assert scheduler._rows.taken == {}


def test_every_token_of_a_prompt_but_the_first_is_scored_once_by_the_row_before_it() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    for name, length in (("a", 5), ("b", 40), ("c", 1)):
        scheduler.submit(ask(name, prompt=length, prompt_logprobs=0))
    scheduler.submit(ask("plain", prompt=20))
    scheduler.submit(ask("went on", prompt=20, prompt_logprobs=0, drawn=2))
    scored: dict[str, list[int]] = {}
    while (step := scheduler.next_step()) is not None:
        for request, part in zip(step.requests, step.plan.sequences, strict=True):
            scored.setdefault(request.id, []).extend(part.kv_length + row + 1 for row in range(part.scored))
        model.book(scheduler.complete(step, model.run(step)))
    assert scored == {"a": [*range(1, 5)], "b": [*range(1, 40)], "c": [], "plain": [], "went on": []}


def test_a_prompt_alone_generates_nothing_and_may_fill_the_context() -> None:
    scheduler = Scheduler(LIMITS)
    model = FakeModel(scheduler)
    assert scheduler.submit(ask("a", prompt=64, new=0)) is None
    model.run_out()
    assert [(output.tokens, output.finish) for output in model.outputs["a"]] == [([], "length")]
    assert scheduler._rows.taken == {}
