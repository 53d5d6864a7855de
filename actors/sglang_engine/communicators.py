"""SGLang's own all-reduces: which one a rank uses, what waits for its registration, and how it is switched off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.communicator.cuda_memory import CudaRuntime
from actors.communicator.sgl_kernel import require_shareable
from raylaunch.errors import RankFault
from raylaunch.protocol import CommunicatorFacts

if TYPE_CHECKING:
    from actors.rank import RankSpec

KINDS = {"CustomAllreduce": "sgl_kernel", "CustomAllReduceV2": "jit"}
GROUPS = ("_TP", "_PP", "_DCP", "_ATTN_TP", "_MOE_EP", "_MOE_TP")


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


def connected(spec: RankSpec) -> CommunicatorFacts:
    """What SGLang has settled on for the tensor-parallel group.

    SGLang only warns when its custom all-reduce cannot be set up on a rank; peers would then disagree, which the
    driver refuses to let pass.
    """
    world_size, wanted = spec.world_size, spec.config.communicator.kind
    if world_size == 1:
        return CommunicatorFacts("single", "one rank", 0, 1)
    if spec.device == "cpu":
        return CommunicatorFacts("gloo", "SGLang's, on CPUs", 0, world_size)
    usable = active()
    if not usable:
        reason = "as configured" if wanted == "library" else "SGLang could not set up its own: see the log"
        return CommunicatorFacts("nccl", reason, 0, world_size)
    first = usable[0]
    kind = KINDS.get(type(first).__name__, type(first).__name__)
    if wanted in KINDS.values() and kind != wanted:
        raise RankFault("F18", f"communicator.kind = {wanted} was asked for and SGLang chose {kind}: see the log")
    if kind == "sgl_kernel":
        require_shareable(CudaRuntime.load())
    limit = int(getattr(first, "max_size", 0))
    rows = spec.config.communicator.table_rows if kind == "sgl_kernel" else None
    return CommunicatorFacts(kind, f"SGLang's {type(first).__name__}", limit, world_size, rows)


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
