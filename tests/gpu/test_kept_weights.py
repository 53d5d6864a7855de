"""Weights that stay in memory across rebuilds of SGLang's ranks on GPUs, by figure: more than 8 GB of real files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import psutil
import pytest
import torch

from tests.gpu.test_sglang import config_for
from tests.kept import KEEP, checkpoint, rebuilds_read_nothing

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]


def test_a_rebuild_reads_no_weights_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed")
    if psutil.disk_usage(str(tmp_path)).free < 12 << 30:
        pytest.skip("needs 12 GiB of disk")
    files = checkpoint(tmp_path, layers=17, wide=4, dtype=torch.bfloat16)
    assert sum(file.stat().st_size for file in files) > 8_000_000_000
    config = config_for(tmp_path, "model.load_format=auto", *KEEP[:2])
    rebuilds_read_nothing(config, files, caplog)
