"""Rank 0's serve loop against a driver's sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zmq
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs.capture import CaptureRunner
from raylaunch_actors.reference import worker as worker_module
from raylaunch_actors.reference.channel import RankZeroSockets, connect
from raylaunch_actors.reference.runner import ModelRunner
from raylaunch_actors.reference.scheduler import Scheduler
from raylaunch_actors.reference.verify import verify_shape
from raylaunch_actors.reference.worker import RankZeroWorker

from raylaunch import wire
from raylaunch.wire import Abort, Output, Sampling, Stop, Submit, Verify
from tests.busy import patient
from tests.models import save
from tests.reference.engines import make_runner, prompt_scores, prompts, submits, tokens


class Driver:
    """A driver's end, with rank 0 serving in a thread."""

    def __init__(self, runner: ModelRunner) -> None:
        sockets = RankZeroSockets("127.0.0.1", 1)
        offer = sockets.open()
        self.context: zmq.Context = zmq.Context()
        self.requests = connect(self.context, zmq.PUSH, offer.requests, offer)
        self.outputs = connect(self.context, zmq.PULL, offer.outputs, offer)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.worker = RankZeroWorker(runner, Scheduler(runner.limits), sockets)
        self.thread = threading.Thread(target=self._serve, args=(sockets,))
        self.thread.start()

    def _serve(self, sockets: RankZeroSockets) -> None:
        try:
            self.worker.serve(self.stop)
        except BaseException as error:
            self.error = error
        finally:
            sockets.close()

    def send(self, *messages: Submit | Abort | Stop | Verify) -> None:
        for message in messages:
            self.requests.send(wire.encode(message))

    def read(self, until: int, seconds: float = 20.0) -> list[Output]:
        """Outputs until ``until`` requests have finished."""
        outputs: list[Output] = []
        end = time.monotonic() + seconds
        while sum(output.finish is not None for output in outputs) < until:
            assert self.outputs.poll(max(0, end - time.monotonic()) * 1000), outputs
            outputs += wire.decode_outputs(self.outputs.recv())
        return outputs

    def close(self) -> None:
        self.stop.set()
        self.thread.join(5)
        self.context.destroy(linger=0)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def runner(models: Path) -> ModelRunner:
    return make_runner(save("qwen3_tied", models), prefill=(16, 64), decode=(2, 4), capacity=600)


@pytest.fixture
def driver(runner: ModelRunner) -> Iterator[Driver]:
    driver = Driver(runner)
    yield driver
    driver.close()


def finishes(outputs: list[Output]) -> dict[str, str]:
    return {output.request_id: output.finish for output in outputs if output.finish}


def test_serving_answers_as_a_local_run_does(runner: ModelRunner, driver: Driver) -> None:
    requests = submits(prompts(*range(3, 60, 4)), Sampling(max_new_tokens=7))
    driver.send(*requests)
    outputs = driver.read(len(requests))
    local = RankZeroWorker(runner, Scheduler(runner.limits), None)
    for request in requests:
        local.submit(request)
    expected = local.run_until_idle()
    for request in requests:
        assert tokens(outputs, request.request_id) == tokens(expected, request.request_id)
    counters = driver.worker.counters
    assert (counters.requests, counters.tokens) == (len(requests), 7 * len(requests))


def test_bad_requests_do_not_disturb_good_ones(driver: Driver) -> None:
    driver.send(
        Submit("good", [1, 2, 3], Sampling(max_new_tokens=5)),
        Submit("empty", [], Sampling()),
        Submit("hot", [1], Sampling(temperature=-1.0)),
        Submit("long", [1] * 10, Sampling(max_new_tokens=3000)),
    )
    driver.requests.send(b"\xc1")
    driver.send(Submit("other", [4], Sampling(max_new_tokens=2)))
    outputs = driver.read(5)
    expected = {"good": "length", "empty": "error", "hot": "error", "long": "error", "other": "length"}
    assert finishes(outputs) == expected
    assert "KV cache" in next(output.message for output in outputs if output.request_id == "long")


def test_abort(driver: Driver) -> None:
    driver.send(Submit("a", [1, 2], Sampling(max_new_tokens=500)), Submit("b", [3], Sampling(max_new_tokens=20)))
    first = driver.read(1, 20)
    assert finishes(first) == {"b": "length"}
    driver.send(Abort("a"), Abort("unknown"))
    assert finishes(driver.read(1)) == {"a": "abort"}
    driver.send(Submit("a", [1], Sampling(max_new_tokens=1)))
    assert finishes(driver.read(1)) == {"a": "length"}


def test_a_shape_is_verified_once_no_request_is_there(runner: ModelRunner, driver: Driver) -> None:
    """Its tokens go to the cache that requests have: it waits for those before it, and those behind it wait."""
    seen: list[tuple[str, int, int, int]] = []

    def verify(one: Verify) -> None:
        counters = driver.worker.counters
        seen.append((one.round, one.shape, counters.running, driver.worker.scheduler.kv_used))
        verdict = verify_shape(runner, CaptureRunner(SingleRank(), runner.dummy, {}), one.round, one.shape)
        assert verdict.max_error == 0.0

    driver.worker.verify = verify
    before, after = submits(prompts(40, 20), Sampling(max_new_tokens=12, ignore_eos=True))
    driver.send(before, Verify("prefill", 64), after, Verify("decode", 4))
    outputs = driver.read(until=2)
    end = time.monotonic() + patient(5)
    while len(seen) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert seen == [("prefill", 64, 1, 0), ("decode", 4, 1, 0)]
    driver.send(before, after)
    again = driver.read(until=2)
    for name in (before.request_id, after.request_id):
        assert len(tokens(outputs, name)) == 12
        assert tokens(again, name) == tokens(outputs, name)
    assert driver.worker.counters.running == 0


