"""SGLang's own all-reduces: which one a rank uses, what waits for its registration, and how it is switched off."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from raylaunch.errors import RankFault
from raylaunch.protocol import CommunicatorFacts
from raylaunch_actors.communicator.choice import impossible
from raylaunch_actors.communicator.cuda_memory import CudaRuntime
from raylaunch_actors.communicator.sgl_kernel import require_shareable, table_inputs
from raylaunch_actors.spec import RankSpec

KINDS = {"CustomAllreduce": "sgl_kernel", "CustomAllReduceV2": "jit"}
LOG = "sglang.srt.distributed"
OF_ITS_SET_UP = ("custom_all_reduce", "custom allreduce")
GROUPS = ("_TP", "_PP", "_DCP", "_ATTN_TP", "_MOE_EP", "_MOE_TP", "_SHARED_EXPERTS_TP")
NOT_FUSED = "FlashInfer's fused one is off: no gate knows what it shares"


def custom_all_reduces() -> list[Any]:
    """The distinct custom all-reduces of this rank's groups."""
    from sglang.srt.distributed import parallel_state

    found: list[Any] = []
    for name in GROUPS:
        communicator = getattr(getattr(parallel_state, name, None), "ca_comm", None)
        if communicator is not None and all(communicator is not other for other in found):
            found.append(communicator)
    return found


def active() -> list[Any]:
    """Those in use. SGLang keeps one that it could not set up, disabled, and such a one has no other attribute."""
    return [one for one in custom_all_reduces() if not getattr(one, "disabled", True)]


def in_capture_context(pointer: int) -> bool:
    """Whether sgl_kernel's all-reduce of this address is inside of its capture context."""
    return any(getattr(one, "_ptr", 0) == pointer and one._IS_CAPTURING for one in active())


class SetUpLog(logging.Handler):
    """Why SGLang makes no custom all-reduce: it only warns. A context, around what makes it; entered more than once.

    Inside it there are warnings whatever SGLang's log level is.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._log = logging.getLogger(LOG)
        self._level = self._log.level
        self._texts: dict[str, None] = {}  # in order, each once: every group of ranks says it anew

    def __enter__(self) -> SetUpLog:
        self._log.addHandler(self)
        self._log.setLevel(min(logging.WARNING, self._log.getEffectiveLevel()))
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes note of a warning about the custom all-reduce, without how to silence it."""
        try:
            text = record.getMessage()
            if any(word in f"{record.name} {text}".lower() for word in OF_ITS_SET_UP):
                self._texts[text.partition(" To silence this")[0].rstrip(".")] = None
        except Exception:  # or it would end what SGLang was about to do
            self.handleError(record)

    def reason(self, off: bool) -> str:
        """What SGLang has said, in a phrase.

        Args:
            off: its settled argument ``disable_custom_all_reduce``: then it does not try, and says nothing here.
        """
        if off:
            return "SGLang has settled its argument disable_custom_all_reduce to be true"
        return "; ".join(self._texts) or "SGLang did not say why: see the log"


def connected(spec: RankSpec, problem: str, fused: str | None = None) -> CommunicatorFacts:
    """What SGLang has settled on for the tensor-parallel group.

    Args:
        problem: why there is no custom all-reduce, if there is none.
        fused: FlashInfer's backend, where its all-reduce with a normalisation in it goes before the others.

    Raises:
        RankFault: F18, it is not the one that ``communicator.kind`` names; F16, it is and graphs have their inputs in
            memory that cannot be shared.
    """
    world_size, wanted = spec.world_size, spec.config.communicator.kind
    named = wanted in KINDS.values()
    if world_size == 1:
        return CommunicatorFacts("single", "one rank", 0, 1)
    if spec.device == "cpu":
        spans = f"; the group spans {spec.nodes} nodes" if spec.nodes > 1 else ""
        return CommunicatorFacts("gloo", f"SGLang's, on CPUs{spans}", 0, world_size)
    usable = active()
    if not usable:
        if named:
            raise impossible(wanted, problem)
        reason = "as configured" if wanted == "library" else problem
        return _beside(fused, CommunicatorFacts("nccl", reason, 0, world_size))
    first = usable[0]
    kind = KINDS.get(type(first).__name__, type(first).__name__)
    if named and kind != wanted:
        raise RankFault("F18", f"communicator.kind={wanted} was asked for and SGLang chose {kind}: see the log")
    rows = None  # `jit` has a table too, which is needed by some messages only, and refuses by itself to overflow it
    if kind == "sgl_kernel":
        require_shareable(CudaRuntime.load())
        rows = table_inputs(first.rank_data.nbytes)
    limit = int(getattr(first, "max_size", 0))
    return _beside(fused, CommunicatorFacts(kind, f"SGLang's {type(first).__name__}", limit, world_size, rows))


def _beside(fused: str | None, facts: CommunicatorFacts) -> CommunicatorFacts:
    """With what is to be known of FlashInfer's all-reduce, of which nothing is registered: VERIFY replays it."""
    if fused is None:
        return replace(facts, reason=f"{facts.reason}; {NOT_FUSED}")
    first = f"FlashInfer's fused all-reduce ({fused}) first, as SGLang has settled"
    return replace(facts, kind=f"flashinfer+{facts.kind}", reason=f"{first}; {facts.reason}")


def require_fused(fused: str | None) -> None:
    """Raises RankFault F18 where FlashInfer's all-reduce was reported and SGLang, which only warns, goes without it."""
    if fused in (None, "cutedsl"):  # the second has no workspace of its own
        return
    from sglang.srt.layers import flashinfer_comm_fusion as fusion

    if not fusion._get_workspace_manager(True).initialized:
        text = f"FlashInfer's fused all-reduce ({fused}) could not be set up: see the log; leave "
        raise RankFault("F18", f"{text}engine.sglang.args.flashinfer_allreduce_fusion_backend out to go without it")


def pending() -> int:
    """Inputs that graphs have recorded and that wait for their registration. Not while a stream captures."""
    total = 0
    for one in active():
        if hasattr(one, "_graph_inputs"):
            total += len(one._graph_inputs)
        else:
            from sglang.srt.distributed.device_communicators import custom_all_reduce_ops

            total += len(custom_all_reduce_ops.get_graph_buffer_ipc_meta(one._ptr)[1])
    return total


def switch_off() -> None:
    """After a failure: leaving SGLang's capture context must not enter the exchange that peers will never join."""
    for one in custom_all_reduces():
        one.disabled = True
        if hasattr(one, "_graph_inputs"):
            one._graph_inputs.clear()
