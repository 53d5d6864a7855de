"""The frontend of the reference engine: its own tokenizer, and encrypted sockets to rank 0."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from raylaunch.background import Background
from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError, RequestError, RequestFailed
from raylaunch.frontends.base import Image, Listener, Meeting, Prepared, Prompt, Running, ids_of
from raylaunch.frontends.client import RankZeroClient
from raylaunch.frontends.requests import RequestTable, RunningRequest
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.frontends.vocabulary import vocabulary_of
from raylaunch.model.tokenizer import load_tokenizer
from raylaunch.protocol import Phase, RoundName
from raylaunch.report import Span
from raylaunch.resolved import ResolvedLaunch
from raylaunch.wire import Abort, Output, Submit, Verify

LOOK_S = 0.1  # at requests that may have waited for long enough


class ReferenceFrontend:
    """Turns text into ids and back on the driver; ranks see ids only. A :class:`raylaunch.frontends.base.Frontend`.

    Attributes:
        elsewhere: has a request of ranks that are lost go on with those of another replica. Whether it does.
    """

    def __init__(self, config: LaunchConfig) -> None:
        self._config = config
        self._loading: Background | None = None
        self._client: RankZeroClient | None = None
        self._resolved: ResolvedLaunch | None = None
        self.room: int | None = config.engine.max_running_requests + config.engine.max_waiting_requests
        self._requests = RequestTable[RunningRequest](self.room)
        self._sending = threading.Lock()  # an abort must not reach rank 0 before its request
        self._rebuilding, self._gone = False, "it has no ranks"
        self._losses = 0  # an up() that began before the last one is of ranks that are gone
        self._numbers = itertools.count()
        self.continued = 0
        self.spans: list[Span] = []
        self.elsewhere: Callable[[RunningRequest], bool] = lambda request: False
        self.tokenizer: Any = None

    # ---- life

    def begin(self, resolved: ResolvedLaunch) -> None:
        self._resolved = resolved
        # The tokenizer's import takes as long as the ranks' own: do both at once.
        self._loading = Background(lambda: load_tokenizer(self._config, resolved.revision))

    def raise_if_failed(self) -> None:
        if self._loading is not None:
            self._loading.raise_if_failed()

    def up(self, offer: Any, resolved: ResolvedLaunch) -> None:
        losses = self._losses
        if self._loading is not None:
            seconds = self._config.deadlines.load
            try:
                self.tokenizer = self._loading.result(seconds)
            except TimeoutError:
                text = f"the model's tokenizer was not there within {seconds:g} s"
                raise LaunchError(text, phase=Phase.VERIFY.name) from None
        client = RankZeroClient(offer, self._deliver)
        client.open()
        with self._sending:
            if there := losses == self._losses:
                self._client, self._resolved, self._rebuilding = client, resolved, False
                self._send_again(client)
        if not there:
            client.close()
            raise LaunchError(f"the ranks were lost before a request was sent: {self._gone}", phase=Phase.VERIFY.name)

    def meet(self, where: Meeting) -> None:
        """Rank 0 says at its last gate where it is."""

    def attach(self, offer: Any) -> None:
        """There is nothing to be made of it."""

    def down(self, error: LaunchError, rebuilding: bool = False) -> None:
        with self._sending:
            client, self._client = self._client, None
            was_rebuilding, self._rebuilding, self._gone = self._rebuilding, rebuilding, error.headline()
            self._losses += 1
        if client is not None:
            client.close()  # what it has not delivered by now is computed again
        recovery = self._config.recovery
        for request in self._requests.all():
            had_ranks = bool(request.wire_id)
            if request.aborted:
                request.abort()
            elif recovery.lets_move(bool(request.given)) and self.elsewhere(request):
                self.continued += had_ranks  # others have only waited
            elif not (rebuilding and recovery.lets_wait(bool(request.given))):
                request.fail(RequestFailed(f"request {request.request_id} was lost: {error.headline()}"))
            elif not request.waits_until:
                request.waits_until = time.monotonic() + recovery.give_up_s
        if rebuilding and not was_rebuilding:
            threading.Thread(target=self._end_waits, args=(error,), name="raylaunch-waits", daemon=True).start()

    def trouble(self) -> str:
        return ""

    def failure(self) -> None:
        return None

    def close(self) -> None:
        self.down(LaunchError("the engine was shut down"))

    # ---- requests

    def prepare(self, prompt: Prompt, params: SamplingParams, images: Sequence[Image] = ()) -> Prepared:
        resolved = self._resolved
        if resolved is None:
            raise RequestError("the engine is not started")
        if images:
            raise RequestError("the reference engine takes no images; engine.kind=sglang does")
        for name in params.extra:
            if name in SamplingParams.model_fields:
                raise RequestError(f"extra: {name!r} is a parameter of its own: give it outside of extra")
            raise RequestError(f"the reference engine has no sampling parameter {name!r}")
        for token in params.logit_bias:
            if token >= resolved.shape.vocab_size:
                last = resolved.shape.vocab_size - 1
                raise RequestError(f"logit_bias has token {token}: token ids are integers from 0 to {last}")
        ids = ids_of(prompt, self.tokenizer, resolved.shape.vocab_size)
        if len(ids) + params.max_new_tokens > resolved.max_context:
            raise RequestError(
                f"the prompt has {len(ids)} tokens and max_new_tokens is {params.max_new_tokens}: together at most "
                f"{resolved.max_context} (the context is {resolved.context}, the KV cache holds {resolved.kv_tokens})"
            )
        return Prepared(ids, params)

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> RunningRequest:
        request = RunningRequest(
            request_id, prepared.ids, prepared.params, self.tokenizer, listener,
            on_end=lambda: self._requests.remove(request_id),
        )  # fmt: skip
        with self._sending:
            client = self._client
            if client is None and not self._rebuilding:
                raise RequestFailed(f"the engine is not ready: {self._gone}")
            self._requests.add(request)
            if client is None:
                request.waits_until = time.monotonic() + self._config.recovery.give_up_s
            else:
                try:
                    self._send(client, request)
                except RequestFailed:
                    request.end()
                    raise
        return request

    def continue_request(self, request: RunningRequest) -> bool:
        """Goes on with a request of another replica. Whether that can be."""
        with self._sending:
            client, left = self._client, request.on_end
            if client is None or request.finished:
                return False
            try:
                self._requests.add(request)
            except RequestError:
                return False
            request.on_end = lambda: self._requests.remove(request.request_id)
            try:
                self._send(client, request)
            except RequestFailed:
                request.on_end()
                request.on_end = left
                return False
        left()
        if request.finished:  # its caller has left meanwhile
            request.on_end()
            self._abort(request)
        return True

    def forget(self, request: Running) -> None:
        assert isinstance(request, RunningRequest)
        if request.end():
            self._abort(request)

    def abort(self, request_id: str) -> bool:
        with self._sending:
            request, client = self._requests.get(request_id), self._client
            if request is not None and client is not None:
                request.aborted = True
                client.send(Abort(request.wire_id))
        if request is not None and client is None:
            request.abort()
            self._abort(request)  # others may have been sent it meanwhile
        return request is not None

    def busy(self) -> bool:
        return len(self._requests) > 0

    def verify(self, name: RoundName, shape: int) -> bool:
        with self._sending:
            if self._client is not None:
                self._client.send(Verify(name, shape))
            return self._client is not None

    def __len__(self) -> int:
        return len(self._requests)

    # ---- inside

    def _send(self, client: RankZeroClient, request: RunningRequest) -> None:
        """Has rank 0 answer a request from its beginning, or go on with it. Raises :class:`RequestFailed`."""
        request.wire_id, request.waits_until = f"{request.request_id}#{next(self._numbers)}", 0.0
        request.client = client
        ends = vocabulary_of(self.tokenizer).ends if self.tokenizer is not None else ()
        sampling = request.params.on_wire(ends, len(request.given))
        client.send(Submit(request.wire_id, [*request.prompt, *request.given], sampling))

    def _send_again(self, client: RankZeroClient) -> None:
        """What has outlived the group before, or waits for this one."""
        for request in self._requests.all():
            if request.finished:
                continue
            self.continued += bool(request.wire_id)  # others have only waited
            self._send(client, request)
            if request.finished:  # its caller has left meanwhile
                self._abort(request)

    def _end_waits(self, error: LaunchError) -> None:
        """Ends the requests that have waited for long enough, while others are waited for."""
        text = f"{error.headline()}; no group took its place within {self._config.recovery.give_up_s:g} s"
        while self._rebuilding:
            now = time.monotonic()
            for request in self._requests.all():
                if 0 < request.waits_until < now:
                    request.fail(RequestFailed(f"request {request.request_id} was lost: {text}"))
                    self._abort(request)  # others may have been sent it meanwhile
            time.sleep(LOOK_S)

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            request = self._requests.get(output.request_id.rpartition("#")[0])
            if request is not None and request.wire_id == output.request_id and request.receive(output):
                self._abort(request)

    def _abort(self, request: RunningRequest) -> None:
        """Tells rank 0 that nobody waits for a request any more."""
        if request.client is not None:
            with contextlib.suppress(RequestFailed):  # closed meanwhile: the ranks are gone
                request.client.send(Abort(request.wire_id))
