"""Facts: what a rank says of itself at a gate. Peers must agree on most of them; ``rules`` says on which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raylaunch.protocol.rounds import RoundPlan

NICENESS = "RAY_worker_niceness"
"""Ray's variable for how nice its workers are, 15 unless it is set where Ray is started."""
NICENESS_IS_OURS = "RAYLAUNCH_NICENESS"
"""Set beside it where raylaunch has set it, and not the user: ranks may choose otherwise then."""


@dataclass(frozen=True)
class Identity:
    """MEET: where a rank runs and with what.

    Attributes:
        hostname: of its node.
        pid: of its process.
        device: ``cpu``, or ``cuda:0`` and so on.
        local_rank: index among the group's ranks on its node.
        gpu: uuid of its GPU, as CUDA names it; "" on a CPU.
        fingerprint: versions, settings and environment that must be equal on all ranks.
        niceness: of the thread that gives a GPU its work; above 0 it comes after whatever else its node does.
        interface: network interface to other nodes' ranks, with its address; "" if there are none.
    """

    hostname: str
    pid: int
    device: str
    local_rank: int
    gpu: str = ""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    niceness: int = 0
    interface: str = ""


@dataclass(frozen=True)
class Route:
    """Messages of up to ``up_to`` bytes (None: of any size) are reduced by ``kind``."""

    up_to: int | None
    kind: str


@dataclass(frozen=True)
class MeasuredSize:
    """What an all-reduce of ``nbytes`` took by each kind, in microseconds on the slowest rank, and what was chosen."""

    nbytes: int
    microseconds: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class CommunicatorFacts:
    """CONNECTED: which all-reduce this rank will use.

    Attributes:
        kind: ``shared-memory``, ``gloo``, ``single``, ``sgl_kernel``, ``nccl``, ``symmetric-one-shot``,
            ``symmetric-two-shot``; several, joined by ``+``, where the size of a message decides.
        reason: why this one, and not a faster one.
        max_bytes: largest message it takes, 0 for no limit.
        world_size: of its group.
        capacity: inputs that it can register, None for no limit.
        routes: which kind reduces messages of which sizes, ascending; the last has no limit.
        measured: what the choice was made from, where it was measured.
        registered: inputs that it has registered already, to be measured.
    """

    kind: str
    reason: str
    max_bytes: int
    world_size: int
    capacity: int | None = None
    routes: tuple[Route, ...] = ()
    measured: tuple[MeasuredSize, ...] = ()
    registered: int = 0


@dataclass(frozen=True)
class LoadFacts:
    """LOADED: the rank's shard of the weights.

    Attributes:
        tensors: how many it has loaded.
        nbytes: what it holds.
        bytes_read: what it read.
        dtype: of the weights, such as ``bfloat16``; "" where the engine does not say.
        unused: how many tensors of the checkpoint the model has no place for.
        unused_names: the first few of them.
    """

    tensors: int
    nbytes: int
    bytes_read: int
    dtype: str = ""
    unused: int = 0
    unused_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class WarmupFacts:
    """WARMED: what the compile pass made, and how many inputs CAPTURE will want to register.

    Attributes:
        pieces: graph pieces of the model.
        eager_pieces: pieces that will never hold a graph, with the reason of each.
        compiles: times the model was compiled.
        whole_rounds: rounds in which the whole model is one graph instead of these pieces.
        planned_inputs: all-reduce inputs that CAPTURE will record in all rounds.
        graphs: graphs captured so far: must be none.
        replays: replays so far: must be none.
        kv_tokens: tokens that the rank's KV cache holds; equal on all ranks.
        kv_bytes: what it takes on this rank; 0 where the engine does not say.
        rounds: what will be captured, where the launch's plan leaves that to the ranks.
    """

    pieces: int
    eager_pieces: Mapping[int, str] = field(default_factory=dict)
    whole_rounds: tuple[str, ...] = ()
    compiles: int = 1
    planned_inputs: int = 0
    graphs: int = 0
    replays: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0
    rounds: tuple[RoundPlan, ...] = ()


@dataclass(frozen=True)
class ShapeInputs:
    """All-reduce inputs that one shape's graphs recorded: how many, how large, and in which order (``digest``)."""

    count: int
    nbytes: int
    digest: str


@dataclass(frozen=True)
class IterationFacts:
    """ITERATION: the state before the iteration. ``recorded`` is per shape of this round."""

    recorded: Mapping[int, ShapeInputs] = field(default_factory=dict)
    replays: int = 0


@dataclass(frozen=True)
class CaptureFacts:
    """CAPTURED: what the round's graphs hold, before anything is exchanged.

    Attributes:
        recorded: inputs recorded per shape.
        sizes: per shape, bytes of each recorded input in order.
        in_graphs: per shape, all-reduces that the graphs contain and that must have a recorded input.
        missing: per shape, pieces that should hold a graph and do not.
        replays: replays so far: must be none.
        memory: per shape, bytes of device memory that its capture added, where that can be told.
    """

    recorded: Mapping[int, ShapeInputs] = field(default_factory=dict)
    sizes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    in_graphs: Mapping[int, int] = field(default_factory=dict)
    missing: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    replays: int = 0
    memory: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RegisterFacts:
    """REGISTERED: inputs still without peers' addresses, and inputs that have them."""

    pending: int
    registered: int
    replays: int = 0


@dataclass(frozen=True)
class ShapeVerdict:
    """VERIFIED: one shape replayed and compared with eager.

    Attributes:
        max_error: largest absolute difference between replay and eager.
        tolerance: largest one allowed for this dtype (0: bitwise equal).
        digest: of the replayed output; equal on all ranks.
        graphs: pieces that replayed a graph.
        eager: pieces that ran eagerly, with the reason.
    """

    max_error: float
    tolerance: float
    digest: str
    graphs: int
    eager: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VerifyFacts:
    """VERIFIED: verdicts by ``"prefill 128"`` and so on; tokens of the one real request; graphs held. LATER has the
    verdict of one shape, or none if requests run."""

    shapes: Mapping[str, ShapeVerdict] = field(default_factory=dict)
    request_tokens: tuple[int, ...] = ()
    graphs: int = 0


@dataclass(frozen=True)
class ReadyFacts:
    """READY: graphs held (none may have appeared since VERIFIED) and memory in use, in bytes."""

    graphs: int = 0
    memory: int = 0


Facts = (
    Identity
    | CommunicatorFacts
    | LoadFacts
    | WarmupFacts
    | IterationFacts
    | CaptureFacts
    | RegisterFacts
    | VerifyFacts
    | ReadyFacts
    | None
)
