"""What SGLang is told: its server arguments, made of a configuration. Reads SGLang's files, imports nothing of it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError
from raylaunch.model.load_formats import FORMATS, OF_REFERENCE
from raylaunch.model.tokenizer import has_tokenizer
from raylaunch.sglang import hooked
from raylaunch.sglang.source import (
    TESTED,
    digest_of,
    installed_folder,
    installed_version,
    known_arguments,
    known_load_formats,
    misfits,
)

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the folder that processes leave their metrics in."""
log = logging.getLogger(__name__)

OURS: Mapping[str, str] = {
    "model_path": "model.path",
    "tokenizer_path": "model.tokenizer",
    "trust_remote_code": "model.trust_remote_code",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "load_format": "model.load_format",
    "tp_size": "parallel.tensor_parallel_size",
    "nnodes": "parallel.nodes",
    "dist_init_addr": "parallel.rendezvous_port",
    "nccl_port": "parallel.rendezvous_port",
    "host": "serve.host",
    "port": "serve.port",
    "api_key": "serve.api_key",
    "served_model_name": "serve.served_model_name",
    "chat_template": "serve.chat_template",
    "disable_custom_all_reduce": "communicator.kind",
}
"""Arguments of SGLang that raylaunch sets itself, and the setting to use instead."""

SHARED: tuple[tuple[Callable[[LaunchConfig], Any], str, str], ...] = (
    (lambda config: config.engine, "kv_tokens", "max_total_tokens"),
    (lambda config: config.engine, "max_context", "context_length"),
    (lambda config: config.engine, "sampling_defaults", "sampling_defaults"),
    (lambda config: config.engine, "max_running_requests", "max_running_requests"),
    (lambda config: config.engine, "max_waiting_requests", "max_queued_requests"),
    (lambda config: config.capture, "compiler", "cuda_graph_tc_compiler"),
)
"""Settings of both engines, and SGLang's name for each. One that is not set leaves SGLang its own default."""

UNSUPPORTED = (
    "pp_size", "dp_size", "ep_size", "attn_cp_size", "moe_dp_size", "dwdp_size", "node_rank", "base_gpu_id",
    "gpu_id_step", "enable_dp_attention", "tokenizer_worker_num", "detokenizer_worker_num", "speculative_algorithm",
    "disaggregation_mode", "use_ray", "gated_launch_port", "enable_memory_saver", "enable_pdmux", "is_embedding",
    "weight_cache_mode", "remote_instance_weight_loader_start_seed_via_transfer_engine", "attn_dp_size", "dcp_size",
    "startup_weight_load_mode", "enable_pd_role_switch",
)  # fmt: skip
"""Arguments that would change which ranks exist, capture in rounds that the gates do not know, have weights loaded
after LOADED, leave nothing that a first request could generate, or need a process beside the ranks that only SGLang's
own launcher starts."""

OF_ITS_SERVER = (
    "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_keyfile_password", "enable_ssl_refresh", "enable_http2",
    "grpc_port", "grpc_mode", "smg_grpc_mode", "sidecar", "encoder_only", "fastapi_root_path", "admin_api_key",
    "grpc_response_timeout_secs", "grpc_worker_threads", "http2_initial_connection_window_size",
    "http2_max_concurrent_streams", "enable_http_worker_reuseport", "log_level_http",
    "uvicorn_access_log_exclude_prefixes", "gc_threshold", "custom_sigquit_handler", "delete_ckpt_after_loading",
    "debug_tensor_dump_input_file", "checkpoint_engine_wait_weights_before_ready",
)  # fmt: skip
"""Arguments of SGLang's launcher and of the server that it starts: raylaunch takes their place, and would not heed
them."""


REMOTE, SEED = (
    "remote_instance_weight_loader_",
    ("seed_instance_ip", "seed_instance_service_port", "send_weights_group_ports"),
)
IN_PIECES = "tc_piecewise"
PIECE_COMPILER = "cuda_graph_tc_compiler"
FUSED = (
    "flashinfer_allreduce_fusion_backend", "enable_flashinfer_allreduce_fusion",
    "enforce_disable_flashinfer_allreduce_fusion",
)  # fmt: skip
"""Arguments that say whether FlashInfer's fused all-reduce goes before the others. Of itself SGLang takes it for some
models on Hopper, and what it shares between ranks no gate knows: without a word of the user's it is off."""
LONGER_CONTEXT = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
"""Has SGLang take the context that it is given. It would refuse what YaRN makes possible (its own rule leaves out the
factor where the original positions are named, https://github.com/sgl-project/sglang/issues/2108);
``raylaunch.model_check`` has compared it with the model's."""
LOADS_BY_SOCKET = {"SGLANG_LOAD_SNAPSHOT_USE_ZMQ": "1"}
"""Has ranks say through a socket how busy they are, and not in memory that only processes of one node share."""
IMPLEMENTATION = "SGLANG_OPT_USE_CUSTOM_ALL_REDUCE_V2"


