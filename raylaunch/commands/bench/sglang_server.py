"""SGLang's own server with its own launcher, one side of ``raylaunch bench sglang``.

python -m raylaunch.commands.bench.sglang_server ARGUMENTS VARIABLES MARK: two mappings in JSON, and what the names of
its temporary files begin with. Those of its shared memory, which it does not remove, are made of them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile


def main() -> None:
    """Serves until it is killed."""
    arguments, variables, mark = sys.argv[1:]
    os.environ.update(json.loads(variables))  # before SGLang is imported; its processes inherit them
    tempfile.template = f"{mark}-"  # what names that are given no prefix begin with
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    run_server(ServerArgs(**json.loads(arguments)))


if __name__ == "__main__":  # its processes are spawned, and import this again
    main()
