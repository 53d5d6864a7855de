"""SGLang's own server with its own launcher, one side of ``raylaunch bench sglang``.

python -m raylaunch.benchmarks.sglang_server FILE PORT: a file of JSON with its ``arguments`` and ``variables``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Serves until it is killed."""
    file, port = sys.argv[1:]
    told = json.loads(Path(file).read_text(encoding="utf-8"))
    os.environ.update(told["variables"])  # before SGLang is imported; its processes inherit them
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    run_server(ServerArgs(**{**told["arguments"], "host": "127.0.0.1", "port": int(port)}))


if __name__ == "__main__":  # its processes are spawned, and import this again
    main()
