"""The folder where SGLang's processes meet, made by the driver before anything is started."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from raylaunch.wire import SglangSockets

SHARED_MEMORY = Path("/dev/shm")


@dataclass
class SocketFolder:
    """A folder that only this user can open, holding one engine's sockets. ``close`` removes it, and the shared memory
    that SGLang names after the engine: a rank that is killed leaves it there."""

    path: Path | None = None
    _instance: str = field(default="", repr=False)

    def open(self) -> SglangSockets:
        """Makes the folder and the names in it."""
        # Unix sockets have short names only: not below a long TMPDIR.
        self.path = Path(tempfile.mkdtemp(prefix="raylaunch-", dir="/tmp"))
        names = ("tokenizer", "scheduler_input", "detokenizer", "rpc", "metrics")
        self._instance = secrets.token_hex(6)
        metrics_folder = self.path / "prometheus"
        metrics_folder.mkdir()
        return SglangSockets(
            **{name: f"ipc://{self.path / name}" for name in names},
            instance=self._instance,
            metrics_folder=str(metrics_folder),
        )

    def close(self) -> None:
        """Removes what was made, once nobody uses it any more. May be called more than once."""
        path, self.path = self.path, None
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
            for file in SHARED_MEMORY.glob(f"sglang_loads_{self._instance}*"):
                file.unlink(missing_ok=True)
