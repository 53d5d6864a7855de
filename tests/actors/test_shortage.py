"""F23: an error that says that memory has run out is told from all others, with what would help."""

from __future__ import annotations

import errno

import pytest
from raylaunch_actors.gate import RankGate
from raylaunch_actors.shortage import (
    CACHE,
    GPU,
    HOST,
    SHARED,
    Cause,
    Shortage,
    chain_of,
    phase_after,
    remedy,
    shortage_of,
    told,
)

from raylaunch.errors import RankFault
from raylaunch.protocol import Gate, LaunchPlan, Phase, RoundPlan, Step

PLAN = LaunchPlan(2, (RoundPlan("prefill", (8, 32)), RoundPlan("decode", (2,))))
TORCH = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.19 GiB is "
    "free. Including non-PyTorch memory, this process has 77.91 GiB memory in use."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "137438953472 bytes. Error code 12 (Cannot allocate memory)"
)
HINTS = "\nPossible solutions:\n1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)\n"
NCCL = (
    "NCCL error: unhandled system error\nLast error:\nError while creating shared memory segment /dev/shm/nccl-x (size "
)


@pytest.mark.parametrize(
    ("chain", "shortage"),
    [
        ([Cause("OutOfMemoryError", TORCH)], Shortage(GPU, "2.00 GiB", "1.19 GiB free of 79.11 GiB")),
        ([Cause("OutOfMemoryError", "Allocation on device 0 would exceed allowed memory.")], Shortage(GPU)),
        ([Cause("AcceleratorError", "CUDA error: out of memory\nCUDA kernel errors might be")], Shortage(GPU)),
        ([Cause("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")],
         Shortage(GPU)),
        ([Cause("RuntimeError", CPU)], Shortage(HOST, "128.00 GiB")),
        ([Cause("MemoryError", "")], Shortage(HOST)),
        ([Cause("MemoryError", "std::bad_alloc")], Shortage(HOST)),
        ([Cause("OSError", "[Errno 12] Cannot allocate memory", errno.ENOMEM)], Shortage(HOST)),
        ([Cause("OSError", "[Errno 28] No space left on device: '/dev/shm/x'", errno.ENOSPC, "/dev/shm/x")],
         Shortage(SHARED)),
        ([Cause("RuntimeError", "unable to write to file </torch_77_1>: No space left on device (28)")],
         Shortage(SHARED)),
        ([Cause("RuntimeError", "unable to mmap 4194304 bytes from file </torch_77_1>: Cannot allocate memory (12)")],
         Shortage(SHARED, "4.0 MiB")),
        ([Cause("DistBackendError", f"{NCCL}33030528), error: No space left on device (28)")], Shortage(SHARED)),
        # SGLang: its own words, around those of torch
        ([Cause("RuntimeError", "Not enough memory. Please try to increase --mem-fraction-static. Current value: "
               "mem_fraction_static=0.1")], Shortage(CACHE)),
        ([Cause("ValueError", "Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.001. "
               "Raise --mem-fraction-static above 0.027 (minimum viable = 1 - available/pre = 0.0265).")],
         Shortage(CACHE)),
        ([Cause("Exception", f"Capture cuda graph failed: {TORCH}{HINTS}"), Cause("OutOfMemoryError", TORCH)],
         Shortage(GPU, "2.00 GiB", "1.19 GiB free of 79.11 GiB")),
        ([Cause("Exception", f"Capture CPU graph failed: {CPU}{HINTS}")], Shortage(HOST, "128.00 GiB")),
        ([Cause("ValueError", "The memory capacity is unbalanced. Some GPUs may be occupied by other processes. ")],
         Shortage(GPU)),
        # compilers wrap
        ([Cause("BackendCompilerFailed", "backend='inductor' raised"), Cause("OutOfMemoryError", TORCH)],
         Shortage(GPU, "2.00 GiB", "1.19 GiB free of 79.11 GiB")),
        # what is no want of memory
        ([Cause("Exception", f"Capture cuda graph failed: an illegal memory access{HINTS}")], None),
        ([Cause("AcceleratorError", "CUDA error: an illegal memory access was encountered")], None),
        ([Cause("OSError", "[Errno 28] No space left on device: '/root/.triton/x'", errno.ENOSPC, "/root/.triton/x")],
         None),
        ([Cause("RuntimeError", "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4")], None),
        ([Cause("ValueError", "raised on purpose")], None),
        ([Cause("KeyError", "memory")], None),
    ],
)  # fmt: skip
def test_shortage_of(chain, shortage):
    assert shortage_of(chain) == shortage


def fails_while_it_handles_another() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x")
    except OSError:
        raise RuntimeError("wrapped")  # noqa: B904  # as engines do


