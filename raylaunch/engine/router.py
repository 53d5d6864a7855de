"""Takes each request to one of several groups, and on to another one when its group is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylaunch.engine.engine import Engine
from raylaunch.engine.health import joined
from raylaunch.engine.routing import Remembered, blocks_of, by_prefix, least_loaded
from raylaunch.errors import RaylaunchError, ReplicaLost, RequestFailed
from raylaunch.frontends.base import Image, Listener, Prepared, Prompt, Running
from raylaunch.frontends.reference import ReferenceFrontend
from raylaunch.frontends.requests import Chunk, RequestTable, RunningRequest
from raylaunch.frontends.sampling import SamplingParams


class Router:
    """Takes requests to the groups. A :class:`TakesRequests` in front of the frontends of all replicas.

    Attributes:
        closed: no request goes on elsewhere any more.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        config = engines[0].config.engine
        self._each = config.max_running_requests + config.max_waiting_requests  # that a group takes
        # SGLang queues them itself.
        self.room: int | None = None if config.kind == "sglang" else len(engines) * self._each
        self.requests = RequestTable[Routed](self.room)
        self._last = -1
        self._remembered = [(Remembered(), 0) for _ in engines]  # each with the restarts of its group by then
        self._moved, self._lock = 0, threading.Lock()
        self.closed = False

    def join(self, number: int) -> None:
        """Lets the frontend of a replica hand its requests to the others when its ranks are lost."""
        own, first = self.engines[number].frontend, self.engines[0].frontend
        if isinstance(own, ReferenceFrontend):
            own.elsewhere = self.move_elsewhere
            return
        from raylaunch.sglang.frontend import SglangFrontend

        assert isinstance(own, SglangFrontend)
        assert isinstance(first, SglangFrontend)
        own.loop = first.loop  # on which the HTTP application of all runs
        own.others = lambda: [self.engines[one].frontend for one in self.others(number)]

    @property
    def continued(self) -> int:
        return self._moved + sum(engine.frontend.continued for engine in self.engines)

    @property
    def tokenizer(self) -> Any:
        return self.engines[0].tokenizer

    def prepare(self, prompt: Prompt, params: SamplingParams, images: Sequence[Image] = ()) -> Prepared:
        return self.engines[0].frontend.prepare(prompt, params, images)

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Routed:
        request = Routed(self, prepared, listener, request_id)
        self.requests.add(request)
        try:
            request.go_on()
        except BaseException:
            self.requests.remove(request_id)
            raise
        return request

    def choose(
        self, without: set[int], prompt: str | Sequence[int] = "", may_wait: Callable[[], bool] = lambda: True
    ) -> int:
        """The replica for one more request: a ready one, or one that is rebuilt, if requests wait for that.

        Args:
            without: not these.
            prompt: whose beginning counts, where ``parallel.routing`` says so.
            may_wait: whether this request does so, too; asked where none is ready.
        Raises:
            RequestFailed: there is none.
        """
        healths = [engine.health(ask_ranks=False) for engine in self.engines]
        left = {number: one for number, one in enumerate(healths) if number not in without}
        ready = {number: one.requests for number, one in left.items() if one.ready}
        waits = not ready and self.engines[0].config.recovery.while_rebuilding == "wait" and may_wait()
        rebuilt = {number: one.requests for number, one in left.items() if not one.refusal(waits)}
        loads = ready or rebuilt
        loads = {number: load for number, load in loads.items() if load < self._each} or loads
        if not loads:
            raise RequestFailed(f"the engine is not ready: {joined(healths).reason or 'every replica has lost it'}")
        if not prompt or self.engines[0].config.parallel.routing == "least_loaded":
            self._last = least_loaded(loads, self._last)
        else:
            with self._lock:
                self._last = self._by_prefix(blocks_of(prompt), loads)
        return self._last

    def _by_prefix(self, blocks: Sequence[int], loads: Mapping[int, int]) -> int:
        for number, (one, restarts) in enumerate(self._remembered):
            if restarts != (now := self.engines[number].restarts):
                one.clear()
                self._remembered[number] = (one, now)
        chosen = by_prefix({at: self._remembered[at][0].found(blocks) for at in loads}, loads, self._last)
        self._remembered[chosen][0].add(blocks, self.engines[chosen].kv_tokens)
        return chosen

    def others(self, number: int) -> list[int]:
        """The replicas beside this one that are ready, the least loaded first."""
        beside = [one for one in range(len(self.engines)) if one != number and not self.closed]
        healths = {one: self.engines[one].health(ask_ranks=False) for one in beside}
        return sorted((one for one in beside if healths[one].ready), key=lambda one: healths[one].requests)

    def move_elsewhere(self, request: RunningRequest) -> bool:
        """Has a request whose ranks are lost go on at another replica. Whether it does."""
        routed = self.requests.get(request.request_id)
        return routed is not None and routed.move(request)

    def forget(self, request: Running) -> None:
        assert isinstance(request, Routed)
        request.leave()

    def abort(self, request_id: str) -> bool:
        request = self.requests.get(request_id)
        return request is not None and request.abort()

    def moved(self) -> None:
        """A request has gone on at another replica."""
        with self._lock:
            self._moved += 1

    def __len__(self) -> int:
        return len(self.requests)


