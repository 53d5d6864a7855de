"""What a rebuild reads of a made-up checkpoint, with its weights kept in memory and without; both engines."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from raylaunch import Engine, LaunchConfig
from raylaunch.protocol import Phase
from tests.pages import forget, resident
from tests.standing import READY_S, pids_of

PROMPT = [list(range(3, 20))]
KEEP = ("recovery.rebuilds=9", "recovery.keep_weights=true", "capture.enabled=false", "engine.kv_tokens=1024")


def checkpoint(folder: Path, *, layers: int = 8, wide: int = 1, dtype: torch.dtype = torch.float32) -> list[Path]:
    """Random weights in several files, half a gigabyte unless told otherwise; returns the files."""
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=1024 * wide,
        intermediate_size=4096 * wide,
        num_hidden_layers=layers,
        num_attention_heads=8 * wide,
        num_key_value_heads=4 * wide,
        head_dim=128,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=None,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config).to(dtype)
    model.to_empty(device="cpu").tie_weights()
    for weight in model.parameters():
        weight.data.uniform_(-0.05, 0.05) if weight.dim() > 1 else weight.data.fill_(1.0)
    model.save_pretrained(folder, max_shard_size="150MB" if wide == 1 else "2GB")
    return sorted(folder.glob("*.safetensors"))


def read_by_a_rebuild(engine: Engine, files: list[Path]) -> int:
    """Bytes that the ranks of the next group read from disks, after the kernel was asked to forget the files."""
    before = engine.restarts
    forget(*files)
    os.kill(pids_of(engine)[0], signal.SIGKILL)
    wait(lambda: engine.restarts > before)
    assert engine.wait_ready(READY_S), engine.last_error
    read = sum(psutil.Process(pid).io_counters().read_bytes for pid in pids_of(engine))
    print(f"{read} bytes read by the ranks, LOAD took {engine.report.elapsed(Phase.LOAD):.2f} s", flush=True)
    return read


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + READY_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def keeper_pids(engine: Engine) -> list[int]:
    runtime = engine._supervisor._runtime
    assert runtime is not None
    return [one.kept.pid for one in runtime.keepers.keepers.values() if one.kept is not None]


def rebuilds_read_nothing(config: LaunchConfig, files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    """F25 too: one whose keeper has died serves on, and another one keeps them before the next loss."""
    size = sum(file.stat().st_size for file in files)
    caplog.set_level(logging.INFO)
    with Engine(config) as engine:
        right = engine.generate(PROMPT, max_new_tokens=8)[0].token_ids
        wait(lambda: engine.report.kept.nbytes == size)
        forget(*files)
        assert resident(*files) >= size
        kept = [read_by_a_rebuild(engine, files)]
        (first,) = keeper_pids(engine)
        os.kill(first, signal.SIGKILL)
        wait(lambda: engine.report.kept.nbytes == 0)
        assert engine.generate(PROMPT, max_new_tokens=8)[0].token_ids == right
        assert f"F25: process {first}, which keeps the weights on node" in caplog.text
        wait(lambda: engine.report.kept.nbytes == size)
        kept.append(read_by_a_rebuild(engine, files))
        assert engine.restarts == 2
        (second,) = keeper_pids(engine)
        assert engine.generate(PROMPT, max_new_tokens=8)[0].token_ids == right
        assert engine.report.to_dict()["kept_weights"] == {"nodes": 1, "nbytes": size, "locked": True}
    wait(lambda: not psutil.pid_exists(second))
    with Engine(config.override("recovery.keep_weights=false")) as engine:
        without = read_by_a_rebuild(engine, files)
    print(f"{size} bytes of weights; read by a rebuild: {kept} kept, {without} without", flush=True)
    assert max(kept) < size // 20  # what they import may be read again, too
    assert without >= 0.9 * size
