"""Fetches a model from the Hub into this node's cache: in a process of its own, once per node, before ranks load it.

A process, because what the Hub's library is told by variables (its cache, tokens, offline or not) it reads when it is
imported, and because one that hangs can be ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

SAY_S = 0.5
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
MAIN = "import raylaunch; from raylaunch_actors.fetch import main; main()"  # raylaunch knows where the other one lies


@dataclass(frozen=True)
class Wanted:
    """Files of a model on the Hub.

    Attributes:
        revision: as configured; None for the default branch.
        commit: what of it to fetch, as the driver has found; None for what is newest.
        patterns: of the files' names.
        whole: whether safetensors must be there, all those that an index names.
    """

    path: str
    revision: str | None
    commit: str | None
    patterns: tuple[str, ...]
    whole: bool = True


class Fetching:
    """A fetch on this node.

    Attributes:
        nbytes, total: bytes in the cache, and how many there will be; 0 where nobody knows.
    """

    def __init__(self) -> None:
        self.nbytes = self.total = 0

    def run(self, wanted: Wanted, environment: dict[str, str]) -> str:
        """Fetches. Returns why it cannot be had, in one line; "" once it is there."""
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | QUIET | environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        problem = "the process that fetches it has ended"
        with process, contextlib.suppress(OSError):  # it ends where the pipe ends, with this process at the latest
            process.stdin.write(json.dumps(asdict(wanted)) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                said = json.loads(line)
                if "problem" in said:
                    problem = said["problem"]
                    break
                self.nbytes, self.total = said["bytes"], said["total"]
        return problem


def main() -> None:
    """The process: reads what is wanted, says how far it is, and at last ``{"problem": ""}`` or why it has failed."""
    from raylaunch.errors import one_line
    from raylaunch.model import hub

    given = json.loads(sys.stdin.readline())
    wanted = Wanted(**{**given, "patterns": tuple(given["patterns"])})
    out, sys.stdout = sys.stdout, sys.stderr  # where the library may print
    threading.Thread(target=_end_with, args=(sys.stdin.read,), daemon=True).start()
    done = threading.Event()
    saying = threading.Thread(target=_say, args=(wanted, out, done), daemon=True)
    saying.start()
    problem = ""
    try:
        hub.snapshot(wanted.path, wanted.commit or wanted.revision, wanted.patterns, weights=wanted.whole)
        # For a later launch from this node that has no network. One that knows the branch may know a newer commit.
        if wanted.commit is not None and hub.cached(wanted.path, wanted.revision) is None:
            hub.remember(wanted.path, wanted.revision, wanted.commit)
    except (hub.HubError, ValueError) as error:
        problem = one_line(error)
    done.set()
    saying.join()
    print(json.dumps({"problem": problem}), file=out, flush=True)


def _end_with(read: Callable[[], object]) -> None:
    """Ends this process with the one that has started it."""
    with contextlib.suppress(OSError):
        read()
    os._exit(1)


def _say(wanted: Wanted, out: object, done: threading.Event) -> None:
    from raylaunch_actors.progress import bytes_fetched

    total = total_of(wanted)
    while True:
        ended = done.wait(SAY_S)
        blocks = bytes_fetched(wanted.path)[1] * 512  # files are made at their full size
        print(json.dumps({"bytes": blocks, "total": total}), file=out, flush=True)  # type: ignore[call-overload]
        if ended:
            return


def total_of(wanted: Wanted) -> int:
    """Bytes of the wanted files, as the Hub says; 0 where it does not."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return 0
    with contextlib.suppress(Exception):  # for a bar alone
        revision = wanted.commit or wanted.revision or constants.DEFAULT_REVISION
        found = HfApi().model_info(wanted.path, revision=revision, files_metadata=True, timeout=5.0).siblings or ()
        fetched = [one for one in found if any(fnmatch(one.rfilename, pattern) for pattern in wanted.patterns)]
        return sum(one.size or 0 for one in fetched)
    return 0
