"""SGLang's detokenizer in a process of its own: ``python -m raylaunch.sglang.detokenizer``.

SGLang's way to start it sends SIGQUIT to its parent when it fails, and the parent is the user's program. Here it
ends with its traceback and a code other than zero, and ends with its parent: when its standard input is closed.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading

from raylaunch.sglang.versions import publish

READY = b"the detokenizer is ready\n"
"""Said on standard output once its socket is bound."""


def main() -> None:
    """Imports, takes SGLang's server and port arguments as a pickle from standard input, and works until it is told to
    end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    from sglang.srt.managers.detokenizer_manager import DetokenizerManager
    from sglang.srt.utils import configure_logger

    server_args, port_args = pickle.load(sys.stdin.buffer)  # of our own parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    publish(server_args, "detokenizer")
    configure_logger(server_args, prefix=" detokenizer")
    manager = DetokenizerManager(server_args, port_args)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    manager.event_loop()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
