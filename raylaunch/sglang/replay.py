"""Requests of SGLang's tokenizer manager that outlive their ranks: held, and sent again behind what they have said."""

from __future__ import annotations

import asyncio
import copy
import logging
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from raylaunch.config.sections import RecoveryConfig
from raylaunch.frontends.text import Detokenizer
from raylaunch.sglang import versions

MANY = 256  # requests that are over, of which the list is cleared
Reason = Mapping[str, Any]
"""Why SGLang says that an answer has ended."""
STRUCTURED = ("json_schema", "regex", "ebnf", "structural_tag", "stop_regex_strs", "custom_params")
PENALTIES = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1}
"""Sampling parameters that look at the answer alone, and their values that ask for nothing."""
OF_THE_RANKS = (
    "custom_logit_processor", "input_embeds", "positional_embed_overrides", "return_hidden_states",
    "return_indexer_topk", "return_routed_experts", "return_sampling_mask",
)  # fmt: skip
"""What a request may have or ask for that covers the whole answer, and is made where that is."""
USED_UP = ("mm_inputs", "session_id", "session_params")
"""What the ranks have taken, and nobody can give them again: images in shared memory, a session of theirs."""

LOGPROBS = tuple(f"{kind}_logprobs_{what}" for kind in ("token", "top", "token_ids") for what in ("val", "idx"))
"""Lists of an output, behind ``input_`` for the prompt's tokens and ``output_`` for the answer's."""

log = logging.getLogger(__name__)


def obstacle(request: Any, has_output: bool) -> str:
    """Why a request that ranks had taken cannot be sent to others; "" if it can.

    Args:
        request: SGLang's ``TokenizedGenerateReqInput``.
        has_output: whether tokens of it were given out.
    """
    asked = [name for name in USED_UP if getattr(request, name, None)]
    if has_output:
        sampling = request.sampling_params
        asked += [name for name in OF_THE_RANKS if getattr(request, name, None)]
        asked += [name for name in STRUCTURED if getattr(sampling, name, None)]
        asked += [name for name, nothing in PENALTIES.items() if getattr(sampling, name, nothing) != nothing]
    return f"with {asked[0].removesuffix('_strs')} a request cannot go on in another group" if asked else ""


def continued(request: Any, given: Sequence[int]) -> Any:
    """The request that goes on behind the tokens that are there already."""
    if not given:
        return request
    again, sampling = copy.copy(request), copy.copy(request.sampling_params)
    again.input_ids, again.sampling_params = array("q", [*request.input_ids, *given]), sampling
    if sampling.max_new_tokens is not None:
        sampling.max_new_tokens -= len(given)
    sampling.min_new_tokens = max(0, sampling.min_new_tokens - len(given))
    again.logprob_start_len = -1  # the prompt's own were said with the first token
    return again


class SecondPart:
    """What comes back for a request that goes on, made to look as if it had never been interrupted.

    The ranks take what was given out for a part of the prompt. So its length is put right, its text goes on in the
    middle of a character, and stop strings are found that begin before the loss.

    Args:
        request: as it was first sent.
        given: tokens that were given out before.
        shown: their text, as far as it was given out.
        tokenizer: None if texts are not made here.
    """

    def __init__(self, request: Any, given: Sequence[int], shown: str, tokenizer: Any) -> None:
        self.given, self.prompt_tokens = len(given), len(request.input_ids)
        self._sampling, self._tokenizer, self._ids = request.sampling_params, tokenizer, list(given)
        self._shown, self._text = len(shown), ""
        if tokenizer is not None:
            skip = self._sampling.skip_special_tokens
            self._detokenizer = Detokenizer(tokenizer, skip, prompt=request.input_ids)
            self._text = self._detokenizer.push(given)

    def push(self, ids: Sequence[int], reason: Reason | None) -> tuple[list[int], str, Reason | None]:
        """What an output adds: its tokens, their text, and why the answer ends there, if it does."""
        new = list[int]()
        for token in ids:
            new.append(token)
            self._ids.append(token)
            if matched := self._stop_across():
                reason = {"type": "stop", "matched": matched}
                break
        return new, self._add(new, reason), reason

    def _stop_across(self) -> str:
        """The stop string that ends here and began before the loss; the ranks find those that begin behind it. They
        look at as many tokens."""
        tail = self._sampling.stop_str_max_len + 1
        if self._tokenizer is None or not self._sampling.stop_strs or len(self._ids) - self.given >= tail:
            return ""
        text = self._tokenizer.decode(self._ids[-tail:])
        return next((stop for stop in self._sampling.stop_strs if stop in text), "")

    def _add(self, ids: list[int], reason: Reason | None) -> str:
        if self._tokenizer is None:
            return ""
        matched, keeps = (reason or {}).get("matched"), self._sampling.no_stop_trim
        ended = isinstance(matched, int) and not keeps and ids[-1:] == [matched]
        self._text += self._detokenizer.push(ids[:-1] if ended else ids)
        if reason:
            self._text += self._detokenizer.flush()
        if isinstance(matched, str) and (at := self._text.find(matched)) >= 0:
            self._text = self._text[: at + len(matched) if keeps else at]
        new, self._shown = self._text[self._shown :], max(self._shown, len(self._text))
        return new


