"""Which tests ``pytest -n 2`` may run beside others.

Those that launch ranks, or look at what a machine has in /dev/shm, come one after the other in one process: they share
a Ray session and would find what another one holds. All others are handed out by file, to whichever process is free.
"""

from __future__ import annotations

from typing import Any

import pytest

ONE_AT_A_TIME = (
    "tests/launch/",
    "tests/jobs/",
    "tests/nodes/",
    "tests/cli/test_chat.py",
    "tests/cli/test_commands.py",
    "tests/cli/test_signals.py",
    "tests/cluster/",
    "tests/communicator/",
    "tests/graphs/test_graphs_of_ranks.py",
    "tests/reference/test_worker.py",
    "tests/docs/test_blocks.py",
    "tests/serve/test_fuzz.py",
    "tests/serve/test_live.py",
    "tests/serve/test_load.py",
    "tests/serve/test_loss.py",
    "tests/serve/test_ray_serve.py",
    "tests/serve/test_replicas.py",
    "tests/serve/test_run.py",
    "tests/group/test_preloaded.py",
    "tests/sglang/",
)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Of pytest-xdist: hands out files, and all of :data:`ONE_AT_A_TIME` as if they were one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "one at a time" if nodeid.startswith(ONE_AT_A_TIME) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # what comes first is decided by the order of the tests
    return ByFile(config, log)