def server_arguments(
    config: LaunchConfig, nodes: int = 1, node: int = 0, revision: str | None = None
) -> dict[str, Any]:
    """Arguments of SGLang's ``ServerArgs`` by name, plain data, the same on every rank but for ``node``.

    Args:
        nodes: that the ranks are on.
        node: index of this one.
        revision: of a model on the Hub, the one to read; else the configured one.
    """
    model, capture, engine = config.model, config.capture, config.engine
    given: dict[str, Any] = {
        "model_path": model.path,
        "tokenizer_path": model.tokenizer,
        "trust_remote_code": model.trust_remote_code,
        "revision": revision or model.revision,
        "dtype": model.dtype,
        "load_format": model.load_format,
        "tp_size": config.parallel.tensor_parallel_size,
        "nnodes": nodes,
        "node_rank": node,
        "disable_custom_all_reduce": config.communicator.kind == "library",
        "log_level": config.log.level or "info",
        # SGLang's own choice, shared GPU memory, is on the first GPU that the driver sees: Ray has not given it that.
        "mm_feature_transport": "cpu",
    }
    for section, name, argument in SHARED:
        if name in section(config).model_fields_set:
            given[argument] = getattr(section(config), name)
    if given.get("max_total_tokens") == "auto":
        del given["max_total_tokens"]
    if not any(name in engine.sglang.args for name in FUSED):
        given["enforce_disable_flashinfer_allreduce_fusion"] = True
    given |= engine.sglang.args
    if engine.device == "cpu":
        given.setdefault("device", "cpu")
    if not has_tokenizer(model):
        given.setdefault("skip_tokenizer_init", True)
    if not capture.enabled:
        given |= {"disable_prefill_cuda_graph": True, "disable_decode_cuda_graph": True}
    elif "prefill_tokens" in capture.model_fields_set:
        given["cuda_graph_bs_prefill"] = list(capture.prefill_tokens)
    if capture.enabled and "decode_batch_sizes" in capture.model_fields_set:
        given["cuda_graph_bs_decode"] = list(capture.decode_batch_sizes)
    return {name: value for name, value in given.items() if value is not None}


def of_the_server(config: LaunchConfig) -> dict[str, Any]:
    """Arguments of SGLang's that the server goes by, of which no rank is told."""
    serve, args = config.serve, config.engine.sglang.args
    given = {
        "host": serve.host,
        "port": serve.port or 30_000,
        "served_model_name": serve.served_model_name,
        "chat_template": serve.chat_template,
    }
    if serve.chat_template is not None:  # in which SGLang looks for them anew
        given |= {name: "auto" for name in ("reasoning_parser", "tool_call_parser") if args.get(name) == "auto"}
    return {name: value for name, value in given.items() if value is not None}


def implementation(kind: str) -> dict[str, str]:
    """The variable that chooses SGLang's first (``sgl_kernel``) or second (``jit``) all-reduce: no argument does. None
    for other kinds."""
    return {IMPLEMENTATION: "1" if kind == "jit" else "0"} if kind in ("sgl_kernel", "jit") else {}


def metrics_enabled(config: LaunchConfig) -> bool:
    """Whether SGLang is to keep Prometheus metrics."""
    return bool(config.engine.sglang.args.get("enable_metrics"))


