"""A process that crashes writes stacks at once, whoever has taken its signals meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

CRASHES = """
import ctypes, faulthandler, os, signal
faulthandler.enable()
ctypes.CDLL(None).signal(signal.SIGSEGV, ctypes.c_void_p(1))  # SIG_IGN, in the place of a library's handler
faulthandler.enable()
if {back}:
    from raylaunch_actors.crashes import take_handlers_back
    take_handlers_back()
os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.parametrize(("back", "code"), [(False, 0), (True, -signal.SIGSEGV)])
def test_crashes_are_told_whatever_a_library_has_done(back: bool, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", CRASHES.format(back=back)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert ("Fatal Python error: Segmentation fault" in done.stderr) == back
