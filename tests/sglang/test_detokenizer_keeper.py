"""When a detokenizer is started again, and when that is the end; with processes that only say that they died."""

from __future__ import annotations

import threading

import pytest

from raylaunch.errors import LaunchError
from raylaunch.sglang.detokenizer_keeper import RESTARTS, DetokenizerKeeper
from tests.waiting import wait_until

DEATH = "SGLang's detokenizer was killed by signal 9:\nlast words"


class Process:
    """Works at once, and dies when told."""

    def __init__(self, on_death):
        self.on_death, self.told, self.closed = on_death, None, False

    def start(self): ...

    def configure(self, *arguments):
        self.told = arguments

    def wait(self, timeout_s):
        return True

    def close(self):
        self.closed = True


class Kept:
    """A keeper with what it did: its processes, the deaths that it told, how often it had a request answered."""

    def __init__(self) -> None:
        self.processes, self.deaths, self.asked = [], [], 0
        self.probe = lambda: None
        self.keeper = DetokenizerKeeper(self.new, self.deaths.append, self.ask, 1.0)
        self.keeper.start()
        self.keeper.configure("server", "port")

    def new(self, on_death):
        self.processes.append(Process(on_death))
        return self.processes[-1]

    def ask(self):
        self.asked += 1
        self.probe()

    def die(self):
        self.processes[-1].on_death(DEATH)


@pytest.fixture
def kept():
    return Kept()


def fails(text):
    raise LaunchError(text)


def test_its_death_before_the_first_request_is_a_failed_launch(kept):
    kept.die()
    assert kept.deaths == ["SGLang's detokenizer was killed by signal 9"]
    assert len(kept.processes) == 1
    with pytest.raises(LaunchError, match="last words"):
        kept.keeper.answer(lambda: None)


def test_its_death_during_the_first_request_is_named_in_place_of_the_request(kept):
    with pytest.raises(LaunchError, match="killed by signal 9"):
        kept.keeper.answer(lambda: (kept.die(), fails("no answer")))


def test_its_death_later_is_made_good(kept):
    kept.keeper.answer(lambda: None)
    asked = threading.Event()
    kept.probe = lambda: asked.wait(5)
    kept.die()
    assert kept.keeper.trouble == "SGLang's detokenizer was killed by signal 9"
    asked.set()
    wait_until(lambda: not kept.keeper.trouble)
    assert (kept.asked, kept.deaths, kept.processes[1].told) == (1, [DEATH.splitlines()[0][:-1]], ("server", "port"))
    assert kept.keeper.failure is None


def test_its_death_while_a_rebuilt_group_is_asked_is_made_good_too(kept):
    kept.keeper.answer(lambda: None)
    deaths = iter([kept.die])

    def probe():
        for die in deaths:
            die()
            fails("no answer")

    kept.keeper.answer(probe)
    assert (kept.keeper.trouble, kept.keeper.failure) == ("", None)


def test_one_death_too_many_is_the_end(kept):
    kept.keeper.answer(lambda: None)
    for _ in range(RESTARTS):
        kept.die()
        wait_until(lambda: not kept.keeper.trouble)
    kept.die()
    assert f"after it was started again {RESTARTS} times" in str(kept.keeper.failure)
    assert kept.keeper.trouble
    assert len(kept.processes) == 1 + RESTARTS
    with pytest.raises(LaunchError):
        kept.keeper.answer(lambda: None)


@pytest.mark.parametrize("why", ["no answer", "cannot be started again"])
def test_a_successor_that_does_not_work_is_the_end(kept, monkeypatch, why):
    kept.keeper.answer(lambda: None)
    kept.probe = lambda: fails(why)
    if why == "cannot be started again":
        monkeypatch.setattr(Process, "start", lambda _: (_ for _ in ()).throw(OSError("no memory")))
    kept.die()
    wait_until(lambda: kept.keeper.failure is not None)
    assert why in str(kept.keeper.failure)


def test_nothing_is_started_after_the_end(kept):
    kept.keeper.answer(lambda: None)
    kept.keeper.close()
    kept.die()
    assert (len(kept.processes), kept.processes[0].closed, kept.deaths) == (1, True, [])


def test_one_that_was_not_configured_yet_is_started_anew_where_it_must_be(kept):
    kept.keeper.start(anew=True)
    assert len(kept.processes) == 1, "it works already"
    early = Kept.__new__(Kept)
    early.processes = []
    keeper = DetokenizerKeeper(early.new, [].append, lambda: None, 1.0)
    keeper.start()
    keeper.start()
    keeper.start(anew=True)
    assert [one.closed for one in early.processes] == [True, False]
