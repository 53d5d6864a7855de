"""Messages between the driver and rank 0, and from rank 0 to the other ranks, while serving.

They are msgspec structs in MessagePack: typed, checked when decoded, and never a pickle. Those of the engine ``sglang``
are SGLang's own; what both sides must agree on of them is where they meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from raylaunch.protocol import RoundName

FinishReason = Literal["stop", "length", "abort", "error"]
SGLANG_VERIFY = "raylaunch_verify"
"""Method of SGLang's scheduler that verifies a shape: told ``round_name`` and ``shape``, on all ranks in step."""


@dataclass(frozen=True)
class CurveKeys:
    """What a rank on another node than the driver's needs to be heard by it, and to know it. Secret.

    Attributes:
        server: the driver's public CURVE key.
        public, secret: the CURVE key pair of the ranks.
    """

    server: bytes = field(repr=False)
    public: bytes = field(repr=False)
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class SglangSockets:
    """Names of ZeroMQ sockets, as in SGLang's ``PortArgs``. The driver's side binds them, rank 0 connects.

    Attributes:
        tokenizer: tokenizer manager receives from the detokenizer.
        scheduler_input: rank 0 receives from the tokenizer manager.
        detokenizer: detokenizer receives from rank 0.
        loads: rank 0 sends how busy it is, where it is on another node; on the same one that is in shared memory.
        rpc: calls from the driver to rank 0.
        metrics: rank 0 sends metrics.
        instance: token that the processes of one engine share.
        metrics_folder: folder in which they leave SGLang's Prometheus metrics.
        keys: of the sockets between nodes; None where the names are files in a folder that only this user can open.
    """

    tokenizer: str
    scheduler_input: str
    detokenizer: str
    loads: str
    rpc: str
    metrics: str
    instance: str = field(repr=False)
    metrics_folder: str
    keys: CurveKeys | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SglangSettled:
    """What SGLang has settled on a rank. Only what a rank of our own says through Ray may be unpickled.

    Attributes:
        texts: each argument as text, but for some that may differ between ranks.
        arguments: ``ServerArgs``, as a pickle.
        variables: ``SGLANG_`` variables that were set meanwhile.
        version: of SGLang.
    """

    texts: Mapping[str, str]
    arguments: bytes = field(repr=False)
    variables: Mapping[str, str]
    version: str


class Sampling(msgspec.Struct, frozen=True):
    """How a rank picks tokens for one request. Stop strings are the driver's: ranks have no tokenizer.

    ``logprobs`` asks for each token's log probability and that many of the likeliest ones; None for neither.
    ``prompt_logprobs`` asks the same of the prompt's tokens, and ``logit_bias`` adds to the logits of tokens. ``drawn``
    counts the prompt's last tokens that were drawn for this request, by a group that was lost: random numbers go on
    behind them, and the prompt's log probabilities were said with the first of them.
    """

    max_new_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    drawn: int = 0
    prompt_logprobs: int | None = None
    logit_bias: list[tuple[int, float]] = msgspec.field(default_factory=list)


class TokenLogprob(msgspec.Struct, frozen=True):
    """How likely the model found a token, before bias, temperature and truncation.

    Attributes:
        token_id: the token.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens with theirs, likeliest first; as many as were asked for.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """A new request, as token ids."""

    request_id: str
    prompt: list[int]
    sampling: Sampling


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """The caller no longer wants this request."""

    request_id: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Leave the serve loop."""


class Verify(msgspec.Struct, frozen=True, tag="verify"):
    """Replay a shape and compare it with eager, on all ranks, as soon as no request runs."""

    round: RoundName
    shape: int


class Output(msgspec.Struct, frozen=True):
    """New tokens of one request; ``finish`` is set on its last message. ``logprobs`` has one entry per token.

    ``matched`` is the token that ended it, which is not among ``tokens``. Where ``prompt_logprobs`` were asked for they
    come with the first message, for all tokens of the prompt but the first; ``matched_logprob`` is that of ``matched``.
    """

    request_id: str
    tokens: list[int]
    finish: FinishReason | None = None
    message: str = ""
    logprobs: list[TokenLogprob] | None = None
    matched: int | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    matched_logprob: TokenLogprob | None = None


class SequencePart(msgspec.Struct, frozen=True):
    """One request's rows in a packed step.

    Attributes:
        start: first row of the step's tokens.
        rows: how many rows.
        kv_start: first row of the request's range in the KV cache.
        kv_length: tokens already in the cache before this step.
        wants_token: whether the last row's logits are sampled (false for all but a prompt's last chunk).
        scored: how many rows, from the first on, say how likely the prompt's next token is.
    """

    start: int
    rows: int
    kv_start: int
    kv_length: int
    wants_token: bool
    scored: int = 0


class StepPlan(msgspec.Struct, frozen=True, tag="step"):
    """One forward pass, decided by rank 0 and run by every rank.

    Attributes:
        round: which graphs to use.
        shape: padded rows: the captured token count (prefill) or batch size (decode).
        tokens: input ids of the real rows, at most ``shape``.
        positions: their positions.
    """

    round: RoundName
    shape: int
    tokens: list[int]
    positions: list[int]
    sequences: list[SequencePart]


_to_rank = msgspec.msgpack.Decoder(Submit | Abort | Stop | Verify)
_outputs = msgspec.msgpack.Decoder(list[Output])
_plans = msgspec.msgpack.Decoder(StepPlan | Stop | Verify)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Submit | Abort | Stop | Verify | StepPlan | list[Output]) -> bytes:
    """The message as MessagePack."""
    return _encoder.encode(message)


def decode_to_rank(data: bytes) -> Submit | Abort | Stop | Verify:
    """A message from the driver. Raises ``msgspec.DecodeError`` if it is none."""
    return _to_rank.decode(data)


def decode_outputs(data: bytes) -> list[Output]:
    """The outputs of one step. Raises ``msgspec.DecodeError``."""
    return _outputs.decode(data)


def decode_plan(data: bytes) -> StepPlan | Stop | Verify:
    """What a follower does next. Raises ``msgspec.DecodeError``."""
    return _plans.decode(data)
