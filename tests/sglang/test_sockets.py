"""The folder of one engine's sockets, and the shared memory that goes with it."""

from __future__ import annotations

from pathlib import Path

from raylaunch.sglang import sockets
from raylaunch.sglang.sockets import SocketFolder


def test_what_was_made_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(sockets, "SHARED_MEMORY", tmp_path)
    folder = SocketFolder()
    made = folder.open()
    mine, other = tmp_path / f"sglang_loads_{made.instance}_ab.shm", tmp_path / "sglang_loads_other_ab.shm"
    for file in (mine, other):
        file.touch()
    path = Path(made.metrics_folder).parent
    assert path.stat().st_mode & 0o777 == 0o700
    folder.close()
    folder.close()
    assert not path.exists()
    assert (mine.exists(), other.exists()) == (False, True)


def test_two_engines_have_names_of_their_own():
    folders = SocketFolder(), SocketFolder()
    first, second = (folder.open() for folder in folders)
    for folder in folders:
        folder.close()
    assert first.instance != second.instance
    assert first.scheduler_input != second.scheduler_input
