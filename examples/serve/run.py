"""Ray Serve from Python: one replica with its own rank group, asked over HTTP, drained and shut down.

Needs ``pip install 'raylaunch[serve]'``. On a cluster, ``serve run`` and ``serve deploy`` do the same from a shell:

    serve run --working-dir . raylaunch.serve.deployment:app config=configs/tiny-cpu.yaml replicas=2
    serve deploy examples/serve/tiny.yaml
"""

from __future__ import annotations

import json
import sys
import urllib.request

import ray
from ray import serve

from raylaunch import LaunchConfig
from raylaunch.serve.deployment import application


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(LaunchConfig.default()), name="tiny")
    body = json.dumps({"text": "12+30=", "sampling_params": {"max_new_tokens": 8}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/generate", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        print(json.load(answer))
    serve.delete("tiny")  # running answers end first; the ranks and their placement group go
    serve.shutdown()  # would cut them: it kills the proxies at once
    ray.shutdown()


if __name__ == "__main__":
    main()
