"""Variables and compile caches of a rank, set before SGLang or CUDA is loaded.

SGLang sets the same variables in the process that starts its schedulers, from which actors inherit nothing.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylaunch.config import LaunchConfig
from raylaunch.sglang.arguments import (
    LOADS_BY_SOCKET,
    LONGER_CONTEXT,
    METRICS_VARIABLE,
    implementation,
    metrics_enabled,
)
from raylaunch_actors import kernel_cache
from raylaunch_actors.sglang_engine import model_package
from raylaunch_actors.spec import RankSpec

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CACHES = {
    "TVM_FFI_CACHE_DIR": "tvm-ffi",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "SGLANG_CACHE_DIR": "sglang",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "SGLANG_DG_CACHE_DIR": "deep-gemm",
    "CUDA_CACHE_PATH": "cuda",
}
DEFAULTS = {
    "NCCL_CUMEM_ENABLE": "0",
    "NCCL_NVLS_ENABLE": "0",
    "CUDA_DEVICE_MAX_CONNECTIONS": "8",
    "CUDA_MODULE_LOADING": "AUTO",
    "TRTLLM_ENABLE_PDL": "1",
    "CUTE_DSL_LOG_LEVEL": "30",
    "CUTE_DSL_LOG_TO_CONSOLE": "1",
    # Segments in /dev/shm that nothing in one tensor-parallel group uses, and that stay when a rank is killed (0.5.17,
    # 0.5.23).
    "SGLANG_USE_MESSAGE_QUEUE_BROADCASTER": "0",
    # Its launcher (0.5.17, 0.5.23) starts each rank under numactl, which nothing can do for an actor: the rank binds
    # itself instead.
    "SGLANG_NUMA_BIND_V2": "0",
}
KEY_OF_KERNELS = "torch._inductor.codecache:torch_key"
"""Reads all of torch's sources, by whose hash kernels are found."""
OF_OTHERS = (
    "torch", "torch._dynamo", "torch._inductor.select_algorithm", "transformers", "transformers.modeling_utils",
    "torchvision", "openai.types.responses", "fastapi", "scipy.optimize", "compressed_tensors", "aiohttp", "IPython",
    "requests", "transformers.models.auto.processing_auto", KEY_OF_KERNELS,
)  # fmt: skip
"""Three quarters of the time that SGLang's import takes: modules of others that it imports, none of which asks for
GPUs. xgrammar does, and SGLang's own."""
ASKED = {
    "enable_nccl_nvls": {"NCCL_NVLS_ENABLE": "1"},
    "enable_symm_mem": {"NCCL_NVLS_ENABLE": "1", "NCCL_CUMEM_ENABLE": "1"},
    "enable_torch_symm_mem": {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "0"},
}
"""Arguments of SGLang's that do nothing without these variables, which ranks otherwise get with the opposite value. In
SGLang too an argument counts more than a variable."""


def prepare(spec: RankSpec) -> None:
    """Sets this process's variables; what the configuration's ``environment`` says stays, unless an argument asks
    for more."""
    _set(variables(spec), spec)


def prepare_imports(spec: RankSpec) -> None:
    """The same where it is not known yet which rank this will be."""
    _set(shared(spec.config), spec)


def _set(values: Mapping[str, str], spec: RankSpec) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
    os.environ.update({**asked(spec.config.engine.sglang.args), **metrics_environment(spec)})
    if spec.sockets is not None and spec.sockets.keys is not None:
        os.environ.update(LOADS_BY_SOCKET)
    for name in CACHES:
        Path(os.environ[name]).mkdir(parents=True, exist_ok=True)


def asked(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Variables that arguments of SGLang's ask for, whatever else is set."""
    return {name: value for one, needs in ASKED.items() if arguments.get(one) for name, value in needs.items()}


def metrics_environment(spec: RankSpec) -> dict[str, str]:
    """Where SGLang leaves its Prometheus metrics: ranks on the driver's node, for it. Others keep theirs, as do all of
    a group whose rank 0 is on another node."""
    if not metrics_enabled(spec.config) or spec.sockets is None or spec.sockets.keys is not None:
        return {}
    folder = spec.sockets.metrics_folder
    return {METRICS_VARIABLE: folder} if folder and Path(folder).is_dir() else {}


def kept_metrics() -> list[Metric]:
    """Those of SGLang's that this process keeps; none where it leaves them in a folder."""
    client = sys.modules.get("prometheus_client")
    if client is None or METRICS_VARIABLE in os.environ:
        return []
    found = [one for one in client.REGISTRY.collect() if one.name.startswith("sglang:")]
    for one in found:
        one.samples = [sample for sample in one.samples if not sample.name.endswith("_created")]
    return found


def variables(spec: RankSpec) -> dict[str, str]:
    """What ``prepare`` sets where nothing is set."""
    return {**shared(spec.config), **of_rank(spec)}


def shared(config: LaunchConfig) -> dict[str, str]:
    """Those that are the same for all ranks of all groups of a launch."""
    return {
        **DEFAULTS,
        **LONGER_CONTEXT,
        **implementation(config.communicator.kind),
        **caches(config.engine.sglang.cache_dir),
    }


def of_rank(spec: RankSpec) -> dict[str, str]:
    """Those of one rank of one group."""
    chosen = {"SGLANG_RUN_ID": f"raylaunch-{secrets.token_hex(6)}", **model(spec.shape.architecture)}
    if spec.nodes > 1:
        chosen["NCCL_DEBUG"] = "WARN"  # why it cannot be set up is in the log of its rank then
    if spec.config.placement.resources_per_rank.get("GPU", 1.0) < 1:
        # NCCL refuses two ranks on one GPU of a host; on two hosts it does not look.
        chosen["NCCL_HOSTID"] = f"{spec.group}-{spec.rank}"
        chosen["NCCL_SOCKET_IFNAME"] = "lo"
    return chosen


def model(architecture: str) -> dict[str, str]:
    """What has SGLang import its module of this model, and no other."""
    return {"SGLANG_EXTERNAL_MODEL_PACKAGE": model_package.__name__, "RAYLAUNCH_ARCHITECTURE": architecture}


def caches(root: str | None) -> dict[str, str]:
    """Where what is compiled at run time is kept, by variable; a folder for each set of versions, none of which may
    read another's.

    Args:
        root: what ``engine.sglang.cache_dir`` says.
    """
    folder = kernel_cache.folder_of(root)
    return {name: str(folder / below) for name, below in CACHES.items()}
