"""Checks a configuration against the model's ``config.json``, before any actor starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylaunch.config import LaunchConfig
from raylaunch.config.address import cluster_to_join
from raylaunch.config.faults import AT_A_GATE, OF_GPUS, OF_GRAPHS, OF_THE_REFERENCE_ENGINE
from raylaunch.errors import ConfigError, RankFault
from raylaunch.model.load_formats import KEPT, OF_REFERENCE, problem_with, weights_of
from raylaunch.model.shape import ModelShape, overridden_by_sglang, read_model_config, shape_of, with_context
from raylaunch.model.tokenizer import check_tokenizer
from raylaunch.protocol import RoundPlan
from raylaunch.resolved import ResolvedLaunch, launch_of, request_for
from raylaunch.sglang.arguments import check_sglang
from raylaunch.startup.preflight import preflight

GPU_ONLY = ("sgl_kernel", "symmetric_memory", "jit")


def resolve(config: LaunchConfig) -> ResolvedLaunch:
    """What is decided before anything starts: checks where the launch starts from, and the configuration against the
    model. Raises :class:`ConfigError`."""
    preflight(config)
    shape = check_model(config)
    return launch_of(with_context(config, shape), shape)


def on_device(resolved: ResolvedLaunch, device: str) -> ResolvedLaunch:
    """The launch on the ``device`` that it will have. Raises :class:`ConfigError` if that cannot do what is asked."""
    check_device(resolved.config, device)
    return replace(resolved, device=device, request=request_for(resolved.config, device))


def check_model(config: LaunchConfig) -> ModelShape:
    """Reads the model's shape and checks the launch against it. Raises :class:`ConfigError`."""
    own, commit = read_model_config(config)
    data = {**own, **overridden_by_sglang(config)}
    shape = shape_of(data, config.model.path, commit)
    sglang = config.engine.kind == "sglang"
    world = config.parallel.tensor_parallel_size
    check_heads(shape, world, repeats_kv=sglang)
    longest = max(config.capture.prefill_tokens)
    # Without shapes of the user's SGLang takes its own.
    if longest > shape.max_positions and (not sglang or "prefill_tokens" in config.capture.model_fields_set):
        raise ConfigError(
            "capture.prefill_tokens",
            list(config.capture.prefill_tokens),
            f"{longest} is beyond the longest context: {shape.limit()}",
        )
    if not sglang:
        check_padding(config)
        if not (shape.layers and shape.hidden_size):
            expected = "its config.json does not say num_hidden_layers or hidden_size"
            raise ConfigError("model.path", config.model.path, expected)
    check_device(config, config.engine.device)
    check_context(config, shape)
    check_faults(config)
    check_ignored(config)
    if sglang:
        check_sglang(config)
    else:
        check_reference(config, data)
    check_weights(config)
    if not config.engine.sglang.args.get("skip_tokenizer_init"):
        check_tokenizer(config.model)
    return shape


def check_context(config: LaunchConfig, shape: ModelShape) -> None:
    """Whether the model has the context that is asked for. Raises :class:`ConfigError`."""
    asked = {"engine.max_context": config.engine.max_context}
    if config.engine.kind == "sglang":
        asked["engine.sglang.args.context_length"] = config.engine.sglang.args.get("context_length")
    for key, context in asked.items():
        if isinstance(context, int) and context > shape.max_positions:
            raise ConfigError(key, context, f"is beyond the longest context: {shape.limit()}")


def check_weights(config: LaunchConfig) -> None:
    """Whether weights can be kept, and loaded where the ranks will be on this machine: nodes of a cluster are asked
    before their ranks begin. Raises :class:`ConfigError`."""
    name = config.model.load_format
    if config.recovery.keep_weights and name not in KEPT:
        expected = f"has no files that can be kept with model.load_format = {name}; there are with {', '.join(KEPT)}"
        raise ConfigError("recovery.keep_weights", True, expected)
    weights = weights_of(config, range(config.parallel.tensor_parallel_size))
    here = name not in OF_REFERENCE and not cluster_to_join(config.placement.address)
    if here and (problem := problem_with(weights, fetched=False)):
        raise ConfigError("model.load_format", name, problem)


def check_reference(config: LaunchConfig, data: Mapping[str, Any]) -> None:
    """Whether the reference engine runs this model, and has weights to read. Raises :class:`ConfigError`.

    Args:
        data: the model's ``config.json``. What it leaves out is known only where transformers has been imported, which
            takes seconds: ranks ask again before they load.
    """
    if config.model.load_format not in OF_REFERENCE:
        expected = f"the engine 'reference' has {', '.join(OF_REFERENCE)}; engine.kind=sglang has more"
        raise ConfigError("model.load_format", config.model.load_format, expected)
    from raylaunch_actors.reference.installed import why_missing
    from raylaunch_actors.reference.supported import why_unsupported
    from raylaunch_actors.reference.weight_files import weight_files

    ranks, own_code = config.parallel.tensor_parallel_size, config.model.trust_remote_code
    if why := why_unsupported(data, ranks) or (None if own_code else why_missing(data, ranks)):
        raise ConfigError("model.path", config.model.path, f"{why}; engine.kind=sglang may run it")
    folder = Path(config.model.path).expanduser()
    if config.model.load_format != "dummy" and folder.is_dir():
        try:
            weight_files(folder, data)
        except RankFault as error:
            raise ConfigError("model.path", config.model.path, error.message.removeprefix(f"{folder} ")) from None


