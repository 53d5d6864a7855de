"""What of symmetric memory needs no GPU: torch has what is called, and finds the group that is registered."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from raylaunch_actors.communicator.symmetric_memory import forget_group, missing_support, register_group
from torch._C import _distributed_c10d as c10d


def test_this_torch_has_it():
    assert missing_support() == ""


def test_torch_finds_the_group_and_its_store():
    store = dist.HashStore()
    kept = register_group("raylaunch-test", store, 1, 2)
    try:
        group = c10d._resolve_process_group("raylaunch-test")
        assert group is kept
        assert (group.rank(), group.size(), group.group_name) == (1, 2, "raylaunch-test")
        group.get_group_store().set("handle", "1")
        assert store.get("handle") == b"1"
    finally:
        forget_group("raylaunch-test")
    with pytest.raises(RuntimeError, match="raylaunch-test"):
        c10d._resolve_process_group("raylaunch-test")
    forget_group("raylaunch-test")