class Routed:
    """A request at one of the replicas.

    Attributes:
        at: number of the replica.
    """

    def __init__(self, router: Router, prepared: Prepared, listener: Listener, request_id: str) -> None:
        self.request_id, self.at = request_id, 0
        self._router, self._prepared, self._listener = router, prepared, listener
        self._running: Running | None = None
        self._lost_at: set[int] = set()
        self._begun = self._left = self._aborted = False
        self._may_wait_until = 0.0  # since it has had to wait
        self._lock = threading.Lock()

    @property
    def prompt_tokens(self) -> int:
        return len(self._prepared.ids) if self._running is None else self._running.prompt_tokens

    def go_on(self) -> None:
        """At the replica that has the fewest requests, of those that it was not lost at. Raises as ``submit``."""
        while True:
            self.at = self._router.choose(self._lost_at, self._prepared.text or self._prepared.ids, self._may_wait)
            try:
                running = self._router.engines[self.at].submit(self._prepared, self._hear, self.request_id)
                break
            except RequestFailed:  # lost just now
                self._lost_at.add(self.at)
        with self._lock:
            self._running, left = running, self._left
        if left:
            self._router.engines[self.at].frontend.forget(running)
        self._end_if_aborted()

    def _may_wait(self) -> bool:
        """Whether it may wait for ranks. Its time for that begins when this is asked first: it must not wait anew with
        each group."""
        now = time.monotonic()
        self._may_wait_until = self._may_wait_until or now + self._router.engines[0].config.recovery.give_up_s
        return now < self._may_wait_until

    def move(self, request: RunningRequest) -> bool:
        """What it has begun goes on at another replica. Whether it does."""
        was = self.at
        for number in self._router.others(was):
            other = self._router.engines[number].frontend
            assert isinstance(other, ReferenceFrontend)
            self.at = number
            if other.continue_request(request):
                self._end_if_aborted()
                return True
        self.at = was
        self._end_if_aborted()
        return False

    def abort(self) -> bool:
        """Has it end where it is, or where it is on its way to, as soon as it is there. Whether it runs."""
        self._aborted = True
        self._end_if_aborted()
        return True

    def _end_if_aborted(self) -> None:
        if self._aborted:
            self._router.engines[self.at].abort(self.request_id)

    def leave(self) -> None:
        """The caller has left."""
        with self._lock:
            self._left, running = True, self._running
        self._router.requests.remove(self.request_id)
        if running is not None:
            self._router.engines[self.at].frontend.forget(running)

    def _hear(self, item: Chunk | RaylaunchError) -> None:
        lost = isinstance(item, RequestFailed) and not self._router.engines[self.at].health(ask_ranks=False).ready
        if lost and not self._begun and not self._left:
            self._lost_at.add(self.at)
            try:
                self.go_on()
                self._router.moved()
                return
            except RaylaunchError:
                pass  # nobody else can take it: the loss is what ended it
        self._begun = True
        if not isinstance(item, Chunk) or item.finish_reason is not None:
            self._router.requests.remove(self.request_id)
        try:
            self._listener(ReplicaLost(*item.args) if lost and isinstance(item, RaylaunchError) else item)
        except Exception:  # of a caller who cannot be told any more, whose request its frontend ends
            self._router.requests.remove(self.request_id)
            raise