def _only(outputs: Any, wanted: Collection[str]) -> Any:
    """An output of several requests without those that are not wanted: the manager passes over them."""
    from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

    part = copy.copy(outputs)
    part.rids = [one if one in wanted else HEALTH_CHECK_RID_PREFIX for one in outputs.rids]
    return part


class Replay:
    """Stands between the tokenizer manager and the ranks. All methods are called on the manager's loop.

    Args:
        manager: SGLang's ``TokenizerManager``, of which methods are replaced.
        fail: ends a request of the manager's with the reason, and with ``aborted`` as one that was aborted.

    Attributes:
        holding: what was lost, while requests wait for other ranks; "" while there are some.
        probes: ids of requests that are sent all the same.
        continued: how many requests have gone on with other ranks.
        others: those of other replicas that are ready, the least loaded first: with their ranks requests go on.
        guests: of the requests of others that are with our ranks, whose each is.
    """

    def __init__(self, manager: Any, recovery: RecoveryConfig, fail: Callable[..., None]) -> None:
        self._manager, self._recovery, self._fail = manager, recovery, fail
        self._sent: dict[str, Any] = {}  # some that are over too
        self._seconds: dict[str, SecondPart] = {}
        self._fresh = set[str]()  # of those that wait, such as no rank has seen
        self._aborted = set[str]()  # of which ranks were told so, who may be lost already
        self._waits: dict[str, object] = {}
        self._hosts: dict[str, Replay] = {}  # whose ranks have those that are not with our own
        self._rebuilding = True
        self.others: Callable[[], Sequence[Replay]] = lambda: ()
        self.guests: dict[str, Replay] = {}
        self.holding, self.continued = "", 0
        self.probes: set[str] = set()
        self._dispatch, self._handle = manager._dispatch_to_scheduler, manager._handle_batch_output
        manager._dispatch_to_scheduler, manager._handle_batch_output = self.dispatch, self.handle
        self._hear, manager._result_dispatcher = manager._result_dispatcher, self.hear

    @property
    def surplus(self) -> int:
        """How many more requests are with our ranks than are our manager's."""
        return len(self.guests) - len(self._hosts)

    def hold(self, reason: str, rebuilding: bool = True) -> None:
        """The ranks are lost: requests that can go on do so at another replica, or wait for :meth:`resume` if there is
        to be another group; the others end."""
        self.holding, self._rebuilding = reason, rebuilding
        for request_id in self._running():
            if request_id not in self._hosts:
                self._go_on(request_id, reason)
        self.return_guests(reason)

    def resume(self) -> None:
        """Others are there, and all that the lost ones had said has arrived: sends what waits."""
        self.holding, reason = "", self.holding
        for request_id in self._running():
            if request_id not in self._hosts:
                self._go_on(request_id, reason)

    def return_guests(self, reason: str) -> None:
        """Our ranks cannot go on with what others have sent them."""
        for request_id, owner in list(self.guests.items()):
            owner._leave_host(request_id)
            if request_id in owner._running():
                owner._go_on(request_id, reason)

    def send(self, message: Any) -> None:
        """To the ranks that are there, whatever is held."""
        self._dispatch(message)

    def dispatch(self, message: Any) -> None:
        """In place of the manager's own: to the ranks, if there are any."""
        from fastapi import HTTPException
        from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
        from sglang.srt.managers.io_struct import AbortReq, BatchTokenizedGenerateReqInput, TokenizedGenerateReqInput

        requests = list(message.batch) if isinstance(message, BatchTokenizedGenerateReqInput) else [message]
        probe = getattr(message, "rid", None) in self.probes
        if not isinstance(requests[0], TokenizedGenerateReqInput) or probe:
            requests = []
        requests = [one for one in requests if not one.rid.startswith(HEALTH_CHECK_RID_PREFIX)]
        if len(self._sent) > 2 * len(self._manager.rid_to_state) + MANY:
            self._running()
        for one in requests:
            self._drop(one.rid)  # of a request before it that had the same id
            self._sent[one.rid] = one
        aborted = isinstance(message, AbortReq)
        for request_id in [one for one in self._sent if aborted and (message.abort_all or one == message.rid)]:
            self._aborted.add(request_id)
            if host := self._hosts.get(request_id):
                host.send(AbortReq(rid=request_id, abort_all=False))
            elif self.holding:
                self._fail(request_id, "Aborted", aborted=True)
        if not self.holding or probe:
            self._dispatch(message)
        elif not aborted and not (requests and (self._rebuilding or self.others())):
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, self.holding)
        for one in requests if self.holding else ():
            self._fresh.add(one.rid)
            if not self._move(one.rid, given=False):
                self._wait(one.rid)

    async def handle(self, outputs: Any) -> None:
        """In place of the manager's own: takes in what the ranks say, and what they say of others' requests goes there.
        Of a request that has moved on since only its new ranks are heard."""
        if not (self._hosts or self.guests):
            await self._take_in(outputs)
            return
        of = {one: self.guests.get(one, self) for one in outputs.rids}
        for owner in dict.fromkeys(of.values()):
            theirs = {one for one in of if of[one] is owner and (owner is not self or one not in self._hosts)}
            await owner._take_in(_only(outputs, theirs))

    def hear(self, message: Any) -> None:
        """In place of the manager's own: takes in what the ranks say beside outputs. Where a request ends without one,
        as in the ranks' queue, whose it is hears of it."""
        from sglang.srt.managers.io_struct import AbortReq

        if not isinstance(message, AbortReq):
            self._hear(message)
        elif (owner := self.guests.get(message.rid, self)) is not self or message.rid not in self._hosts:
            owner._hear(message)
            owner._drop(message.rid)

    # ---- inside

    async def _take_in(self, outputs: Any) -> None:
        if self._seconds:
            self._mend(outputs)
        await self._handle(outputs)
        for request_id, reason in zip(outputs.rids, outputs.finished_reasons, strict=False):
            if reason:
                self._drop(request_id)

    def _go_on(self, request_id: str, reason: str) -> None:
        """What becomes of a request that no ranks have: sends it to our own, to another replica's, or lets it wait.
        One that cannot go on ends, and does not keep the others from it."""
        try:
            self._send_or_wait(request_id, reason)
        except Exception as error:  # such as of the model's tokenizer, which may run code of its own
            log.exception("request %s cannot go on", request_id)
            self._fail(request_id, f"{reason}; it cannot go on: {type(error).__name__}: {error}")

    def _send_or_wait(self, request_id: str, reason: str) -> None:
        if request_id in self._aborted:
            self._fail(request_id, "Aborted", aborted=True)
            return
        given = bool(self._manager.rid_to_state[request_id].output_ids)
        if problem := self._problem(request_id, given):
            self._fail(request_id, f"{reason}; {problem}")
            return
        if not self.holding:
            self._send_on(request_id, self)
            return
        if self._move(request_id, given):
            return
        if self._rebuilding and self._recovery.lets_wait(given):
            self._wait(request_id)
        else:
            self._fail(request_id, reason)

    def _move(self, request_id: str, given: bool) -> bool:
        """Sends a request to another replica's ranks. Whether there are some."""
        for other in self.others() if self._recovery.lets_move(given) else ():
            if not other.has(request_id):
                self._send_on(request_id, other)
                self._hosts[request_id], other.guests[request_id] = other, self
                return True
        return False

    def has(self, request_id: str) -> bool:
        """Whether our ranks may know a request by this id."""
        return request_id in self._manager.rid_to_state or request_id in self.guests

    def _send_on(self, request_id: str, ranks: Replay) -> None:
        request, state = self._sent[request_id], self._manager.rid_to_state[request_id]
        given = list(state.output_ids)
        if given:
            tokenizer = None if self._manager.server_args.skip_tokenizer_init else self._manager.tokenizer
            self._seconds[request_id] = SecondPart(request, given, state.get_text(), tokenizer)
        versions.send_again(ranks._dispatch, continued(request, given))
        self.continued += request_id not in self._fresh
        self._fresh.discard(request_id)
        self._waits.pop(request_id, None)

    def _leave_host(self, request_id: str) -> None:
        if host := self._hosts.pop(request_id, None):
            host.guests.pop(request_id, None)

    def _problem(self, request_id: str, has_output: bool) -> str:
        return "" if request_id in self._fresh else obstacle(self._sent[request_id], has_output)

    def _running(self) -> list[str]:
        """Ids of the requests that are not over."""
        for request_id in [one for one in self._sent if one not in self._manager.rid_to_state]:
            self._drop(request_id)
        return list(self._sent)

    def _wait(self, request_id: str) -> None:
        if request_id not in self._waits:
            self._waits[request_id] = wait = object()  # one for each loss
            seconds = self._recovery.give_up_s
            asyncio.get_running_loop().call_later(seconds, self._end_wait, request_id, wait)

    def _end_wait(self, request_id: str, wait: object) -> None:
        if self.holding and self._waits.get(request_id) is wait and request_id in self._manager.rid_to_state:
            text = f"no group took its place within {self._recovery.give_up_s:g} s"
            self._fail(request_id, f"{self.holding}; {text}")

    def _drop(self, request_id: str) -> None:
        for each in (self._sent, self._seconds, self._waits):
            each.pop(request_id, None)
        for some in (self._fresh, self._aborted):
            some.discard(request_id)
        self._leave_host(request_id)

    def _mend(self, outputs: Any) -> None:
        from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
        from sglang.srt.managers.io_struct import AbortReq

        for at, request_id in enumerate(outputs.rids):
            second = self._seconds.get(request_id)
            if second is None:
                continue
            if outputs.prompt_tokens[at] != second.prompt_tokens + second.given:  # of a group that is lost
                outputs.rids[at] = HEALTH_CHECK_RID_PREFIX  # which the manager passes over
                continue
            before = outputs.finished_reasons[at]
            said = outputs.output_ids[at]
            ids, text, reason = second.push(said, before)
            outputs.output_ids[at], outputs.finished_reasons[at] = ids, reason
            if hasattr(outputs, "output_strs"):
                outputs.output_strs[at] = text
            outputs.prompt_tokens[at] = second.prompt_tokens
            outputs.completion_tokens[at] += second.given - (len(said) - len(ids))
            outputs.cached_tokens[at] = min(outputs.cached_tokens[at], second.prompt_tokens)
            for name in LOGPROBS:
                values = getattr(outputs, f"input_{name}", None) or []
                values[at : at + 1] = [[]] if at < len(values) else []  # said with the first token
                values = getattr(outputs, f"output_{name}", None) or []
                if reason is not before:
                    values[at : at + 1] = [one[: len(ids)] for one in values[at : at + 1]]
            if reason is not before:
                self._hosts.get(request_id, self)._dispatch(AbortReq(rid=request_id, abort_all=False))
