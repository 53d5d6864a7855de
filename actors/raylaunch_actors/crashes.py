"""What a process does that crashes."""

from __future__ import annotations

import faulthandler


def take_handlers_back() -> None:
    """Gives signals of crashes back to ``faulthandler``, which writes Python's stacks and allocates nothing.

    Libraries that are loaded later take SIGSEGV for themselves: tvm-ffi's handler (``src/ffi/backtrace.cc``; SGLang
    0.5.23 loads it) allocates memory and reads the debug information of all that is loaded, which takes seconds, and
    may never end where the crash was in the allocator.
    """
    faulthandler.disable()  # enable() alone believes that it still has them
    faulthandler.enable(all_threads=True)
