"""Somebody who types what a page says, in a folder with the repository's files."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.busy import patient
from tests.docs.pages import Block
from tests.docs.ways import WAYS
from tests.head import ROOT, free_ports

OF_THE_REPOSITORY = ("configs", "docs", "examples", "mkdocs.yml", "pyproject.toml", "tests")
INSTALLED = "pip() { :; }\n"  # what it would install is there
SECONDS = 180
ISOLATED = ("unshare", "--pid", "--fork", "--mount-proc")  # sees and ends no process of others


@dataclass
class Reader:
    """Types the blocks of a page, in their order.

    Attributes:
        folder: where; it has a model of the reader's own, ``my-model``.
        variables: of the environment.
    """

    folder: Path
    variables: dict[str, str]
    _ports: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in OF_THE_REPOSITORY:
            (self.folder / name).symlink_to(ROOT / name)
        (self.folder / "my-model").symlink_to(ROOT / "configs" / "models" / "tiny-adder")
        (self.folder / "gsm8k.jsonl").touch()
        programs = Path(sys.executable).parent
        self.variables = {**self.variables, "PATH": f"{programs}:{self.variables['PATH']}"}

    def run(self, block: Block, *, before: tuple[str, ...] = ()) -> str:
        """What a block prints, on both outputs; that of a launch that fails on purpose too."""
        text = self._text(block)
        command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euc", INSTALLED + text]
        done = subprocess.run(
            [*before, *command], cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=patient(SECONDS), check=False,
        )  # fmt: skip
        assert done.returncode == 0 or "LaunchError" in WAYS[block.key].says, f"{text}\n{done.stdout[-3000:]}"
        return done.stdout

    @contextlib.contextmanager
    def serving(self, block: Block) -> Iterator[None]:
        """Has a server run within the block, which ends well when it is told to."""
        log = self.folder / "server.log"
        with log.open("wb") as file:
            command = ["bash", "-c", self._text(block)]  # of a single command bash makes itself
            server = subprocess.Popen(command, cwd=self.folder, env=self.variables, stdout=file, stderr=file)
        try:
            end = time.monotonic() + patient(SECONDS)
            while "serving tiny-adder at " not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            yield
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0, log.read_text()
        finally:
            server.kill()
            server.wait()

    def _text(self, block: Block) -> str:
        """The block with ports that are free, the same ones for all blocks of a page."""

        def free(port: re.Match[str]) -> str:
            return self._ports.setdefault(port[0], str(free_ports(1)[0]))

        return re.sub(r"\b(30000|6379)\b", free, block.text)