def test_the_chain_of_an_error():
    with pytest.raises(RuntimeError) as caught:
        fails_while_it_handles_another()
    first, second = chain_of(caught.value)
    assert (first.kind, first.number) == ("RuntimeError", 0)
    assert (second.kind, second.number, second.file) == ("OSError", errno.ENOSPC, "/dev/shm/x")


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        (None, Phase.CONNECT),
        (Step(Gate.MEET), Phase.CONNECT),
        (Step(Gate.CONNECTED), Phase.LOAD),
        (Step(Gate.LOADED), Phase.WARMUP),
        (Step(Gate.WARMED), Phase.CAPTURE),
        (Step(Gate.ITERATION, "prefill", 32, 2), Phase.CAPTURE),
        (Step(Gate.ITERATION, "prefill", 64, 7), Phase.CAPTURE),
        (Step(Gate.CAPTURED, "prefill"), Phase.REGISTER),
        (Step(Gate.REGISTERED, "prefill"), Phase.CAPTURE),
        (Step(Gate.REGISTERED, "decode"), Phase.VERIFY),
        (Step(Gate.READY), Phase.SERVE),
    ],
)
def test_the_phase_that_a_rank_works_in(step, phase):
    assert phase_after(step, PLAN) is phase


@pytest.mark.parametrize(
    ("engine", "device", "phase", "what", "settings"),
    [
        ("reference", "cuda", Phase.CONNECT, GPU, ["something else holds it", "communicator.max_bytes"]),
        ("reference", "cuda", Phase.LOAD, GPU, ["parallel.tensor_parallel_size"]),
        ("reference", "cuda", Phase.WARMUP, GPU, ["engine.memory_fraction", "engine.kv_tokens"]),
        ("reference", "cpu", Phase.WARMUP, HOST, ["engine.kv_tokens"]),
        ("reference", "cuda", Phase.CAPTURE, GPU, ["engine.memory_fraction", "capture.prefill_tokens"]),
        ("reference", "cuda", Phase.VERIFY, GPU, ["engine.memory_fraction", "engine.max_running_requests"]),
        ("sglang", "cuda", Phase.WARMUP, CACHE, ["raise engine.sglang.args.mem_fraction_static"]),
        ("sglang", "cuda", Phase.WARMUP, GPU, ["lower engine.kv_tokens or engine.sglang.args.mem_fraction_static"]),
        ("sglang", "cuda", Phase.CAPTURE, GPU, ["lower engine.sglang.args.mem_fraction_static", "cuda_graph_max_bs"]),
        ("sglang", "cuda", Phase.LOAD, GPU, ["parallel.tensor_parallel_size"]),
        ("sglang", "cpu", Phase.CONNECT, SHARED, ["--shm-size"]),
    ],
)
def test_what_would_help(engine, device, phase, what, settings):
    text = remedy(engine, device, phase, what)
    assert all(one in text for one in settings)
    assert "engine.memory_fraction" not in text or (engine, device) == ("reference", "cuda"), "it has no such setting"


@pytest.mark.parametrize(
    ("shortage", "phase", "step", "line"),
    [
        (Shortage(GPU, "2.00 GiB", "1.19 GiB free of 79.11 GiB"), Phase.CAPTURE,
         Step(Gate.ITERATION, "prefill", 1152, 2), "no GPU memory left in CAPTURE prefill 1152 tokens iteration 2 "
         "(2.00 GiB asked for, 1.19 GiB free of 79.11 GiB); lower it"),
        (Shortage(HOST, "", "3.00 GiB free of 8.00 GiB"), Phase.WARMUP, Step(Gate.LOADED),
         "no memory left in WARMUP (3.00 GiB free of 8.00 GiB); lower it"),
        (Shortage(SHARED), Phase.CONNECT, None, "no shared memory left in CONNECT; lower it"),
    ],
)  # fmt: skip
def test_in_words(shortage, phase, step, line):
    assert told(shortage, phase, step, "lower it") == line


def test_a_rank_that_runs_out_of_memory_is_no_secondary_failure_and_keeps_its_own_fault():
    gate = RankGate(1, PLAN)
    gate.out_of_memory = lambda plan, error, step: "no memory left" if "gloo" in str(error) else ""
    failure = gate.fail(RuntimeError("[1]gloo: Connection closed by peer"))
    assert (failure.code, failure.secondary) == ("F23", False)
    assert failure.message.splitlines() == ["no memory left", "[1]gloo: Connection closed by peer"]
    assert RankGate(0, PLAN).fail(RankFault("F16", "x")).code == "F16"


def test_running_out_of_memory_while_serving_is_the_loss_of_a_rank():
    gate = RankGate(1, PLAN)
    gate.out_of_memory = lambda *_: "no memory left"
    gate._serving = True
    failure = gate.fail(MemoryError())
    assert (failure.code, failure.message.splitlines()[0]) == (None, "no memory left")