def check_sglang(config: LaunchConfig) -> None:
    """Checks what can be known before anything of SGLang is imported.

    Raises:
        ConfigError: SGLang is not installed, what raylaunch hooks in it is not there, an argument is not one of its
            own, or a setting is one that it cannot be run with.
    """
    from raylaunch_actors.preload import has_home

    folder = installed_folder()
    if folder is None:
        raise ConfigError("engine.kind", "sglang", "sglang is not installed here; pip install 'raylaunch[sglang]'")
    version = installed_version()
    if problems := misfit(folder):
        expected = f"raylaunch knows it otherwise: {'; '.join(problems)}; install {TESTED[-1]}, or "
        expected += "set engine.sglang.any_version=true to try this one all the same"
        if not config.engine.sglang.any_version:
            raise ConfigError("engine.kind", f"sglang {version}", expected)
    if problems or version not in TESTED:
        log.warning("this is tried, and may fail: %s", about(version, problems))
    if config.engine.sglang.cache_dir is None and not has_home():
        expected = "must be set where the user has no home: SGLang keeps what it compiles"
        raise ConfigError("engine.sglang.cache_dir", None, expected)
    if "memory_fraction" in config.engine.model_fields_set:
        expected = "is of the memory beside the weights; SGLang's is of all: engine.sglang.args.mem_fraction_static"
        raise ConfigError("engine.memory_fraction", config.engine.memory_fraction, expected)
    for name in ("table_rows", "max_bytes"):
        if name in config.communicator.model_fields_set:
            expected = "is of the engine 'reference'; SGLang sizes its all-reduces itself"
            raise ConfigError(f"communicator.{name}", getattr(config.communicator, name), expected)
    if ":" in (name := config.serve.served_model_name or ""):
        raise ConfigError("serve.served_model_name", name, "must have no colon: SGLang looks for an adapter behind it")
    check_load_format(config, folder)
    known = known_arguments(folder)
    if PIECE_COMPILER not in known and "compiler" in config.capture.model_fields_set:
        expected = f"sglang {version} makes no pieces of a model that could be compiled; leave it out"
        raise ConfigError("capture.compiler", config.capture.compiler, expected)
    for name, value in config.engine.sglang.args.items():
        key = f"engine.sglang.args.{name}"
        if name in OURS:
            raise ConfigError(key, value, f"is set by raylaunch; use {OURS[name]}")
        if name in UNSUPPORTED:
            raise ConfigError(key, value, "is not supported under raylaunch's phases")
        if name in OF_ITS_SERVER:
            raise ConfigError(
                key, value, "is not heeded: it is for SGLang's own launcher and server, whose place raylaunch takes"
            )
        if value == IN_PIECES and PIECE_COMPILER not in known:
            raise ConfigError(key, value, f"sglang {version} has no such backend any more; breakable is in its place")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see sglang.launch_server --help, with _ in place of -"
            raise ConfigError(key, value, f"sglang {version} has no such argument; {hint}")


def check_load_format(config: LaunchConfig, folder: Path) -> None:
    """Whether the SGLang in ``folder`` can load as is asked. Raises :class:`ConfigError`."""
    name, args = config.model.load_format, config.engine.sglang.args
    if name in OF_REFERENCE:
        return
    known = known_load_formats(folder) or tuple(FORMATS)
    if name not in known:
        able = ", ".join(one for one in known if not (one in FORMATS and FORMATS[one].refused))
        raise ConfigError("model.load_format", name, f"sglang {installed_version()} has no such format; it has {able}")
    if name in FORMATS and (why := FORMATS[name].refused):
        raise ConfigError("model.load_format", name, why)
    if name == "remote_instance":  # without these SGLang would read the folder instead
        nccl = args.get(f"{REMOTE}backend", "nccl") == "nccl"
        needed = [f"{REMOTE}{one}" for one in SEED[: 3 if nccl else 2]]
        if missing := [one for one in needed if args.get(one) is None]:
            raise ConfigError("model.load_format", name, f"needs engine.sglang.args.{' and '.join(missing)}")


def misfit(folder: Path) -> list[str]:
    """What raylaunch hooks or calls and SGLang has not, or has with other parameters."""
    from raylaunch_actors.preload import own_cache
    from raylaunch_actors.sglang_engine import hooked as hooked_by_ranks

    hooks = (*hooked.EVERY, *hooked_by_ranks.EVERY)
    mark = own_cache() / "fits" / digest_of(hooks, folder)
    if mark.exists():  # all hooks were found to fit; reading it again takes a second
        return []
    problems = misfits(hooks, folder)
    if not problems:
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    return problems


def about(version: str, problems: list[str]) -> str:
    """What is known of a version of SGLang, in a line."""
    tested = f"raylaunch was run with {' and '.join(TESTED)}"
    if version in TESTED and not problems:
        return f"{version}; {tested}"
    fits = f"{len(problems)} of its hooks do not fit: {problems[0]}" if problems else "all its hooks fit"
    return f"{version}; {tested}, and {fits}"