def test_one_request_whose_sampling_fails_does_not_take_the_others_with_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker_module.sample

    def broken(logits: torch.Tensor, params: list[Sampling], generators: list) -> torch.Tensor:
        if any(own.seed == 666 for own in params):
            raise ValueError("no such sampling")
        if any(own.seed == 667 for own in params):
            logits = logits.clone()
            logits[[own.seed == 667 for own in params]] = torch.nan
        return real(logits, params, generators)

    monkeypatch.setattr(worker_module, "sample", broken)
    for name, seed in (("good", 1), ("raises", 666), ("nan", 667)):
        driver.send(Submit(name, [1, 2, 3], Sampling(max_new_tokens=4, temperature=1.0, seed=seed)))
    outputs = driver.read(3)
    assert finishes(outputs) == {"good": "length", "raises": "error", "nan": "error"}
    messages = {output.request_id: output.message for output in outputs if output.message}
    assert "ValueError: no such sampling" in messages["raises"]
    assert "not finite" in messages["nan"]
    assert driver.worker.scheduler._rows.taken == {}


def test_an_error_of_the_gpu_ends_the_rank_and_no_request_is_blamed(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker_module, "sample", broken)
    worker = RankZeroWorker(runner, Scheduler(runner.limits), None)
    worker.submit(Submit("a", [1, 2, 3], Sampling(max_new_tokens=4)))
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        worker.run_until_idle()


@pytest.mark.parametrize("how", ["event", "message"])
def test_stopping_takes_less_than_a_second_and_ends_every_request(driver: Driver, how: str) -> None:
    driver.send(*(Submit(str(i), [1 + i], Sampling(max_new_tokens=500)) for i in range(3)))
    assert driver.outputs.poll(5000)
    started = time.monotonic()
    if how == "event":
        driver.stop.set()
    else:
        driver.send(Stop())
    outputs = driver.read(1, 2)
    outputs += driver.read(3 - len(finishes(outputs)), 2)
    driver.thread.join(2)
    assert time.monotonic() - started < patient(1.5)
    assert finishes(outputs) == dict.fromkeys("012", "abort")
    assert driver.error is None


def test_idle_stop_takes_less_than_a_second(driver: Driver) -> None:
    time.sleep(0.3)
    started = time.monotonic()
    driver.stop.set()
    driver.thread.join(3)
    assert time.monotonic() - started < patient(1)


def test_a_failing_pass_ends_the_loop_with_its_own_error(
    runner: ModelRunner, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(runner, "forward_scored", fail)
    driver.send(Submit("a", [1], Sampling()))
    driver.thread.join(5)
    assert str(driver.error) == "the device is gone"


def test_prompts_are_scored_as_by_transformers_whatever_they_are_computed_with(
    runner: ModelRunner, models: Path
) -> None:
    """Chunks of at most 64 rows hold parts of several prompts, with others beside them that are not scored."""
    texts = prompts(1, 2, 16, 65, 150, 30)
    local = RankZeroWorker(runner, Scheduler(runner.limits), None)
    for number, text in enumerate(texts):
        wanted = None if number == 5 else number % 3
        local.submit(Submit(str(number), text, Sampling(max_new_tokens=3 * (number != 2), prompt_logprobs=wanted)))
    outputs = local.run_until_idle()
    for number, text in enumerate(texts):
        own = [output for output in outputs if output.request_id == str(number)]
        assert [output.prompt_logprobs is None for output in own] == [number == 5, *[True] * (len(own) - 1)]
        if number == 5:
            continue
        scores = own[0].prompt_logprobs or []
        assert [one.token_id for one in scores] == text[1:]
        assert [len(one.top) for one in scores] == [number % 3] * (len(text) - 1)
        assert [one.logprob for one in scores] == pytest.approx(
            prompt_scores(save("qwen3_tied", models), text), abs=1e-4
        )
    assert tokens(outputs, 2) == []


def test_a_bias_decides_the_token_and_not_its_log_probability(runner: ModelRunner) -> None:
    def ask(**more: object) -> list[Output]:
        local = RankZeroWorker(runner, Scheduler(runner.limits), None)
        local.submit(Submit("a", [1, 2, 3], Sampling(max_new_tokens=2, logprobs=1, **more)))
        return local.run_until_idle()

    plain = ask()
    (first,), (best,) = plain[0].tokens, plain[0].logprobs or ()
    wanted = (first + 1) % 1000
    biased = ask(logit_bias=[(wanted, 1e4)])
    assert [output.tokens for output in biased] == [[wanted], [wanted]]
    entry = (biased[0].logprobs or ())[0]
    assert entry.top == best.top
    assert entry.logprob < best.logprob
    assert ask(logit_bias=[(first, -1e4)])[0].tokens != [first]
    assert ask() == plain


def test_the_token_that_ends_an_answer_is_scored_where_the_prompt_is(runner: ModelRunner) -> None:
    def ask(**more: object) -> Output:
        local = RankZeroWorker(runner, Scheduler(runner.limits), None)
        local.submit(Submit("a", [1, 2, 3], Sampling(logprobs=0, stop_token_ids=[*range(1000)], **more)))
        return local.run_until_idle()[-1]

    ended = ask(prompt_logprobs=0)
    assert ended.matched_logprob is not None
    again = ask(prompt_logprobs=0, drawn=1)
    assert (again.matched_logprob, again.prompt_logprobs) == (ended.matched_logprob, None), "of a group before it"
    assert (ended.tokens, ended.matched_logprob.token_id, ended.logprobs) == ([], ended.matched, None)
    assert ask().matched_logprob is None
