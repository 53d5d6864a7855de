"""Which errors only say that a peer is gone: by where they were raised, not by words that an own one may quote."""

from __future__ import annotations

import pytest
from raylaunch_actors.secondary_failures import lost_its_peers

from raylaunch.errors import CaptureError, CollectiveAborted, RankFault

TORCH, OURS = "/y/torch/distributed/distributed_c10d.py", "/x/raylaunch_actors/communicator/nccl.py"
SGLANG = "/y/sglang/srt/distributed/device_communicators/pynccl_wrapper.py"
HUB = "/y/urllib3/connectionpool.py"
RESET = "[../gloo/transport/tcp/pair.cc:553] Connection reset by peer"
DistBackendError = type("DistBackendError", (RuntimeError,), {})


def raised(error, file):
    """``error``, raised in a file of that name."""
    try:
        exec(compile("raise error", file, "exec"), {"error": error})
    except BaseException as caught:
        return caught


def wrapped(inner, outer):
    """``outer`` as an engine raises it while it handles ``inner``."""
    try:
        try:
            raise inner
        except BaseException:
            raise outer  # noqa: B904 - as SGLang does
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "file", "secondary"),
    [
        (RuntimeError("Connection closed by peer [127.0.0.1]:4711"), TORCH, True),
        (RuntimeError("Timed out waiting 60000ms for recv operation to complete"), TORCH, True),
        (RuntimeError("NCCL error: remote process exited"), SGLANG, True),
        (RuntimeError("NCCL communicator was aborted"), OURS, True),
        (BrokenPipeError(32, "Broken pipe"), TORCH, True),
        (RuntimeError("Socket Timeout"), TORCH, True),
        (RuntimeError(RESET), "/y/sglang/srt/managers/scheduler.py", True),
        (DistBackendError("unhandled system error"), "/x/raylaunch_actors/reference/model.py", True),
        (CollectiveAborted(None, "rank 1 never came"), OURS, True),
        (CollectiveAborted("F08", "rank 1 left"), OURS, True),
        (RuntimeError("Timed out waiting for the lock"), TORCH, False),
        (RuntimeError("CUDA out of memory"), TORCH, False),
        (RankFault(None, "Qwen/Qwen3-8B cannot be fetched from the Hub: Connection reset by peer"), HUB, False),
        (RankFault(None, "/home/igloo/model.safetensors is truncated"), TORCH, False),
        (RankFault("F10", "gloo cannot bind port 29500: in use"), OURS, False),
        (CaptureError(None, "NCCL"), OURS, False),
        (OSError("[Errno 104] Connection reset by peer"), HUB, False),
        (ValueError("/home/igloo/model.safetensors: incomplete metadata"), "/y/safetensors/torch.py", False),
        (RuntimeError("NCCL is not available"), "/x/raylaunch_actors/reference/launch.py", False),
    ],
)
def test_lost_its_peers(error, file, secondary):
    assert lost_its_peers(raised(error, file)) is secondary


@pytest.mark.parametrize(
    ("inner", "secondary"),
    [
        (raised(RuntimeError(RESET), TORCH), True),
        (CollectiveAborted(None, "rank 1 never came"), True),
        (RankFault("F17", "the table is full"), False),
        (raised(OSError("Connection reset by peer"), HUB), False),
    ],
)
def test_an_engine_wraps_it_in_an_error_of_its_own(inner, secondary):
    assert lost_its_peers(wrapped(inner, Exception(f"Capture CPU graph failed: {inner}"))) is secondary


def test_an_error_of_its_own_that_quotes_one_is_its_own():
    lost = raised(RuntimeError(RESET), TORCH)
    assert not lost_its_peers(wrapped(lost, RankFault("F10", f"cannot join the group: {lost}")))
