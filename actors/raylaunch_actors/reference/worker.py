"""The serve loops: rank 0 decides and samples, the other ranks follow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import msgspec
import torch
from torch import Tensor

from raylaunch.errors import CollectiveAborted
from raylaunch.wire import Abort, Output, Stop, Submit, TokenLogprob, Verify
from raylaunch_actors.communicator.streams import wait_for
from raylaunch_actors.reference.channel import FollowerSocket, RankZeroSockets
from raylaunch_actors.reference.runner import ModelRunner
from raylaunch_actors.reference.sampling import NO_TOKEN, make_generator, sample, token_logprobs
from raylaunch_actors.reference.scheduler import ScheduledBatch, ScheduledRequest, Scheduler

log = logging.getLogger(__name__)

MESSAGES_PER_STEP = 256  # so that a flood of requests cannot keep the running ones from their next token


Verifier = Callable[[Verify], None]


def _nothing(_: Verify) -> None:
    """What a worker does that was not told how to verify."""


@dataclass
class WorkerCounters:
    """How a worker is doing. Plain ints with one writer: any thread may read them without a lock.

    Attributes:
        running, waiting: requests, now.
        kv_used: tokens of the KV cache that they hold, now.
        requests: accepted so far.
        steps: forward passes so far.
        tokens: output tokens so far.
    """

    running: int = 0
    waiting: int = 0
    kv_used: int = 0
    requests: int = 0
    steps: int = 0
    tokens: int = 0


class RankZeroWorker:
    """Rank 0's loop: requests in, steps planned, tokens out.

    Args:
        runner: this rank's model, prepared.
        scheduler: of the group.
        sockets: opened; None only where there is neither a driver nor a follower to talk to.

    Attributes:
        verify: replays a shape on this rank and reports it.
    """

    def __init__(self, runner: ModelRunner, scheduler: Scheduler, sockets: RankZeroSockets | None) -> None:
        self.runner, self.scheduler, self.sockets = runner, scheduler, sockets
        self.counters = WorkerCounters()
        self.verify: Verifier = _nothing
        self._to_verify: list[Verify] = []
        self._generators: dict[str, torch.Generator | None] = {}
        self._prompts: dict[str, list[TokenLogprob]] = {}  # of prompts that are being computed

    def submit(self, request: Submit) -> list[Output]:
        """Queues a request; its outputs come with the next steps. A refusal is returned at once."""
        refused = self.scheduler.submit(request)
        if refused is not None:
            return [refused]
        self.counters.requests += 1
        return []

    def abort(self, request_id: str) -> list[Output]:
        """Ends a request, if it is still there."""
        output = self.scheduler.abort(request_id)
        return [] if output is None else self._book([output])

    def run_until_idle(self, stop: threading.Event | None = None) -> list[Output]:
        """Runs what was submitted to its end and returns all outputs; ends the followers' loops too."""
        stop = stop or threading.Event()
        outputs: list[Output] = []
        while not (self.scheduler.idle or stop.is_set()):
            outputs += self._step(stop)
        self._dismiss_followers(stop)
        return outputs

    def serve(self, stop: threading.Event) -> None:
        """Serves until the driver says so or ``stop`` is set; requests that are not finished then are
        aborted.

        Raises whatever a forward pass raises: after that the ranks are out of step.
        """
        if self.sockets is None:
            raise RuntimeError("serve() needs sockets")
        leave = False
        try:
            while not (leave or stop.is_set()):
                outputs, leave = self._receive(wait=self.scheduler.idle)
                if self._to_verify and self.scheduler.idle and not leave:
                    self._verify(self._to_verify.pop(0), stop)
                if not leave:
                    outputs += self._step(stop)
                if outputs:
                    self.sockets.send_outputs(outputs, stop)
        except CollectiveAborted:
            if not stop.is_set():  # else the peers have left first, as they were told to
                raise
        ended = self._book(self.scheduler.abort_all("the engine was stopped"))
        leaving = threading.Event()
        leaving.set()
        if ended:
            self.sockets.send_outputs(ended, leaving)
        self._dismiss_followers(leaving)

    def _receive(self, wait: bool) -> tuple[list[Output], bool]:
        """Takes in what the driver sent; may block a moment. Returns outputs, and whether to leave."""
        assert self.sockets is not None  # serve() has checked
        outputs: list[Output] = []
        for _ in range(MESSAGES_PER_STEP):
            try:
                message = self.sockets.receive(wait)
            except msgspec.DecodeError as error:
                log.warning("a message from the driver was dropped: %s", error)
                continue
            wait = False
            if message is None:
                break
            if isinstance(message, Stop):
                return outputs, True
            if isinstance(message, Verify):
                self._to_verify.append(message)
            else:
                outputs += self.abort(message.request_id) if isinstance(message, Abort) else self.submit(message)
        self._count()
        return outputs, False

    def _step(self, stop: threading.Event) -> list[Output]:
        step = self.scheduler.next_step()
        if step is None:
            return []
        if self.sockets is not None:
            self.sockets.send_plan(step.plan, stop)
        hidden, scored = self.runner.forward_scored(step.plan)
        logits = self.runner.logits(hidden)
        assert logits is not None  # they are, on rank 0
        self._score(step, scored)
        tokens, outputs = self._sample(step, logits)
        outputs += self._with_prompts(_with_logprobs(step, logits, tokens, self.scheduler.complete(step, tokens)))
        self.counters.steps += 1
        return self._book(outputs)

    def _verify(self, message: Verify, stop: threading.Event) -> None:
        assert self.sockets is not None
        self.counters.running = 1  # whoever looks for ranks that do not move must see that something runs
        self.sockets.send_plan(message, stop)
        self.verify(message)
        self._count()

    def _score(self, step: ScheduledBatch, scored: list[Tensor]) -> None:
        """Keeps the log probabilities of prompts of which this step has computed a part."""
        rows = (
            (request, request.submit.prompt[part.kv_length + row + 1])
            for request, part in zip(step.requests, step.plan.sequences, strict=True)
            for row in range(part.scored)
        )
        for hidden in scored:
            logits = self.runner.logits(hidden)
            assert logits is not None
            requests, tokens = zip(*islice(rows, len(logits)), strict=True)
            wanted = [request.submit.sampling.prompt_logprobs or 0 for request in requests]
            for request, entry in zip(requests, token_logprobs(logits, tokens, wanted), strict=True):
                if request.alive:
                    self._prompts.setdefault(request.id, []).append(entry)
        for request in step.wanting:
            if request.scored and request.alive and step.plan.round == "prefill":
                self._prompts.setdefault(request.id, [])  # of a single token

    def _with_prompts(self, outputs: list[Output]) -> list[Output]:
        return [
            msgspec.structs.replace(output, prompt_logprobs=self._prompts.pop(output.request_id))
            if output.request_id in self._prompts
            else output
            for output in outputs
        ]

    def _sample(self, step: ScheduledBatch, logits: Tensor) -> tuple[list[int], list[Output]]:
        """A token for each wanting request. One that cannot be sampled fails by itself; the others go on.

        Raises ``torch.AcceleratorError``, which is nobody's request: the GPU answers no further call.
        """
        failures: dict[str, str] = {}
        try:
            tokens = self._draw(step.wanting, logits)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # whatever it is, find the rows that cause it
            log.warning("sampling %d requests failed, trying one by one: %s", len(step.wanting), error)
            tokens = []
            for row, request in enumerate(step.wanting):
                try:
                    tokens += self._draw((request,), logits[row : row + 1])
                except torch.AcceleratorError:
                    raise
                except Exception as own:
                    tokens.append(NO_TOKEN)
                    failures[request.id] = f"sampling failed: {type(own).__name__}: {own}"
        for request, token in zip(step.wanting, tokens, strict=True):
            if token == NO_TOKEN:
                failures.setdefault(request.id, "the model's logits are not finite numbers")
        outputs = [self.scheduler.fail(request_id, message) for request_id, message in failures.items()]
        return tokens, [output for output in outputs if output is not None]

    def _draw(self, requests: tuple[ScheduledRequest, ...], logits: Tensor) -> list[int]:
        for request in requests:
            if request.id not in self._generators:
                own = make_generator(request.submit.sampling, self.runner.device, logits.shape[-1])
                self._generators[request.id] = own
        generators = [self._generators[request.id] for request in requests]
        drawn = sample(logits, [request.submit.sampling for request in requests], generators)
        wait_for(self.runner.device)
        tokens: list[int] = drawn.tolist()
        return tokens

    def _dismiss_followers(self, stop: threading.Event) -> None:
        if self.sockets is not None:
            self.sockets.send_plan(Stop(), stop)

    def _book(self, outputs: list[Output]) -> list[Output]:
        for output in outputs:
            self.counters.tokens += len(output.tokens)
            if output.finish is not None:
                self._generators.pop(output.request_id, None)
                self._prompts.pop(output.request_id, None)
        self._count()
        return outputs

    def _count(self) -> None:
        self.counters.running, self.counters.waiting = self.scheduler.running, self.scheduler.waiting
        self.counters.kv_used = self.scheduler.kv_used


