"""Checks a configuration against the model's ``config.json``, before any actor starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylaunch.config import LaunchConfig
from raylaunch.config.address import cluster_to_join
from raylaunch.config.context import POSITIONS, longest_context, trained_context
from raylaunch.config.faults import AT_A_GATE, OF_GPUS, OF_GRAPHS, OF_THE_REFERENCE_ENGINE
from raylaunch.errors import ConfigError, RankFault
from raylaunch.model import hub
from raylaunch.model.tokenizer import check_tokenizer
from raylaunch.protocol import RoundPlan
from raylaunch.sglang.arguments import check_sglang

GPU_ONLY = ("sgl_kernel", "symmetric_memory", "jit")


@dataclass(frozen=True)
class ModelShape:
    """What the driver must know of a model.

    Attributes:
        architecture: name of its class, such as ``Qwen3ForCausalLM``.
        max_positions: longest context, in tokens, with what rotary scaling makes of it.
        vocab_size: token ids are below it.
        heads: attention heads.
        kv_heads: key and value heads.
        scaled_from: positions that its configuration names, where rotary scaling makes more of them.
    """

    architecture: str
    max_positions: int
    vocab_size: int
    heads: int
    kv_heads: int
    scaled_from: int | None = None

    def limit(self) -> str:
        """The longest context in words, for messages."""
        if self.scaled_from is not None:
            return f"{self.max_positions}, {self.scaled_from} positions with the model's rotary scaling"
        return f"{self.max_positions}, the model's positions; rotary scaling in its config.json would allow more"


def check_model(config: LaunchConfig) -> ModelShape:
    """Reads the model's shape and checks the launch against it. Raises :class:`ConfigError`."""
    data = {**read_model_config(config), **overridden_by_sglang(config)}
    shape = shape_of(data, config.model.path)
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
    check_device(config, config.engine.device)
    check_context(config, shape)
    check_faults(config)
    check_communicator(config)
    check_ignored(config)
    if sglang:
        check_sglang(config)
    else:
        check_reference(config, data)
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


def with_context(config: LaunchConfig, shape: ModelShape) -> LaunchConfig:
    """The configuration with its context said outright where SGLang would make another one of the rotary scaling."""
    said = config.engine.max_context or config.engine.sglang.args.get("context_length")
    if config.engine.kind != "sglang" or said or shape.scaled_from is None:
        return config
    return config.model_copy(update={"engine": config.engine.model_copy(update={"max_context": shape.max_positions})})


def check_reference(config: LaunchConfig, data: Mapping[str, Any]) -> None:
    """Whether the reference engine runs this model, and has weights to read. Raises :class:`ConfigError`.

    Args:
        data: the model's ``config.json``. What it leaves out is known only where transformers has been imported, which
            takes seconds: ranks ask again before they load.
    """
    from raylaunch_actors.reference.installed import why_missing
    from raylaunch_actors.reference.supported import why_unsupported
    from raylaunch_actors.reference.weight_files import weight_files

    ranks, own_code = config.parallel.tensor_parallel_size, config.model.trust_remote_code
    if why := why_unsupported(data, ranks) or (None if own_code else why_missing(data, ranks)):
        raise ConfigError("model.path", config.model.path, f"{why}; engine.kind=sglang may run it")
    folder = Path(config.model.path).expanduser()
    if config.model.load_format == "auto" and folder.is_dir():
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


def check_communicator(config: LaunchConfig) -> None:
    """Whether engine and device have the all-reduce that is asked for. Raises :class:`ConfigError`."""
    kind, engine, device = config.communicator.kind, config.engine.kind, config.engine.device
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


def check_device(config: LaunchConfig, device: str) -> None:
    """Whether the ``device`` has what is asked of it; ``auto`` is not known yet. Raises :class:`ConfigError`."""
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


def read_model_config(config: LaunchConfig) -> dict[str, Any]:
    """The model's ``config.json``, from its folder or the Hub. Raises :class:`ConfigError`."""
    path = config.model.path
    folder = Path(path)
    if folder.is_absolute():  # else it is a name on the Hub: folders were made absolute when they were read
        if not folder.is_dir():
            raise ConfigError("model.path", path, "no such folder; give a folder with config.json, or a Hub name")
        file = folder / "config.json"
        if not file.is_file():
            raise ConfigError("model.path", path, "the folder has no config.json")
    else:
        file = _from_hub(config)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("model.path", path, f"its config.json cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError("model.path", path, "its config.json must hold a mapping")
    return data


def overridden_by_sglang(config: LaunchConfig) -> dict[str, Any]:
    """What SGLang is told to take in place of what ``config.json`` says. Raises :class:`ConfigError`."""
    name = "json_model_override_args"
    text = config.engine.sglang.args.get(name) if config.engine.kind == "sglang" else None
    try:
        data = {} if text is None else json.loads(text)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"engine.sglang.args.{name}", text, f"must be JSON in a text: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"engine.sglang.args.{name}", text, "must be a JSON object")
    return data


def _from_hub(config: LaunchConfig) -> Path:
    path, revision = config.model.path, config.model.revision
    sglang = config.engine.kind == "sglang"
    here = not cluster_to_join(config.placement.address)  # else the ranks' nodes have caches of their own
    weights = here and not sglang and config.model.load_format == "auto"
    try:
        answer = hub.ask(path, revision)
        folder = hub.snapshot(path, revision, ["config.json"], weights=weights and answer.commit is None)
    except ValueError:
        raise ConfigError("model.path", path, "is neither a folder nor a Hub name such as Qwen/Qwen3-8B") from None
    except hub.HubError as error:
        raise ConfigError("model.path", path, f"no such folder here, and the Hub does not give it: {error}") from None
    if sglang and answer.commit is None:
        hub.go_offline()  # SGLang asks for the files of the model by its name, on the driver and in the ranks
    return folder / "config.json"


def shape_of(data: Mapping[str, Any], path: str) -> ModelShape:
    """The shape in a ``config.json``; a vision-language model keeps it under ``text_config``."""
    inner = data.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, Mapping) else data

    def number(key: str, default: int | None = None) -> int:
        value = next((one[key] for one in (text, data) if one.get(key) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError("model.path", path, f"its config.json has {key} = {value!r}: must be a positive integer")
        return value

    heads = number("num_attention_heads")
    of_text = text if any(text.get(name) is not None for name in POSITIONS) else {**data, **text}
    try:
        trained, longest = trained_context(of_text), longest_context(of_text)
    except ValueError as error:
        raise ConfigError("model.path", path, f"its config.json has {error}") from None
    names = data.get("architectures")
    return ModelShape(
        architecture=str(names[0]) if isinstance(names, list) and names else "unknown",
        max_positions=longest,
        vocab_size=number("vocab_size"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        scaled_from=trained if longest > trained else None,
    )
