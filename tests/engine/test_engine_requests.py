"""What an engine makes of its frontend: several requests of one call, and its failure."""

from __future__ import annotations

import re

import numpy
import pytest
import torch

from raylaunch.config import LaunchConfig
from raylaunch.engine import Engine
from raylaunch.engine.health import Condition
from raylaunch.errors import EngineBusy, LaunchError, RequestError, RequestFailed
from raylaunch.frontends.base import Prepared, ids_of
from raylaunch.frontends.requests import Chunk, RequestTable, RunningRequest


class EchoFrontend:
    """Answers each request at once with its own token; ``7`` fails, ``8`` is never answered; three may run."""

    def __init__(self) -> None:
        self.room = 3
        self.running = RequestTable[RunningRequest](limit=3)
        self.forgotten = []
        self.failed = None

    def prepare(self, prompt, params, images=()):
        return Prepared(list(prompt), params)

    def submit(self, prepared, listener, request_id):
        request = RunningRequest(request_id, prepared.ids, prepared.params, None, listener)
        self.running.add(request)
        (token,) = prepared.ids
        if token == 7:
            request.fail(RequestFailed("seven"))
        elif token != 8:
            listener(Chunk(request_id, "", (token,), "stop"))
        return request

    def forget(self, request):
        self.forgotten.append(request.prompt)
        self.running.remove(request.request_id)

    def __len__(self):
        return len(self.running)

    def failure(self):
        return self.failed

    def trouble(self):
        return ""


@pytest.fixture
def engine():
    one = Engine(LaunchConfig.default())
    one.frontend = one._supervisor.frontend = EchoFrontend()
    one._supervisor.condition = Condition.READY
    return one


def test_answers_in_the_order_of_the_prompts(engine):
    assert [answer.token_ids for answer in engine.generate([[1], [2], [3]])] == [(1,), (2,), (3,)]
    assert len(engine.frontend.running) == 0


@pytest.mark.parametrize(
    ("prompts", "error"),
    [([[8], [8], [8], [1]], EngineBusy), ([[1], [7], [8]], RequestFailed)],
    ids=["refused", "lost"],
)
def test_none_goes_on_when_one_has_failed(engine, prompts, error):
    """Nobody waits for the others any more: ranks must not work on them."""
    with pytest.raises(error):
        engine.generate(prompts)
    assert len(engine.frontend.running) == 0
    assert [8] in engine.frontend.forgotten


def test_a_frontend_that_has_failed_for_good_is_a_failed_engine(engine):
    """Whoever watches the engine, as the server does, sees the end although the ranks are well."""
    assert engine.health(ask_ranks=False).ready
    engine.frontend.failed = LaunchError("SGLang's detokenizer was killed by signal 9", None, "SERVE")
    health = engine.health(ask_ranks=False)
    assert (health.ready, health.condition, health.reason) == (False, "failed", engine.frontend.failed.headline())
    assert engine.last_error is engine.frontend.failed
    assert not engine.wait_ready(1)


def test_one_prompt_of_token_ids_is_a_list_in_a_list():
    with pytest.raises(RequestError, match="list in a list"):
        Engine(LaunchConfig.default()).generate([1, 2, 3])


class LateFrontend(EchoFrontend):
    """Answers when as many run as may, the first of them."""

    def __init__(self):
        super().__init__()
        self.room = 4
        self.running = RequestTable[RunningRequest](limit=4)
        self.most = 0
        self.late = []

    def submit(self, prepared, listener, request_id):
        request = RunningRequest(request_id, prepared.ids, prepared.params, None, listener)
        self.running.add(request)
        self.most = max(self.most, len(self.running))
        self.late.append(lambda: listener(Chunk(request_id, "", tuple(prepared.ids), "stop")))
        while len(self.late) > 2:
            self.late.pop(0)()
        if prepared.ids == [9]:
            for one in self.late:
                one()
        return request


def test_more_prompts_than_may_run_and_wait_are_answered_in_one_call():
    engine = Engine(
        LaunchConfig.default().replace({"engine.max_running_requests": 2, "engine.max_waiting_requests": 2})
    )
    engine.frontend = engine._supervisor.frontend = LateFrontend()
    engine._supervisor.condition = Condition.READY
    prompts = [[number] for number in (*range(8), 9)]
    assert [answer.token_ids for answer in engine.generate(prompts)] == [tuple(prompt) for prompt in prompts]
    assert engine.frontend.most == 3, "and one place was left for others"
    engine.frontend = engine._supervisor.frontend = LateFrontend()
    engine.frontend.room, engine.frontend.running = None, RequestTable[RunningRequest]()
    assert len(engine.generate(prompts)) == len(prompts), "SGLang queues as many as come"


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        (b"hi", "the prompt is bytes: it must be text or token ids"),
        (5, "the prompt is int: it must be text or token ids"),
        ([1.0], "token 0 of the prompt is 1.0"),
        ([True], "token 0 of the prompt is True"),
        (["1"], "token 0 of the prompt is '1'"),
        (numpy.array([1.5]), "token 0 of the prompt is "),
        (torch.tensor([99]), "token 0 of the prompt is tensor"),
        (torch.tensor([True]), "token 0 of the prompt is tensor"),
        (numpy.array([True]), "token 0 of the prompt is "),
        (torch.tensor(3), "the prompt is Tensor: it must be text or token ids"),
        (numpy.array(3), "the prompt is ndarray: it must be text or token ids"),
        ((), "the prompt is empty"),
    ],
)
def test_what_is_no_prompt(prompt, wrong):
    with pytest.raises(RequestError, match=re.escape(wrong)):
        ids_of(prompt, None, 16)


def test_arrays_are_prompts():
    for prompt in ([3, 1], (3, 1), numpy.array([3, 1]), [numpy.int32(3), 1], torch.tensor([3, 1])):
        found = ids_of(prompt, None, 16)
        assert found == [3, 1]
        assert {type(token) for token in found} == {int}
    with pytest.raises(RequestError, match="they must be text, or a list of prompts"):
        Engine(LaunchConfig.default()).generate(5)


def test_prompts_may_come_from_an_iterator(engine):
    assert [answer.token_ids for answer in engine.generate(iter([[1], [2]]))] == [(1,), (2,)]
