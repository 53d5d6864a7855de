"""A model by its name on the Hub: fetched once, told while it arrives, launched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from raylaunch.config import shipped_configs
from tests.cli.runner import command, finish
from tests.reference import hub as fake

ADDER = shipped_configs() / "models" / "tiny-adder"


@pytest.mark.slow
def test_ranks_of_one_node_have_a_model_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {file.name: file.read_bytes() for file in ADDER.iterdir() if file.suffix != ".md"}
    monkeypatch.setattr(fake, "FILES", files)
    monkeypatch.setattr(fake, "PART_S", 0.5)
    fake.SENT.clear()
    with fake.hub() as address:
        settings = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        asked = ["generate", fake.MODEL, "--tp", "2", "--device", "cpu", "--prompt", "12+30="]
        ran = finish(command(*asked, "--set", "capture.enabled=false"))
    assert (ran.code, ran.stdout) == (0, "42\n"), ran.stderr
    assert ran.stderr.startswith(f"model {fake.MODEL}, of the Hub; engine reference: ")
    assert f"fetching {fake.MODEL}: " in ran.stderr
    assert Counter(name for name, _ in fake.SENT) == dict.fromkeys(files, 1)
