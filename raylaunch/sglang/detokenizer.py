"""SGLang's detokenizer in a process of its own: ``python -m raylaunch.sglang.detokenizer``.

SGLang's way to start it sends SIGQUIT to its parent when it fails (https://github.com/sgl-project/sglang/pull/2231),
and the parent is the user's program. Here it ends with its traceback and a code other than zero, and ends with its
parent: when its standard input is closed.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading

from raylaunch.sglang.listeners import Doors
from raylaunch.sglang.versions import publish

READY = b"the detokenizer is ready\n"
"""Said on standard output once its socket is bound."""


def main() -> None:
    """Imports, takes a pickle from standard input, and works until it is told to end.

    In it are SGLang's server and port arguments, variables to set, and the ports at which other nodes reach it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a Ctrl-C, and what all processes of a Ray job that is stopped get,
        signal.signal(number, signal.SIG_IGN)  # are the parent's to handle: running requests end first
    from raylaunch_actors.preload import short_imports

    with short_imports():
        from sglang.srt.managers import detokenizer_manager
        from sglang.srt.utils import configure_logger

    server_args, port_args, variables, listeners = pickle.load(sys.stdin.buffer)  # of our own parent
    os.environ.update(variables)
    detokenizer_manager.get_zmq_socket = Doors(listeners).on(detokenizer_manager.get_zmq_socket)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    publish(server_args, "detokenizer")
    configure_logger(server_args, prefix=" detokenizer")
    manager = detokenizer_manager.DetokenizerManager(server_args, port_args)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    manager.event_loop()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
