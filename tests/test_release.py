"""The wheel and the sdist: built from this tree, and the wheel used where nothing else of this tree can be found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.head import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
QUICK = ("--set", "capture.prefill_tokens=[16]", "--set", "capture.decode_batch_sizes=[2]")


def done(*command: str | Path, **options: object) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, **options)  # type: ignore[call-overload]
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr[-4000:]}"
    return str(ran.stdout)


def build(tree: Path, where: Path, *what: str) -> Path:
    """Builds with what is installed, and returns the file."""
    done(sys.executable, "-m", "build", "--no-isolation", "--outdir", where, *what, tree)
    (made,) = where.iterdir()
    return made


def contents(wheel: Path) -> dict[str, int]:
    """Names and checksums of what is in a wheel; without RECORD, which has the same of them."""
    with zipfile.ZipFile(wheel) as file:
        return {one.filename: one.CRC for one in file.infolist() if not one.filename.endswith("/RECORD")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "--wheel")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, an empty working directory and a home of its own.

    What raylaunch requires is taken from the environment of the tests, by its path: files of this tree, which an
    editable install puts on the path, are not found that way.
    """

    raylaunch: Path
    folder: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str) -> str:
        return done(self.raylaunch, *arguments, cwd=self.folder, env=self.environment)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    top = tmp_path_factory.mktemp("environment")
    venv.create(top / "venv", symlinks=True)
    python = top / "venv" / "bin" / "python"
    done(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel)
    site = done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "required.pth").write_text("".join(f"{one}\n" for one in sys.path if one.endswith("-packages")))
    folder = top / "empty"
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as home:  # Ray's sockets need a short path
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        kept |= {"HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0"}
        yield Installed(python.with_name("raylaunch"), folder, kept)


def test_the_wheel_has_every_file_and_no_other(wheel: Path) -> None:
    new = ("--cached", "--others", "--exclude-standard")  # also what is not committed yet
    files = done("git", "ls-files", *new, "raylaunch", "actors/raylaunch_actors", "configs", cwd=ROOT).splitlines()
    within = {re.sub("^configs/", "raylaunch/configs/", one.removeprefix("actors/")) for one in files}
    assert {name for name in contents(wheel) if ".dist-info/" not in name} == within


def test_the_sdist_makes_the_same_wheel_without_git(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    again = build(tree, tmp_path / "again", "--wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_versions_come_from_tags(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    (tree / "PKG-INFO").unlink()

    def version() -> str:
        return done(sys.executable, "-m", "hatchling", "version", cwd=tree).strip()

    assert version() == "0.1.0.dev0"  # such as an archive of a branch: nothing says which
    who = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in ("init -q", "add -A", "commit -q -m one"):
        done("git", *command.split(), cwd=tree, env=os.environ | who)
    assert re.fullmatch(r"0\.1\.0?\.?dev1\+g[0-9a-f]+", version())
    done("git", "tag", "v1.2.3", cwd=tree)
    assert version() == "1.2.3"
    done("git", "commit", "-q", "--allow-empty", "-m", "two", cwd=tree, env=os.environ | who)
    assert version().startswith("1.2.4.dev1+g")


def test_the_wheel_answers(installed: Installed, wheel: Path) -> None:
    assert installed("--version") == f"raylaunch {wheel.name.split('-')[1]}\n"
    assert installed("generate", "--prompt", "12+30=", "--no-report", *QUICK) == "42\n"


def test_the_wheel_serves_a_configuration_that_ships(installed: Installed) -> None:
    log = installed.folder / "log"
    command = [installed.raylaunch, "serve", "tiny-cpu", "--port", "0", "--no-report", *QUICK]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, cwd=installed.folder, env=installed.environment)
    try:
        while "serving tiny-adder at " not in (text := log.read_text()):
            assert server.poll() is None, text
            time.sleep(0.2)
        url = text.rsplit("serving tiny-adder at ", 1)[1].split()[0]
        message = {"role": "user", "content": "12+30="}
        body = {"model": "tiny-adder", "messages": [message], "temperature": 0}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "42"
        with urllib.request.urlopen(url, timeout=30) as page:
            assert "<html" in page.read().decode()
    finally:
        server.terminate()
        assert server.wait(60) == 0
