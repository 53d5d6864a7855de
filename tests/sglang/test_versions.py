"""What differs between SGLang's versions on the driver's side, on objects that have what is read of SGLang's."""

from __future__ import annotations

import dataclasses
import types

import pytest
from fastapi import HTTPException

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.sglang import versions
from raylaunch.sglang.frontend import SglangFrontend
from raylaunch.wire import SglangSettled


@dataclasses.dataclass
class Arguments:
    """What two engines of a process may be told."""

    page_size: int = 1
    port: int = 30_000
    random_seed: int = 1
    api: object = dataclasses.field(default_factory=object)  # its text is another in every engine


@pytest.fixture
def published(monkeypatch):
    told = []
    monkeypatch.setattr(versions, "publish", lambda args, role: told.append((args, role)))
    return versions.Published(), told


def test_engines_of_one_process_work_by_the_same_arguments(published):
    ours, told = published
    ours.join("first", Arguments())
    ours.join("second", other := Arguments(port=1, random_seed=2))
    with ours.held(other):
        assert told == [(other, "tokenizer")]
    with pytest.raises(ConfigError, match=r"another engine of this one has others: page_size \(1 and 16\)"):
        ours.join("third", Arguments(page_size=16))


def test_an_engine_that_is_gone_does_not_count(published):
    ours, _ = published
    ours.join("first", Arguments())
    ours.leave("first")
    ours.leave("first")
    ours.join("second", Arguments(page_size=16))


class Manager:
    """What is read of a tokenizer manager."""

    def __init__(self):
        self.rid_to_state, self.went = {}, []

    def add(self, request_id):
        state = types.SimpleNamespace(obj=types.SimpleNamespace())
        self.rid_to_state[request_id] = state
        return state

    def _dispatch_to_scheduler(self, message):
        self.went.append(message)


def request(request_id):
    return types.SimpleNamespace(rid=request_id, input_ids=[1])


def test_a_request_that_was_on_its_way_when_the_ranks_were_lost_goes_to_nobody():
    manager = Manager()
    one, other = manager.add("one"), manager.add("other")
    versions.guard_dispatch(manager)
    manager._dispatch_to_scheduler(request("one"))
    assert one.sent
    assert not hasattr(other, "sent")
    other.obj.lost_for = "rank 1 is lost"
    for message in (request("other"), types.SimpleNamespace(batch=[request("one"), request("other")])):
        with pytest.raises(HTTPException, match="rank 1 is lost") as caught:
            manager._dispatch_to_scheduler(message)
        assert caught.value.status_code == 503
    assert [one.rid for one in manager.went] == ["one"]
    manager._dispatch_to_scheduler(abort := types.SimpleNamespace(rid="other"))  # what is no request passes
    assert manager.went[-1] is abort


def test_sglangs_server_asks_no_address_to_freeze_anything():
    asked = []
    server = types.SimpleNamespace(app=types.SimpleNamespace(middleware_stack=None))
    versions.prepare_application(server, metrics=True)
    assert not hasattr(server, versions.FREEZE)
    setattr(server, versions.FREEZE, asked.append)
    setattr(server, versions.CONTRACT, asked.append)
    server.add_prometheus_track_response_middleware = asked.append
    versions.prepare_application(server, metrics=False)
    getattr(server, versions.FREEZE)("arguments")
    assert getattr(server, versions.CONTRACT)({"text": 5}) is None, "what is wrong with a body is ours to say"
    assert asked == []
    versions.prepare_application(server, metrics=True)
    assert asked == [server.app]


def test_the_driver_speaks_to_its_own_sglang_alone():
    settled = SglangSettled({}, b"", {}, "0.0.1")
    with pytest.raises(LaunchError, match=r"SGLang is 0\.0\.1 on rank 0 and .* on the driver") as caught:
        SglangFrontend(LaunchConfig.default()).attach(settled)
    assert caught.value.code == "F19"
    assert "b''" not in repr(settled)
