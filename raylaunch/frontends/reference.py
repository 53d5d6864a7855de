"""The frontend of the reference engine: its own tokenizer, and encrypted sockets to rank 0."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from raylaunch.background import Background
from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError, RequestError, RequestFailed
from raylaunch.frontends.base import Image, Listener, Prepared, Prompt, Running, ids_of
from raylaunch.frontends.client import RankZeroClient
from raylaunch.frontends.requests import RequestTable, RunningRequest
from raylaunch.frontends.vocabulary import vocabulary_of
from raylaunch.model.tokenizer import load_tokenizer
from raylaunch.model_check import ModelShape
from raylaunch.protocol import Phase
from raylaunch.sampling import SamplingParams
from raylaunch.wire import Abort, Output, Submit


class ReferenceFrontend:
    """Turns text into ids and back on the driver; ranks see ids only. A :class:`raylaunch.frontends.base.Frontend`."""

    sockets = None

    def __init__(self, config: LaunchConfig) -> None:
        self._config = config
        self._loading: Background | None = None
        self._client: RankZeroClient | None = None
        self._shape: ModelShape | None = None
        limit = config.engine.max_running_requests + config.engine.max_waiting_requests
        self._requests = RequestTable[RunningRequest](limit)
        self._sending = threading.Lock()  # an abort must not reach rank 0 before its request
        self._numbers = itertools.count()
        self._kv_tokens = 0
        self.tokenizer: Any = None

    # ---- life

    def begin(self, shape: ModelShape) -> None:
        self._shape = shape
        # The tokenizer's import takes as long as the ranks' own: do both at once.
        self._loading = Background(lambda: load_tokenizer(self._config))

    def raise_if_failed(self) -> None:
        if self._loading is not None:
            self._loading.raise_if_failed()

    def up(self, offer: Any) -> None:
        if self._loading is not None:
            seconds = self._config.deadlines.load
            try:
                self.tokenizer = self._loading.result(seconds)
            except TimeoutError:
                text = f"the model's tokenizer was not there within {seconds:g} s"
                raise LaunchError(text, phase=Phase.VERIFY.name) from None
        client = RankZeroClient(offer, self._deliver)
        client.open()
        self._client, self._kv_tokens = client, offer.kv_tokens

    def down(self, error: LaunchError) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        for request in self._requests.pop_all():
            request.fail(RequestFailed(f"request {request.request_id} was lost: {error.headline()}"))

    def trouble(self) -> str:
        return ""

    def failure(self) -> None:
        return None

    def close(self) -> None:
        self.down(LaunchError("the engine was shut down"))

    # ---- requests

    def prepare(self, prompt: Prompt, params: SamplingParams, images: Sequence[Image] = ()) -> Prepared:
        if self._shape is None:
            raise RequestError("the engine is not started")
        if images:
            raise RequestError("the reference engine takes no images; engine.kind=sglang does")
        for name in params.extra:
            if name in SamplingParams.model_fields:
                raise RequestError(f"extra: {name!r} is a parameter of its own: give it outside of extra")
            raise RequestError(f"the reference engine has no sampling parameter {name!r}")
        for token in params.logit_bias:
            if token >= self._shape.vocab_size:
                last = self._shape.vocab_size - 1
                raise RequestError(f"logit_bias has token {token}: token ids are integers from 0 to {last}")
        ids = ids_of(prompt, self.tokenizer, self._shape.vocab_size)
        positions = self._config.engine.max_context or self._shape.max_positions
        longest = min(positions, self._kv_tokens)
        if len(ids) + params.max_new_tokens > longest:
            raise RequestError(
                f"the prompt has {len(ids)} tokens and max_new_tokens is {params.max_new_tokens}: together at most "
                f"{longest} (the context is {positions}, the KV cache holds {self._kv_tokens})"
            )
        return Prepared(ids, params)

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> RunningRequest:
        ids, params, client = prepared.ids, prepared.params, self._client
        if client is None:
            raise RequestFailed("the engine is not ready: it has no ranks")
        wire_id = f"{request_id}#{next(self._numbers)}"
        request = RunningRequest(
            request_id, ids, params, self.tokenizer, listener, wire_id, lambda: self._requests.remove(request_id)
        )
        with self._sending:
            self._requests.add(request)
            try:
                ends = vocabulary_of(self.tokenizer).ends if self.tokenizer is not None else ()
                client.send(Submit(wire_id, ids, params.on_wire(ends)))
            except RequestFailed:
                request.end()
                raise
        return request

    def forget(self, request: Running) -> None:
        assert isinstance(request, RunningRequest)
        if request.end():
            self._abort(request)

    def abort(self, request_id: str) -> bool:
        with self._sending:
            request, client = self._requests.get(request_id), self._client
            if request is None or client is None:
                return False
            client.send(Abort(request.wire_id))
            return True

    def __len__(self) -> int:
        return len(self._requests)

    # ---- inside

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            request = self._requests.get(output.request_id.rpartition("#")[0])
            if request is not None and request.wire_id == output.request_id and request.receive(output):
                self._abort(request)

    def _abort(self, request: RunningRequest) -> None:
        """Tells rank 0 that nobody waits for a request any more."""
        if self._client is not None:
            with contextlib.suppress(RequestFailed):  # closed meanwhile: the ranks are gone
                self._client.send(Abort(request.wire_id))
