"""Debug mode: what ranks are told, and how an error shows the core dump."""

from __future__ import annotations

import pytest
from raylaunch_actors.node_agent import NodeAgentBase

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError, RankEvidence
from raylaunch.group.debug import core_file, debug_environment


def test_nothing_is_set_without_it():
    assert core_file(LaunchConfig.default(), "cuda", "tiny-1", 0) == ""
    assert core_file(LaunchConfig.default(["debug=cuda"]), "cpu", "tiny-1", 0) == ""
    assert debug_environment("") == {}
    assert LaunchConfig.default(["debug=off"]).debug == "off"  # YAML reads it as false


def test_every_rank_has_a_file_of_its_own():
    config = LaunchConfig.default(["debug=cuda", "debug_folder=/data/cores"])
    files = [core_file(config, "cuda", "tiny-1", rank) for rank in (0, 1)]
    assert files == ["/data/cores/tiny-1-rank0.nvcudmp", "/data/cores/tiny-1-rank1.nvcudmp"]
    variables = debug_environment(files[1])
    assert variables["CUDA_COREDUMP_FILE"] == files[1]
    assert variables["CUDA_LAUNCH_BLOCKING"] == variables["CUDA_ENABLE_COREDUMP_ON_EXCEPTION"] == "1"
    assert variables["CUDA_COREDUMP_GENERATION_FLAGS"].split(",")[1] == "skip_global_memory"
    unnamed = core_file(LaunchConfig.default(["debug=cuda"]), "cuda", "tiny-1", 0)
    assert unnamed.endswith("/raylaunch-debug/tiny-1-rank0.nvcudmp")


def test_unknown_mode():
    with pytest.raises(ConfigError, match="'off' or 'cuda'"):
        LaunchConfig.default(["debug=rocm"])


def test_the_error_says_how_to_open_the_dump():
    ranks = [RankEvidence(0), RankEvidence(1, core_dump="/data/cores/tiny-1-rank1.nvcudmp")]
    lines = str(LaunchError("rank 1 died", "F06", "LOAD", rank=1, ranks=ranks)).splitlines()
    assert lines[-2:] == [
        "  rank 1, core dump of its GPU; on its node, open it with",
        '    cuda-gdb -ex "target cudacore /data/cores/tiny-1-rank1.nvcudmp"',
    ]


def test_only_a_dump_that_exists_is_named(tmp_path):
    (tmp_path / "rank0.nvcudmp").write_bytes(b"dump")
    assert NodeAgentBase().existing(str(tmp_path / "rank0.nvcudmp")) == str(tmp_path / "rank0.nvcudmp")
    assert NodeAgentBase().existing(str(tmp_path / "rank1.nvcudmp")) == ""
