"""SGLang's own server with its own launcher, one side of ``raylaunch bench sglang``.

python -m raylaunch.commands.bench.sglang_server ARGUMENTS VARIABLES: two mappings in JSON.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Serves until it is killed."""
    arguments, variables = sys.argv[1:]
    os.environ.update(json.loads(variables))  # before SGLang is imported; its processes inherit them
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    run_server(ServerArgs(**json.loads(arguments)))


if __name__ == "__main__":  # its processes are spawned, and import this again
    main()
