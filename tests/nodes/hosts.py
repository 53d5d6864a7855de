"""Several Ray nodes on this machine, each a host of its own that can lose its power or its cable."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.busy import patient
from tests.head import ROOT, START_S, bare_python

MARK = "TEST_HOST"  # a variable of every process of a host
CPUS, PORT, JOBS_PORT = 2, 6379, 8265
ASKED, LOGGED = 3, 3000  # questions in a row that may go unanswered; characters shown of a log
STACKS = "import faulthandler; faulthandler.dump_traceback_later(20)"  # of one that hangs
ALIVE = (
    STACKS
    + "; import ray; ray.init(log_to_driver=False, logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
)


@dataclass
class Hosts:
    """A cluster. Host 0 is its head, offers no CPU and runs the drivers; the others take ranks.

    Every host has a network and a name of its own (namespaces), with a cable to a switch, which is a namespace too:
    nothing here touches this machine's network. A cable can be cut, after which nothing is answered and nothing is
    refused either. Memory, files and process numbers are shared, but for Ray's own files; where hosts have GPUs, each
    has a /dev/shm of its own, or NCCL and SGLang would take them for one host.
    """

    workers: int = 2
    hidden: dict[int, Path] = field(default_factory=dict)  # a folder whose contents a host does not have
    more: dict[str, str] = field(default_factory=dict)  # variables of all processes
    gpus: dict[int, str] = field(default_factory=dict)  # CUDA_VISIBLE_DEVICES of hosts that have some of the GPUs
    jobs: bool = False  # the head takes them, and they bring raylaunch along: nothing here has it
    python: str = field(init=False)
    folder: Path = field(init=False)
    environment: dict[str, str] = field(init=False)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _switch: str = field(default_factory=lambda: f"rl{os.getpid()}")

    def __enter__(self) -> Hosts:
        self.folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_"))}
        self.environment = {
            **inherited,
            "HOME": str(self.folder),
            **self._interpreter(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            **self.more,
        }
        try:
            ip("netns", "add", self._switch)
            ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "br0", "up")
            self.add()
            self.add(self.workers)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _interpreter(self) -> dict[str, str]:
        self.python = sys.executable
        if not self.jobs:
            return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "actors"), os.environ.get("PYTHONPATH", "")))}
        self.python = str(bare_python(self.folder / "bare"))
        path = f"{Path(self.python).parent}{os.pathsep}{os.environ['PATH']}"
        return {"PYTHONPATH": "", "PATH": path, "RAY_API_SERVER_ADDRESS": f"http://{address(0)}:{JOBS_PORT}"}

    def add(self, count: int = 1) -> None:
        """More hosts; returns when the cluster knows them. Raises ``RuntimeError`` with what the logs say when one of
        them or the head ends, the head does not answer three times in a row, or it takes too long."""
        believed = self.alive() if self._processes else 0
        for _ in range(count):
            self._start()
        self.environment["RAY_ADDRESS"] = f"{address(0)}:{PORT}"  # or whoever asks would start a cluster of its own
        end, unanswered = time.monotonic() + START_S, 0
        while (known := self.alive()) != believed + count:
            unanswered = 0 if known else unanswered + 1
            watched = {0, *range(len(self._processes) - count, len(self._processes))}
            ended = [host for host in watched if self._processes[host].poll() is not None]
            if ended or unanswered == ASKED or time.monotonic() > end:
                text = f"the cluster knows {known} hosts, not {believed + count}; {unanswered=}, {ended=}"
                raise RuntimeError(text + self._logs())

    def _logs(self) -> str:
        """The ends of what each host, the last question, and Ray's own processes have logged."""
        names = ("*.log", "*/session_latest/logs/gcs_server.*", "*/session_latest/logs/raylet.*")
        files = sorted(file for name in names for file in self.folder.glob(name))
        texts = {one: one.read_text(errors="replace")[-LOGGED:].rstrip() for one in files}
        return "".join(f"\n--- {file}\n{text}" for file, text in texts.items() if text)

    def _start(self) -> None:
        """One after the other: two that start at the same time take the same names for their logs and sockets."""
        host = len(self._processes)
        self._plug_in(host)
        gpus = len(self.gpus[host].split(",")) if host in self.gpus else 0
        start = f"-m ray.scripts.scripts start --block --num-gpus={gpus} --object-store-memory=100000000"
        start += f" --node-ip-address={address(host)} --disable-usage-stats --temp-dir={self.folder / str(host)}"
        head = f" --head --port={PORT} --num-cpus=0 --include-dashboard={self.jobs}"
        head += f" --dashboard-host={address(0)} --dashboard-port={JOBS_PORT}"
        start += head if host == 0 else f" --address={address(0)}:{PORT} --num-cpus={CPUS}"
        file, end = self.folder / f"host{host}.log", time.monotonic() + START_S
        with file.open("wb") as log:
            process = self.popen([self.python, *start.split()], host, stdout=log, stderr=log)
        self._processes.append(process)
        while "Ray runtime started" not in file.read_text():
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"host {host} did not start{self._logs()}")
            time.sleep(0.1)

    def _plug_in(self, host: int) -> None:
        namespace = self._namespace(host)
        ip("netns", "add", namespace)
        ip("-n", self._switch, "link", "add", f"v{host}", "type", "veth", "peer", "eth0", "netns", namespace)
        ip("-n", self._switch, "link", "set", f"v{host}", "master", "br0", "up")
        ip("-n", namespace, "addr", "add", f"{address(host)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", namespace, "link", "set", device, "up")

    def _namespace(self, host: int) -> str:
        return f"{self._switch}-{host}"

    def popen(self, command: list[str], host: int = 0, **options: Any) -> subprocess.Popen[bytes]:
        """Starts a command on a host, in the repository's root."""
        # The name is the address: Ray looks its host up by name where it cannot reach the world.
        setup = f"hostname {address(host)}"
        if host in self.hidden:
            setup += f" && mount -t tmpfs none {self.hidden[host]}"  # `ip netns exec` has mounts of its own
        if self.gpus:
            setup += f" && mount --bind {self._memory(host)} /dev/shm"
        named = ["unshare", "--uts", "sh", "-c", f'{setup} && exec "$@"', "sh"]
        inside = ["ip", "netns", "exec", self._namespace(host), *named]
        environment = {**self.environment, MARK: f"{self.folder}/{host}"}
        if self.gpus:
            environment |= {"CUDA_VISIBLE_DEVICES": self.gpus.get(host, ""), "NCCL_HOSTID": address(host)}
        return subprocess.Popen([*inside, *command], env=environment, cwd=ROOT, **options)

    def _memory(self, host: int) -> Path:
        """What all processes of a host, each of which has mounts of its own, have as their /dev/shm."""
        folder = Path("/dev/shm") / self._namespace(host)
        folder.mkdir(exist_ok=True)
        return folder

    def ask(self, code: str) -> str:
        """What a Python program on host 0 prints; "" if it fails."""
        with self._asked.open("wb") as log:
            process = self.popen([self.python, "-c", code], stdout=subprocess.PIPE, stderr=log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=patient(30))[0].decode()
        process.kill()
        return ""

    @property
    def _asked(self) -> Path:
        """What the last program of :meth:`ask` had to complain of."""
        return self.folder / "asked.log"

    def alive(self) -> int:
        """How many hosts the cluster believes to be alive."""
        return int(self.ask(ALIVE) or 0)

    def ranks(self, host: int) -> list[int]:
        """Processes that run a rank there: Ray names an actor's process after its class."""
        return [one.pid for one in self.processes(host) if one.name().startswith("ray::Rank")]

    def processes(self, host: int | None = None) -> list[psutil.Process]:
        """Processes of one host or of all: everything that a host starts carries its mark."""
        wanted = f"{self.folder}/" if host is None else f"{self.folder}/{host}"
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mark = one.environ().get(MARK, "")
                same = mark.startswith(wanted) if host is None else mark == wanted
                if same and one.pid != os.getpid() and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def kill(self, host: int) -> None:
        """Power off: every process of the host is gone at once."""
        for one in self.processes(host):
            with contextlib.suppress(psutil.Error):
                one.kill()

    def end_raylet(self, host: int, number: int = signal.SIGKILL) -> None:
        """Ray's own process of the host alone gets a signal; with SIGTERM it leaves the cluster, as by ``ray stop``."""
        for one in self.processes(host):
            with contextlib.suppress(psutil.Error):
                if one.name() == "raylet":
                    one.send_signal(number)

    def cut(self, host: int) -> None:
        """Pulls the host's cable: nothing is sent any more, not even a reset."""
        ip("-n", self._switch, "link", "set", f"v{host}", "down")

    def stop(self) -> None:
        """Ends every process of every host, and nothing else."""
        for _ in range(3):  # what is being started meanwhile
            left = self.processes()
            for one in left:
                with contextlib.suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(left, timeout=patient(10))
        for process in self._processes:
            process.wait(10)
        for name in (*map(self._namespace, range(len(self._processes) + 1)), self._switch):
            ip("netns", "del", name, check=False)
            shutil.rmtree(Path("/dev/shm") / name, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def address(host: int) -> str:
    return f"10.77.0.{host + 1}"


def host_of(place: str) -> int:
    """The host with an address."""
    return int(place.rpartition(".")[2]) - 1


def ip(*arguments: str, check: bool = True) -> bool:
    """Whether ``ip ARGUMENTS`` went well; with ``check``, an error if not."""
    return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode == 0


def can_make_hosts() -> bool:
    """Whether this process may make namespaces: tried."""
    try:
        named = subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0
        name = f"rlt{os.getpid()}"
        return named and ip("netns", "add", name, check=False) and ip("netns", "del", name)
    except FileNotFoundError:
        return False
