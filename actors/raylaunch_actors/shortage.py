"""Tells an error that says that memory has run out from all others, and what would help: F23.

What is known is collected as facts; the decisions are functions over them. No torch is imported for it.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import RankFault
from raylaunch.protocol import Gate, LaunchPlan, Phase, Step
from raylaunch_actors.spec import RankSpec

CODE = "F23"
GIB = 1 << 30
GPU, HOST, SHARED, CACHE = "GPU memory", "memory", "shared memory", "memory for the KV cache"

OF_CACHE = re.compile(  # the second since SGLang 0.5.23, where weights alone exceed the fraction
    r"Not enough memory\. Please try to increase --mem-fraction-static|weights leave no GPU memory for the KV cache"
)
OF_GPU = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED|memory capacity is unbalanced"
    r"|NCCL[^\n]*Cuda failure[^\n]*out of memory"
)
OF_SHARED = re.compile(
    r"(/dev/shm|/torch_\d|shared memory)[^\n]*(No space left on device|Cannot allocate memory)"
    r"|unable to (mmap|allocate shared memory)[^\n]*(No space left on device|Cannot allocate memory)"
)
OF_HOST = re.compile(
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|std::bad_alloc|Cannot allocate memory"
)
ASKED = re.compile(r"[Tt]r(?:ied|ying) to allocate ([\d.]+) ?(GiB|MiB|KiB|bytes)|unable to mmap (\d+) (bytes)")
FREE = re.compile(r"has a total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")


@dataclass(frozen=True)
class Cause:
    """One error of a chain: the name of its type, its text, and the system's number of an ``OSError`` with its file."""

    kind: str
    text: str
    number: int = 0
    file: str = ""


@dataclass(frozen=True)
class Shortage:
    """Memory that has run out.

    Attributes:
        what: kind of memory.
        asked: what could not be had, such as ``2.00 GiB``; "" if the error does not say.
        free: what there was, in words; "" if the error does not say.
    """

    what: str
    asked: str = ""
    free: str = ""


def chain_of(error: BaseException) -> Iterator[Cause]:
    """An error and those that it came from: engines wrap errors in others."""
    link: BaseException | None = error
    while link is not None:
        number, file = (link.errno or 0, str(link.filename or "")) if isinstance(link, OSError) else (0, "")
        yield Cause(type(link).__name__, str(link), number, file)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def shortage_of(chain: Sequence[Cause]) -> Shortage | None:
    """What has run out, if that is what a chain of errors says; the innermost error knows best."""
    for link in reversed(chain):
        if what := _kind(link):
            return Shortage(what, _asked(link.text), _free(link.text))
    return None


def _kind(link: Cause) -> str:
    if OF_CACHE.search(link.text):
        return CACHE
    if OF_GPU.search(link.text):
        return GPU
    full = link.number == errno.ENOSPC and (link.file.startswith("/dev/shm") or "shared memory" in link.text)
    if full or OF_SHARED.search(link.text):
        return SHARED
    if link.kind == "MemoryError" or link.number == errno.ENOMEM or OF_HOST.search(link.text):
        return HOST
    return GPU if link.kind == "OutOfMemoryError" else ""


def _asked(text: str) -> str:
    found = ASKED.search(text)
    if found is None:
        return ""
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return in_units(int(float(number))) if unit == "bytes" else f"{number} {unit}"


def _free(text: str) -> str:
    found = FREE.search(text)
    return f"{found[2]} free of {found[1]}" if found else ""


def phase_after(step: Step | None, plan: LaunchPlan) -> Phase:
    """The phase that a rank works in which has left a gate; in CAPTURE it is in the iteration that it was let into."""
    if step is None:
        return Phase.CONNECT
    if step.gate is Gate.ITERATION:
        return Phase.CAPTURE
    steps = list(plan.steps())
    following = steps[steps.index(step) + 1 :] if step in steps else []
    return following[0].phase if following else Phase.SERVE


def remedy(engine: str, device: str, phase: Phase, what: str) -> str:
    """The settings that decide how much memory a phase takes."""
    if what == SHARED:
        return "give the ranks more shared memory (/dev/shm: docker run --shm-size)"
    if phase is Phase.CONNECT:
        table = "" if engine == "sglang" else ", or lower communicator.max_bytes"
        return f"something else holds it: end that{table}"
    if phase is Phase.LOAD:
        return "the weights of a rank do not fit beside what others hold: raise parallel.tensor_parallel_size"
    if engine == "sglang":
        if what == CACHE:
            return "raise engine.sglang.args.mem_fraction_static, or parallel.tensor_parallel_size"
        fraction = "engine.sglang.args.mem_fraction_static"
        if phase is Phase.WARMUP:
            return f"lower engine.kv_tokens or {fraction}, or engine.max_running_requests"
        graphs = (
            "capture.decode_batch_sizes and capture.prefill_tokens (or engine.sglang.args.cuda_graph_max_bs_decode)"
        )
        return f"lower {fraction}, engine.kv_tokens, or {graphs}"
    cache = "engine.kv_tokens" if device == "cpu" else "engine.memory_fraction or engine.kv_tokens"
    if phase is Phase.WARMUP:
        return f"lower {cache}, or the largest of capture.prefill_tokens"
    if phase in (Phase.CAPTURE, Phase.REGISTER):
        return f"lower {cache}, or capture.prefill_tokens and capture.decode_batch_sizes"
    return f"lower {cache}, or engine.max_running_requests and the largest of capture.prefill_tokens"


def told(shortage: Shortage, phase: Phase, step: Step | None, help_: str) -> str:
    """One line: what has run out, where, what was asked for, what was free, what to change."""
    where = phase.name
    if step is not None and step.phase is phase:
        where = str(step).replace(f" {step.gate.label}", "", 1)
    asked = f"{shortage.asked} asked for" if shortage.asked else ""
    sizes = ", ".join(part for part in (asked, shortage.free) if part)
    return f"no {shortage.what} left in {where}{f' ({sizes})' if sizes else ''}; {help_}"


def recognised(spec: RankSpec, plan: LaunchPlan, error: BaseException, step: Step | None) -> str:
    """The words for an error that says that memory has run out; "" for any other, and for one that knows its fault.

    Args:
        plan: of the launch, as far as the rank knows it.
        step: the gate that the rank has left, or stands at.
    """
    if isinstance(error, RankFault) and error.code is not None:
        return ""
    shortage = shortage_of(tuple(chain_of(error)))
    if shortage is None:
        return ""
    if not shortage.free:
        shortage = Shortage(shortage.what, shortage.asked, _measured(shortage.what))
    phase = phase_after(step, plan)
    return told(shortage, phase, step, remedy(spec.program, spec.device, phase, shortage.what))


def _measured(what: str) -> str:
    """What is free now, in words; "" where it cannot be told."""
    with contextlib.suppress(Exception):
        if what in (GPU, CACHE) and (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            return f"{in_units(free)} free of {in_units(total)}"
        if what != SHARED:
            sizes = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
            free, total = (int(sizes[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
            return f"{in_units(free)} free of {in_units(total)}"
    return ""


def in_units(nbytes: int) -> str:
    """Bytes in words."""
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB else f"{nbytes / (1 << 20):.1f} MiB"
