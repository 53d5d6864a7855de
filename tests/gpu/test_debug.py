"""Debug mode on a real GPU: a kernel that writes where it must not leaves a core dump, and the error names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

FAULT = "faults=[{action: illegal_access, rank: 0, at: load}]"
ONE_RANK = ["engine.device=cuda", "parallel.tensor_parallel_size=1", "model.dtype=bfloat16"]


def failure(*settings: str) -> LaunchError:
    with pytest.raises(LaunchError) as caught:
        Engine(LaunchConfig.default([*ONE_RANK, FAULT, *settings])).start()
    return caught.value


def test_the_error_names_the_core_dump(tmp_path: Path) -> None:
    error = failure("debug=cuda", f"debug_folder={tmp_path}", "deadlines.load=180")
    print(error)
    assert (error.phase, error.rank) == ("LOAD", 0)
    dump = Path(error.ranks[0].core_dump)
    assert dump.parent == tmp_path
    assert dump.stat().st_size > 0
    assert f'cuda-gdb -ex "target cudacore {dump}"' in str(error)


def test_without_debug_mode_the_rank_says_what_cuda_says() -> None:
    error = failure()
    print(error)
    assert (error.phase, error.rank) == ("LOAD", 0)
    assert "illegal memory access" in str(error)
    assert error.ranks[0].core_dump == ""
