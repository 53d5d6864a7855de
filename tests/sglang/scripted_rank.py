"""Rank 0 as SGLang's own processes see it: a thread that takes their requests and answers as it is told.

It speaks SGLang's messages over the real sockets, to the real tokenizer manager and the real detokenizer.
"""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass, field

import msgspec

FILLER = 5
OFFER = {"max_total_num_tokens": 4096, "max_req_input_len": 2040, "startup_time": None, "status": "ready"}


@dataclass
class Job:
    """A request that this rank answers: the tokens that are left, and those said."""

    request: object
    left: list[int]
    said: list[int] = field(default_factory=list)


class ScriptedRank:
    """Answers each request with ``script(ids, sampling)``, a token a turn.

    Args:
        sockets: as the ranks are told them.
        decode: text of token ids, to look for stop strings.
        eos: the model's own end token.

    Attributes:
        script: gives the tokens of an answer, unless the model's end token is to be ignored; may be changed.
        hold: while set, no token is given out.
        stopped: while set, it says nothing, and what comes is lost.
        queues: while set, nothing is begun: what is aborted then is said to be so beside the outputs.
        refusal: why each request that comes is refused; "" if it is taken.
        most: tokens of an answer that may end by itself, after which no more of it is given out.
        seen: the requests that came, in order.
        aborted: ids that it was asked to abort.
    """

    def __init__(self, sockets, decode=str, eos: int = 2) -> None:
        self.sockets, self.decode, self.eos = sockets, decode, eos
        self.script = lambda ids, sampling: [FILLER] * sampling.max_new_tokens
        self.hold, self.stopped, self.queues = threading.Event(), threading.Event(), threading.Event()
        self.refusal = ""
        self.most = 1 << 30
        self.seen: list[object] = []
        self.aborted: list[str] = []
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ScriptedRank:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join(10)
        time.sleep(0.1)  # a frontend that has not noticed yet sends what is for the next one to this one

    def _run(self) -> None:
        import zmq
        from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput, sock_recv, sock_send

        context = zmq.Context()
        requests, outputs, direct = (context.socket(kind) for kind in (zmq.PULL, zmq.PUSH, zmq.PUSH))
        if (keys := self.sockets.keys) is not None:
            for one in (requests, outputs, direct):
                one.curve_serverkey, one.curve_publickey, one.curve_secretkey = keys.server, keys.public, keys.secret
        requests.connect(self.sockets.scheduler_input)
        outputs.connect(self.sockets.detokenizer)
        direct.connect(self.sockets.tokenizer)
        jobs: dict[str, Job] = {}
        while not self._leave.is_set():
            while requests.poll(2):
                message = sock_recv(requests)
                if self.stopped.is_set():
                    continue
                if isinstance(message, TokenizedGenerateReqInput):
                    self.seen.append(message)
                    if self.refusal:
                        full = {"type": "abort", "status_code": 503, "message": self.refusal}
                        sock_send(direct, AbortReq(rid=message.rid, finished_reason=full))
                        continue
                    jobs[message.rid] = Job(message, self._tokens(message))
                elif isinstance(message, AbortReq):
                    gone = [rid for rid in jobs if message.abort_all or rid.startswith(message.rid)]
                    for rid in gone:
                        self.aborted.append(rid)
                        job = jobs.pop(rid)
                        if self.queues.is_set():
                            sock_send(direct, AbortReq(rid=rid))
                        else:
                            sock_send(outputs, self._output(job, [], {"type": "abort", "message": "Aborted"}))
            if any(one.is_set() for one in (self.hold, self.stopped, self.queues)):
                continue
            for rid, job in list(jobs.items()):
                if len(job.said) >= self.most and not job.request.sampling_params.ignore_eos:
                    continue
                tokens, finish = self._next(job)
                sock_send(outputs, self._output(job, tokens, finish))
                if finish is not None:
                    del jobs[rid]
        for socket in (requests, outputs, direct):
            socket.close(linger=0)
        context.term()

    def _tokens(self, message) -> list[int]:
        sampling = message.sampling_params
        if sampling.ignore_eos:  # a model goes on for ever then
            return [FILLER] * sampling.max_new_tokens
        return list(self.script(list(message.input_ids), sampling))[: sampling.max_new_tokens]

    def _next(self, job: Job) -> tuple[list[int], dict[str, object] | None]:
        sampling = job.request.sampling_params
        if not job.left:  # only the prompt was to be read
            return [], {"type": "length", "length": 0}
        token = job.left.pop(0)
        job.said.append(token)
        stops = {*(sampling.stop_token_ids or ()), *(() if sampling.ignore_eos else (self.eos,))}
        if token in stops:
            return [token], {"type": "stop", "matched": token}
        text = self.decode(job.said)
        matched = next((stop for stop in sampling.stop_strs or () if stop in text), None)
        if matched is not None:
            return [token], {"type": "stop", "matched": matched}
        if not job.left:
            return [token], {"type": "length", "length": len(job.said)}
        return [token], None

    def _output(self, job: Job, tokens: list[int], finish: dict[str, object] | None):
        from sglang.srt.managers.io_struct import BatchTokenIDOutput

        request = job.request
        wanted = request.return_logprob
        tops = [[[-0.25, token], [-1.5, 4]][: request.top_logprobs_num] for token in tokens]
        none = [[]] if wanted else None
        said = {
            "rids": [request.rid],
            "finished_reasons": [finish],
            "decoded_texts": [""],
            "decode_ids": [array("q", tokens)],
            "read_offsets": [0],
            "output_ids": [array("q", tokens)],
            "skip_special_tokens": [True],
            "spaces_between_special_tokens": [True],
            "no_stop_trim": [request.sampling_params.no_stop_trim],
            "prompt_tokens": [len(request.input_ids)],
            "reasoning_tokens": [0],
            "completion_tokens": [len(job.said)],
            "cached_tokens": [0],
            "input_token_logprobs_val": none,
            "input_token_logprobs_idx": none,
            "output_token_logprobs_val": [[-0.25] * len(tokens)] if wanted else None,
            "output_token_logprobs_idx": [tokens] if wanted else None,
            "input_top_logprobs_val": none,
            "input_top_logprobs_idx": none,
            "output_top_logprobs_val": [[[one[0] for one in top] for top in tops]] if wanted else None,
            "output_top_logprobs_idx": [[[one[1] for one in top] for top in tops]] if wanted else None,
            "input_token_ids_logprobs_val": none,
            "input_token_ids_logprobs_idx": none,
            "output_token_ids_logprobs_val": none,
            "output_token_ids_logprobs_idx": none,
            "retraction_counts": [0],
        }
        # What a version wants said beside this is of things that nobody asks for here.
        rest = {one.name: None for one in msgspec.structs.fields(BatchTokenIDOutput) if one.required}
        return BatchTokenIDOutput(**rest | said)
