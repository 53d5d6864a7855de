"""How each block of the pages is tested: one table. A block that is not in it is found by a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Way:
    """How a block is tested. Every block is looked at without running it; that is all where ``kind`` is ``read``.

    Attributes:
        kind: ``now`` runs in seconds, and by default; ``launch`` starts ranks; ``serve`` goes on until the page's next
            ``serve``, or its end, and is asked by the blocks behind it; ``isolated`` does what would end other Ray
            processes, and sees none.
        says: what its output has.
        why: it is only read.
    """

    kind: Literal["now", "launch", "serve", "isolated", "read"]
    says: str = ""
    why: str = ""


def now(says: str) -> Way:
    return Way("now", says)


def launch(says: str) -> Way:
    return Way("launch", says)


def read(why: str) -> Way:
    return Way("read", why=why)


SERVE = Way("serve")
INSTALLS = read("installs; tests' environment is what it makes")
GPUS = read("needs GPUs and the Hub")
JOBS = read("tests/jobs/test_jobs.py runs it, on a cluster without raylaunch")
RAY_SERVE = read("tests/serve/test_ray_serve.py runs it, on a cluster of its own")
NODES = read("needs several machines; tests/nodes/test_node_loss.py has them as namespaces")
KUBERNETES = read("needs Kubernetes; tests/kuberay/test_examples.py checks the files")
CONFIGURATION = read("a configuration: it is validated")

WAYS: dict[str, Way] = {
    # README.md
    'pip install torch==2.13.0 && pip install -e . && raylaunch generate configs/tiny-cpu.yaml --prompt "12+30="': (
        launch("\n42\n")
    ),
    'pip install -e ".[test]" && python -m pytest -n 2': read("runs the tests that this is one of"),
    'pip install -e ".[sglang,serve]"': GPUS,
    # CONTRIBUTING.md
    "python -m venv .venv && . .venv/bin/activate": INSTALLS,
    "mkdocs serve": read("serves until it is ended; test_site.py builds the site"),
    # docs/index.md
    "pip install torch==2.13.0": INSTALLS,
    'raylaunch generate tiny-cpu --prompt "12+30="': launch("\n42\n"),
    "raylaunch doctor": now("launch of tiny"),
    "raylaunch serve tiny-cpu --port 30000": SERVE,
    'curl -s http://127.0.0.1:30000/v1/completions -H "Content-Type: application/json" \\': launch('"text":"42"'),
    'echo "What is 12 + 30?" | raylaunch chat http://127.0.0.1:30000': launch("\n42\n"),
    "raylaunch serve Qwen/Qwen3-8B --tp 2": GPUS,
    "raylaunch config tiny-cpu --set capture.prefill_tokens=[8,32] > my.yaml": launch("15"),
    # docs/concepts.md
    "raylaunch generate --prompt \"1+1=\" --set 'faults=[{action: kill, rank: 1, at: capture prefill 32 2}]'": (
        Way("launch", "LaunchError F06 [CAPTURE prefill, 32 tokens")
    ),
    # docs/models.md
    "raylaunch config tiny-cpu --tp 4 --set capture.prefill_tokens=[128] --set environment.NCCL_DEBUG=INFO": (
        now("tensor_parallel_size: 4")
    ),
    "name: my-model": CONFIGURATION,
    r"printf '12+30=\n7+8=\n' > prompts.txt": launch("7+8=\t15"),
    "raylaunch eval tiny-cpu --data sums-heldout --limit 50": launch("Accuracy: 1.000"),
    "raylaunch eval Qwen/Qwen3-8B --tp 2 --task gsm8k --data gsm8k.jsonl --output answers.jsonl": GPUS,
    # docs/engines.md
    "raylaunch doctor --engine sglang": read("fails where SGLang is not installed; tests/cli/test_doctor.py runs it"),
    "name: qwen3-8b": CONFIGURATION,
    'raylaunch generate qwen3-8b-reference --prompt "What is a CUDA graph?" --max-new-tokens 64': GPUS,
    # docs/serving.md
    'curl -s http://127.0.0.1:30000/v1/chat/completions -H "Content-Type: application/json" \\': launch(
        '"content":"42"'
    ),
    "RAYLAUNCH_API_KEY=sesame raylaunch serve tiny-cpu --port 30000": SERVE,
    'curl -s http://127.0.0.1:30000/v1/models -H "Authorization: Bearer sesame"': launch('"id":"tiny-adder"'),
    "raylaunch serve tiny-cpu --port 30000 --set parallel.replicas=2": SERVE,
    "lm_eval run --include_path examples/lm_eval --tasks sums_scored,sums_answered --model local-completions \\": (
        read("needs lm_eval; tests/serve/test_surface.py asks as it does")
    ),
    # docs/clusters.md
    "raylaunch doctor qwen3-8b-reference --set placement.address=HEAD:6379": GPUS,
    "ray job submit --working-dir . \\": JOBS,
    "ray job submit --working-dir . --no-wait \\": JOBS,
    "ray job submit --address http://HEAD:8265 --submission-id qwen3 --working-dir . --no-wait \\": (
        read("needs GPUs and the Hub; tests/jobs/test_sglang.py does the same on CPUs")
    ),
    "ray start --head --port=6379        # on one node": NODES,
    "serve run --working-dir . raylaunch.serve.deployment:app \\": RAY_SERVE,
    "serve deploy examples/serve/tiny.yaml": RAY_SERVE,
    "serve deploy examples/serve/qwen3-8b.yaml": GPUS,
    "serve deploy examples/serve/none.yaml    # running answers end first, within `serve.drain`": RAY_SERVE,
    "docker build -f examples/kuberay/Dockerfile -t raylaunch:0.1 .": KUBERNETES,
    'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)': read("needs SLURM"),
    "ray symmetric-run --address 127.0.0.1:6379 --num-cpus=4 \\": Way("isolated", "\n42\n"),
    # docs/watching.md
    "prometheus --config.file=examples/monitoring/prometheus.yaml": read(
        "needs Prometheus; tests/serve/test_monitoring.py"
    ),
    'pip install -e ".[otel]"': read("needs a collector; tests/tracing/test_export.py has one"),
    "raylaunch serve tiny-cpu --port 30000 --log-format json --log-level info": SERVE,
    # docs/experiments.md
    "raylaunch bench sweep tiny-cpu": read("takes minutes; tests/benchmarks/test_sweep.py runs one"),
    "model: qwen3-8b-tp2           # or a configuration, a model's folder, a Hub name": (
        read("a sweep: tests/benchmarks/test_sweep_plan.py reads it")
    ),
    "ray start --head --port=6379 --num-cpus=2     # on one node": NODES,
    # docs/python.md
    'with Engine(LaunchConfig.from_yaml("tiny-cpu")) as engine:  # raises LaunchError, never hangs': launch("42\n15"),
    "async def main() -> None:": launch("100\ntop_k = -1"),
    'config = LaunchConfig.from_yaml("qwen2.5-vl-7b-tp2")': GPUS,
    # docs/troubleshooting.md
    "raylaunch doctor tiny-cpu --json": launch("\n42\n"),
    # docs/measurements/README.md
    "name: bench": CONFIGURATION,
}
