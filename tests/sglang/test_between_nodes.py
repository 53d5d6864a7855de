"""SGLang's real driver side with a scripted rank 0 on another node: ports and keys in place of files."""

from __future__ import annotations

import os
import pickle
import signal

import pytest
import zmq

from raylaunch.frontends.base import Meeting
from raylaunch.resolved import launch_of
from raylaunch.sglang.frontend import SglangFrontend
from tests.sglang.conftest import CONFIG, HERE, LOST, RESOLVED, ask, needs_sglang, place_ranks
from tests.sglang.scripted_rank import OFFER, ScriptedRank
from tests.sglang.test_sockets import Canary, made, with_keys
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_sglang]
AWAY = Meeting(False, "127.0.0.1")


@pytest.fixture(scope="module")
def frontend():
    one = SglangFrontend(CONFIG.replace({"serve.served_model_name": "the-name"}))
    one.begin(launch_of(one._config, RESOLVED.shape))
    try:
        one.away = place_ranks(one, one._config, AWAY)
        yield one
    finally:
        one.close()


def scripted(frontend, sockets):
    rank = ScriptedRank(sockets, lambda ids: frontend.tokenizer.decode(ids))
    rank.script = lambda ids, sampling: [*frontend.tokenizer("42")["input_ids"], rank.eos]
    return rank


def test_strangers_are_not_heard_and_take_nothing(frontend, tmp_path):
    """Tokenizer manager and detokenizer unpickle what arrives."""
    away, peers = frontend.away, zmq.Context()
    ports = [away.tokenizer, away.detokenizer, away.scheduler_input, away.loads]
    assert all(one.startswith("tcp://127.0.0.1:") for one in ports)
    with scripted(frontend, away):
        pushes = [made(peers, zmq.PUSH, url, bind=False) for url in ports]
        pushes += [with_keys(peers, zmq.PUSH, url, away.keys.server, *zmq.curve_keypair()) for url in ports]
        for one in pushes:
            one.send(pickle.dumps(Canary(tmp_path / "canary")))
        pulls = [made(peers, zmq.PULL, url, bind=False) for url in ports]
        frontend.up(OFFER, RESOLVED)
        for _ in range(4):
            assert ask(frontend).text == "42"
        assert not any(one.poll(0) for one in pulls)
        frontend.down(LOST)
    peers.destroy(linger=0)
    assert not (tmp_path / "canary").exists()


def test_what_only_the_server_has_is_the_drivers(frontend):
    """Rank 0 was not told of it, and has settled everything else."""
    assert frontend.side.settled.served_model_name == "the-name"
    assert frontend.side.settled.device == "cpu"
    assert frontend.side.settled.skip_server_warmup


def test_the_next_detokenizer_takes_over_its_port(frontend):
    with scripted(frontend, frontend.away):
        frontend.up(OFFER, RESOLVED)
        before = frontend._detokenizer.pid
        os.kill(before, signal.SIGKILL)
        wait_until(frontend.trouble)
        wait_until(lambda: not frontend.trouble(), 90)
        assert frontend._detokenizer.pid != before
        assert ask(frontend).text == "42"
        frontend.down(LOST)


def test_how_busy_ranks_are_comes_by_a_socket(frontend):
    from sglang.srt.managers import load_snapshot

    away, reader = frontend.away, frontend.side.manager.load_snapshot_reader
    snapshot = load_snapshot.LoadSnapshot(dp_rank=0, timestamp=1.0, num_running_reqs=3)
    peers = zmq.Context()
    rank = with_keys(peers, zmq.PUSH, away.loads, away.keys.server, away.keys.public, away.keys.secret)
    rank.send(load_snapshot.snapshot_encoder.encode(snapshot))
    wait_until(lambda: [one.num_running_reqs for one in reader.read_all()] == [3])
    peers.destroy(linger=0)


@pytest.mark.parametrize("where", [AWAY, HERE])
def test_images_go_as_they_are_to_another_node(frontend, where):
    """And not by the name of this node's memory."""
    import torch
    from sglang.srt.managers import mm_utils
    from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem

    with scripted(frontend, frontend.meet(where)):
        frontend.up(OFFER, RESOLVED)
        frontend.down(LOST)
    item = MultimodalDataItem(modality=Modality.IMAGE, feature=torch.ones(2, 3))
    request = type("Request", (), {"mm_inputs": type("Inputs", (), {"mm_items": [item]})})
    mm_utils.wrap_shm_features(request)
    assert (type(item.feature) is torch.Tensor) == (where == AWAY)
    at_rank = pickle.loads(pickle.dumps(item.feature))
    assert torch.equal(at_rank if where == AWAY else at_rank.materialize(), torch.ones(2, 3))


def test_ranks_that_move_to_the_drivers_node_use_its_files(frontend):
    here = frontend.meet(HERE)
    assert here.detokenizer.startswith("ipc://")
    with scripted(frontend, here):
        frontend.up(OFFER, RESOLVED)
        assert ask(frontend).text == "42"
        frontend.down(LOST)
