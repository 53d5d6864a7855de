"""A Ray head of the tests' own, started with ``ray start`` as an operator would, and ended with proof."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
START_S, STOP_S = 180.0, 10.0


@dataclass
class Head:
    """One node with a dashboard, on loopback, with its own home, token, folder and ports.

    ``ray stop`` would end every Ray process of this user, so the head runs in the foreground of a process that is
    ours, and whatever outlives it is found by the folder that only our processes have in their environment.

    Attributes:
        more: further variables of every process of the cluster and of its clients.
        folder: home, token and Ray's own files; short, as Ray makes socket names of it.
        python: interpreter of the whole cluster, in which raylaunch is *not* installed.
        environment: what a client of this cluster needs.
        url: of the dashboard, which takes jobs.
        token: what every client must show.
    """

    cpus: int = 8
    more: dict[str, str] = field(default_factory=dict)
    folder: Path = field(init=False)
    python: Path = field(init=False)
    environment: dict[str, str] = field(init=False)
    url: str = field(init=False)
    token: str = field(init=False, repr=False)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> Head:
        """Returns when jobs can be submitted. Raises ``RuntimeError`` with Ray's own words."""
        self.folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))
        self.python = bare_python(self.folder / "bare")
        token = self.folder / "token"
        token.touch(mode=0o600)
        self.token = secrets.token_hex(32)
        token.write_text(self.token)
        gcs, dashboard, *others = free_ports(6)
        self.url = f"http://127.0.0.1:{dashboard}"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "PYTEST_")) and name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        self.environment = {
            **inherited,
            "HOME": str(self.folder),
            "PATH": f"{self.python.parent}:{inherited.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "RAY_API_SERVER_ADDRESS": self.url,
            "RAY_DASHBOARD_ADDRESS": self.url,
            **self.more,
        }
        names = ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
        ports = [f"--{name}-port={port}" for name, port in zip(names, others, strict=True)]
        start = f"-m ray.scripts.scripts start --head --block --node-ip-address=127.0.0.1 --port={gcs}"
        start += f" --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port={dashboard}"
        start += f" --temp-dir={self.folder} --num-cpus={self.cpus} --num-gpus=0 --object-store-memory=100000000"
        command = [str(self.python), *start.split(), *ports, "--disable-usage-stats"]
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with (self.folder / "head.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait(dashboard)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait(self, port: int) -> None:
        assert self._process is not None
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        raise RuntimeError("the head did not start:\n" + (self.folder / "head.log").read_text()[-3000:])

    def stop(self) -> None:
        """Ends every process of this head, and nothing else. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        for _ in range(3):  # what is being started meanwhile
            left = self.processes()
            for one in left:
                with contextlib.suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(left, timeout=STOP_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of this head, its jobs and their clients, whose command line has each of ``words``."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if one.pid == os.getpid() or one.status() == psutil.STATUS_ZOMBIE:
                    continue
                command = " ".join(one.cmdline())
                if one.environ().get("RAY_TMPDIR") == str(self.folder) and all(word in command for word in words):
                    found.append(one)
        return found

    def ranks(self) -> list[psutil.Process]:
        """Processes that run a rank, or do something on a node for one: Ray names an actor's process after its
        class."""
        return [one for name in ("Rank", "NodeAgent", "WeightKeeper") for one in self.processes(f"ray::{name}")]

    def run(self, *command: str, timeout_s: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of this cluster's user, from the repository's root."""
        return subprocess.run(
            command, env={**self.environment, **more}, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )

    def ray(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """``ray ARGUMENTS``."""
        return self.run(str(self.python), "-m", "ray.scripts.scripts", *arguments, timeout_s=timeout_s)

    def held(self) -> set[str]:
        """What launches hold in this cluster, in words: actors but Ray's own, placement groups, rank processes.

        Asked in a process of its own, so that the tests' process belongs to no cluster.
        """
        done = self.run(str(self.python), "-c", HELD)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split()) | {f"process-{one.pid}" for one in self.ranks()}


HELD = """
import ray
from ray.util.placement_group import placement_group_table

ray.init(log_to_driver=False, logging_level="ERROR")
actors = [one for one in ray._private.state.actors().values() if one["State"] != "DEAD"]
groups = [one for one in placement_group_table().values() if one["state"] != "REMOVED"]
print(*("actor-" + one["ActorClassName"] for one in actors if one["ActorClassName"] != "JobSupervisor"))
print(*("placement-group-" + (one["name"] or one["placement_group_id"]) for one in groups))
"""


def bare_python(folder: Path) -> Path:
    """An interpreter with everything that this one has, but for raylaunch: a line in a ``.pth`` adds its packages,
    and a ``.pth`` inside them, as an editable install leaves it, is not read."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = [entry for entry in sys.path if entry.endswith("site-packages")]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "more.pth").write_text("\n".join(packages))
    return folder / "bin" / "python"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
