"""Continuous batching: which tokens the next forward pass computes. Plain Python, no torch.

Rank 0 alone schedules; the other ranks do what its :class:`~raylaunch.wire.StepPlan` says. One step is
planned, run and completed before the next one is planned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from raylaunch.protocol import RoundName
from raylaunch.wire import FinishReason, Output, SequencePart, StepPlan, Submit
from raylaunch_actors.reference.limits import Limits, refusal
from raylaunch_actors.reference.rows import RowRanges


@dataclass(eq=False)
class ScheduledRequest:
    """An accepted request.

    Attributes:
        submit: what was asked.
        rows: rows of the KV cache it reserves.
        start: first of these rows, -1 while it waits.
        cached: tokens whose keys and values are in the cache.
        generated: output tokens so far.
        alive: false once it has finished, failed or was aborted.
    """

    submit: Submit
    rows: int
    start: int = -1
    cached: int = 0
    generated: list[int] = field(default_factory=list)
    alive: bool = True

    @property
    def id(self) -> str:
        return self.submit.request_id

    @property
    def scored(self) -> bool:
        """Whether the log probabilities of its prompt are wanted, and were not said before."""
        return self.submit.sampling.prompt_logprobs is not None and not self.submit.sampling.drawn

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that no step has computed yet."""
        return max(0, len(self.submit.prompt) - self.cached)


@dataclass(frozen=True)
class ScheduledBatch:
    """A planned forward pass.

    Attributes:
        plan: what every rank runs.
        requests: the request of each of ``plan.sequences``, in order.
        wanting: the requests that get a token from it, in the order of the logits' rows.
    """

    plan: StepPlan
    requests: tuple[ScheduledRequest, ...]
    wanting: tuple[ScheduledRequest, ...]