def check_padding(config: LaunchConfig) -> None:
    """Whether the reference engine can run every shape. Raises :class:`ConfigError`."""
    for key in ("prefill_tokens", "decode_batch_sizes"):
        shapes = getattr(config.capture, key)
        if min(shapes) < 2:
            expected = "every shape must be at least 2: a model compiled for one row is another than for many"
            raise ConfigError(f"capture.{key}", list(shapes), expected)


def check_heads(shape: ModelShape, world: int, *, repeats_kv: bool) -> None:
    """Whether a group of ``world`` ranks can divide the heads. Raises :class:`ConfigError`.

    Args:
        repeats_kv: the engine gives several ranks the same key and value head where there are more ranks than those.
    """

    def able(ranks: int) -> bool:
        kv = shape.kv_heads % ranks == 0 or (repeats_kv and ranks % shape.kv_heads == 0)
        return shape.heads % ranks == 0 and kv

    if not able(world):
        name, heads = ("num_attention_heads", shape.heads)
        if heads % world == 0:
            name, heads = ("num_key_value_heads", shape.kv_heads)
        sizes = ", ".join(str(ranks) for ranks in range(1, shape.heads + 1) if able(ranks))
        text = f"must divide the model's {name} = {heads}; this model can be launched with {sizes}"
        raise ConfigError("parallel.tensor_parallel_size", world, text)


def check_communicator(config: LaunchConfig, device: str) -> None:
    """Whether engine and device have the all-reduce that is asked for. Raises :class:`ConfigError`."""
    kind, engine = config.communicator.kind, config.engine.kind
    if engine == "reference" and kind == "jit":
        raise ConfigError("communicator.kind", kind, "only the engine 'sglang' has it; on GPUs, custom is sgl_kernel")
    if engine == "sglang" and kind == "symmetric_memory":
        raise ConfigError("communicator.kind", kind, "SGLang's is engine.sglang.args.enable_torch_symm_mem=true")
    if device == "cpu" and kind in GPU_ONLY:
        raise ConfigError("communicator.kind", kind, "needs GPUs; on CPUs there are custom, library and auto")


def check_ignored(config: LaunchConfig) -> None:
    """Whether all that is set would be heeded. Raises :class:`ConfigError`."""
    args = config.engine.sglang.args
    if args and config.engine.kind == "reference":
        expected = "are for the engine 'sglang': set engine.kind=sglang, or leave them out"
        raise ConfigError("engine.sglang.args", args, expected)
    nodes, placement = config.parallel.nodes, config.placement
    if nodes > 1 and placement.strategy == "STRICT_PACK":
        expected = f"packs all ranks on one node, and parallel.nodes is {nodes}: must be auto, which spreads them"
        raise ConfigError("placement.strategy", placement.strategy, expected)
    if config.parallel.routing == "prefix" and config.parallel.replicas == 1:
        expected = "chooses between replicas: set parallel.replicas above 1, or leave it out"
        raise ConfigError("parallel.routing", "prefix", expected)


def check_device(config: LaunchConfig, device: str) -> None:
    """Whether the ``device`` has what is asked of it; ``auto`` is not known yet. Raises :class:`ConfigError`."""
    check_communicator(config, device)
    if device != "cpu":
        return
    if config.capture.enabled and config.capture.compiler != "eager":
        expected = "needs GPUs: a CPU's graphs replay operation by operation and cannot see into compiled kernels"
        raise ConfigError("capture.compiler", config.capture.compiler, expected)
    if config.debug == "cuda":
        expected = "needs GPUs, and the ranks are on CPUs: must be off"
        raise ConfigError("debug", config.debug, expected)
    for number, fault in enumerate(config.faults):
        if fault.action in OF_GPUS:
            raise ConfigError(f"faults.{number}.action", fault.action, "is a fault of GPUs, and the ranks are on CPUs")


def check_faults(config: LaunchConfig) -> None:
    """Whether every fault can happen in this launch. Raises :class:`ConfigError`."""
    world, capture, sglang = config.parallel.tensor_parallel_size, config.capture, config.engine.kind == "sglang"
    for number, fault in enumerate(config.faults):
        action, at = (f"faults.{number}.action", fault.action), (f"faults.{number}.at", fault.at)
        phase, round_name, shape, iteration = [*fault.at.split(), "", "", ""][:4]
        if fault.rank >= world:
            raise ConfigError("faults", fault.rank, f"there are only ranks 0 to {world - 1}")
        if sglang and fault.action in OF_THE_REFERENCE_ENGINE:
            raise ConfigError(*action, "is a fault of the engine 'reference', and engine.kind is sglang")
        if not capture.enabled and fault.action in OF_GRAPHS:
            raise ConfigError(*action, "is a fault of graphs: needs capture.enabled=true")
        if not capture.enabled and fault.action in AT_A_GATE and phase in ("capture", "register"):
            raise ConfigError(*at, "needs capture.enabled=true; without, there are connect, load, warmup and verify")
        if sglang:  # its ranks settle shapes and iterations themselves
            if fault.action == "warm_again" and round_name:
                raise ConfigError(*at, "warm_again happens in every shape of the engine 'sglang': leave at out")
            if fault.action == "extra_all_reduce" and round_name and not shape:
                raise ConfigError(*at, "the engine 'sglang' needs the shape too, such as capture prefill 128")
            continue
        shapes = capture.decode_batch_sizes if round_name == "decode" else capture.prefill_tokens
        if shape and int(shape) not in shapes:
            raise ConfigError(*at, f"{round_name} is captured for {', '.join(map(str, shapes))}")
        if iteration and int(iteration) > RoundPlan.iterations:
            raise ConfigError(*at, f"a shape has {RoundPlan.iterations} iterations")