class FollowerWorker:
    """The loop of every other rank: runs the steps that rank 0 plans.

    Args:
        runner: this rank's model, prepared.
        socket: opened.

    Attributes:
        verify: replays a shape on this rank and reports it.
    """

    def __init__(self, runner: ModelRunner, socket: FollowerSocket) -> None:
        self.runner, self.socket = runner, socket
        self.verify: Verifier = _nothing
        self.counters = WorkerCounters()

    def run_until_idle(self, stop: threading.Event | None = None) -> list[Output]:
        """Follows until rank 0's ``run_until_idle`` or ``serve`` is over. Outputs are rank 0's: none here."""
        self.serve(stop or threading.Event())
        return []

    def serve(self, stop: threading.Event) -> None:
        """Follows until rank 0 says stop, or ``stop`` is set and rank 0 silent. Raises what a pass raises."""
        try:
            while (plan := self.socket.receive(stop)) is not None and not isinstance(plan, Stop):
                if isinstance(plan, Verify):
                    self.verify(plan)
                    continue
                hidden, scored = self.runner.forward_scored(plan)
                for rows in (hidden, *scored):
                    self.runner.logits(rows)  # a collective where the head is divided
                wait_for(self.runner.device)
                self.counters.steps += 1
        except CollectiveAborted:
            if not stop.is_set():
                raise


def _with_logprobs(step: ScheduledBatch, logits: Tensor, tokens: list[int], outputs: list[Output]) -> list[Output]:
    """The outputs, with log probabilities where a request asked for them. ``logits`` and ``tokens`` are of the step."""
    rows = {request.id: row for row, request in enumerate(step.wanting) if request.submit.sampling.logprobs is not None}
    due = {
        at: rows[output.request_id]
        for at, output in enumerate(outputs)
        if output.request_id in rows and (output.tokens or output.matched is not None)
    }
    if not due:
        return outputs
    own = list(due.values())
    sampling = [step.wanting[row].submit.sampling for row in own]
    entries = token_logprobs(logits[own], [tokens[row] for row in own], [one.logprobs or 0 for one in sampling])
    result = list(outputs)
    for at, one, entry in zip(due, sampling, entries, strict=True):
        if outputs[at].tokens:
            result[at] = msgspec.structs.replace(outputs[at], logprobs=[entry])
        elif one.prompt_logprobs is not None:
            result[at] = msgspec.structs.replace(outputs[at], matched_logprob=entry)
    return result


Worker = RankZeroWorker | FollowerWorker