class Scheduler:
    """Decides every step.

    Prefill and decode alternate while both have something to do. A prefill pass packs chunks of as many prompts as
    fit the largest prefill shape. A decode pass gives one more token to the requests whose prompts are computed: as
    many as the largest decode shape holds, taking turns. So neither a stream of new prompts nor a single long one
    holds up the requests that run. Requests are admitted in the order they came: none is overtaken, none starves.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._rows = RowRanges(limits.capacity)
        self._waiting: deque[ScheduledRequest] = deque()
        self._running: list[ScheduledRequest] = []  # own rows; the order in which they decode next
        self._by_id: dict[str, ScheduledRequest] = {}
        self._in_flight: ScheduledBatch | None = None
        self._prefilled = False  # whether the step planned last was one of prefill

    @property
    def running(self) -> int:
        """Requests that own rows of the cache."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._waiting)

    @property
    def kv_used(self) -> int:
        """Rows (tokens) of the cache that are in use."""
        return self._rows.capacity - self._rows.free

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._by_id

    def submit(self, request: Submit) -> Output | None:
        """Queues a request. Returns an ``error`` output with the reason if it can never be run, else None."""
        reason = refusal(request, self.limits)
        if request.request_id in self._by_id:
            reason = f"request id {request.request_id!r} is in use by a running request"
        if reason is not None:
            return Output(request.request_id, [], "error", reason)
        accepted = ScheduledRequest(request, rows=self.limits.rows_of(request))
        self._by_id[accepted.id] = accepted
        self._waiting.append(accepted)
        return None

    def abort(self, request_id: str) -> Output | None:
        """Ends a request now and frees its rows; None if there is no such request (it may have finished)."""
        return self._end(request_id, "abort", "")

    def fail(self, request_id: str, message: str) -> Output | None:
        """As :meth:`abort`, for a request that cannot go on."""
        return self._end(request_id, "error", message)

    def abort_all(self, message: str) -> list[Output]:
        """Ends every request, for a shutdown."""
        ended = (self._end(request_id, "abort", message) for request_id in list(self._by_id))
        return [output for output in ended if output is not None]

    def next_step(self) -> ScheduledBatch | None:
        """Plans a pass; None if there is nothing to do. Raises RuntimeError while a step is in flight."""
        if self._in_flight is not None:
            raise RuntimeError("next_step() before complete() of the step planned last")
        first, second = (self._decode, self._prefill) if self._prefilled else (self._prefill, self._decode)
        self._in_flight = step = first() or second()
        self._prefilled = step is not None and step.plan.round == "prefill"
        return step

    def complete(self, step: ScheduledBatch, tokens: Sequence[int]) -> list[Output]:
        """Books the sampled ``tokens`` (one for each of ``step.wanting``) and returns what to tell the
        callers.

        Tokens of requests that ended meanwhile are dropped.
        """
        if step is not self._in_flight:
            raise RuntimeError("complete() of a step that is not the one planned last")
        if len(tokens) != len(step.wanting):
            raise ValueError(f"{len(tokens)} tokens for {len(step.wanting)} requests that want one")
        self._in_flight = None
        for request, part in zip(step.requests, step.plan.sequences, strict=True):
            request.cached += part.rows
        return [
            self._append(request, token) for request, token in zip(step.wanting, tokens, strict=True) if request.alive
        ]

    def _prefill(self) -> ScheduledBatch | None:
        budget = self.limits.prefill_shapes[-1]
        chunks: list[tuple[ScheduledRequest, int]] = []
        for request in self._running:
            if budget and request.prompt_left:
                rows = min(budget, request.prompt_left)
                chunks.append((request, rows))
                budget -= rows
        while budget and self._waiting and len(self._running) < self.limits.max_running:
            request = self._waiting[0]
            start = self._rows.allocate(request.rows)
            if start is None:  # first come, first served: a smaller one behind it waits too
                break
            self._waiting.popleft()
            request.start = start
            self._running.append(request)
            rows = min(budget, request.prompt_left)
            chunks.append((request, rows))
            budget -= rows
        return self._step("prefill", chunks) if chunks else None

    def _decode(self) -> ScheduledBatch | None:
        able = [request for request in self._running if not request.prompt_left]
        group = able[: self.limits.decode_shapes[-1]]
        if not group:
            return None
        chosen = set(group)
        self._running = [r for r in self._running if r not in chosen] + group  # the others are first next time
        return self._step("decode", [(request, 1) for request in group])

    def _step(self, round_: RoundName, chunks: list[tuple[ScheduledRequest, int]]) -> ScheduledBatch:
        tokens: list[int] = []
        positions: list[int] = []
        parts: list[SequencePart] = []
        for request, rows in chunks:
            wants = request.prompt_left <= rows
            scored = min(rows, request.prompt_left - 1) if request.scored else 0
            parts.append(SequencePart(len(tokens), rows, request.start, request.cached, wants, max(0, scored)))
            if request.generated:
                tokens.append(request.generated[-1])
            else:
                tokens.extend(request.submit.prompt[request.cached : request.cached + rows])
            positions.extend(range(request.cached, request.cached + rows))
        plan = StepPlan(round_, self.limits.shape_for(round_, len(tokens)), tokens, positions, parts)
        requests = tuple(request for request, _ in chunks)
        wanting = tuple(r for r, part in zip(requests, parts, strict=True) if part.wants_token)
        return ScheduledBatch(plan, requests, wanting)

    def _append(self, request: ScheduledRequest, token: int) -> Output:
        sampling = request.submit.sampling
        if not sampling.max_new_tokens:
            self._release(request)
            return Output(request.id, [], "length")
        if token in sampling.stop_token_ids or (token in self.limits.eos_token_ids and not sampling.ignore_eos):
            self._release(request)
            return Output(request.id, [], "stop", matched=token)
        request.generated.append(token)
        finish: FinishReason | None = None
        length = len(request.submit.prompt) + len(request.generated)
        if len(request.generated) >= sampling.max_new_tokens or length >= self.limits.max_context:
            finish = "length"
            self._release(request)
        return Output(request.id, [token], finish)

    def _end(self, request_id: str, finish: FinishReason, message: str) -> Output | None:
        request = self._by_id.get(request_id)
        if request is None:
            return None
        self._release(request)
        return Output(request_id, [], finish, message)

    def _release(self, request: ScheduledRequest) -> None:
        # Rows may be freed while a step that writes them is in flight: the next step, which may give them to
        # another request, is planned and run after it.
        request.alive = False
        del self._by_id[request.id]
        if request.start < 0:
            self._waiting.remove(request)
        else:
            self._rows.give_back(request.start)
            self._running.remove(request)
