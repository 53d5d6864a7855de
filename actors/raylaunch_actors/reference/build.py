"""Builds a transformers model without its weights, and refuses what the engine cannot run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.integrations.moe import _default_apply_gate

from raylaunch.errors import RankFault
from raylaunch.values.json_text import from_json
from raylaunch_actors.reference import interfaces
from raylaunch_actors.reference.installed import why_missing
from raylaunch_actors.reference.supported import is_mixture, why_unsupported

log = logging.getLogger(__name__)


def read_config(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The model's transformers configuration. Raises RankFault if there is none."""
    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # of classes that huggingface_hub and a model's own code make
        raise RankFault(None, f"{path}: no usable model configuration: {_what(error)}") from error


def _what(error: Exception) -> str:
    """Its first paragraph in one line (further ones tell how to install things), and its class where that says more."""
    text = " ".join(str(error).partition("\n\n")[0].split())
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"


def check_supported(config: Any, world_size: int) -> None:
    """Raises RankFault, with what is wrong, if the engine cannot run this model on ``world_size`` ranks."""
    data = config.to_dict()
    own_code = not type(config).__module__.startswith("transformers.")
    if why := why_unsupported(data, world_size) or (None if own_code else why_missing(data, world_size)):
        raise RankFault(None, why)
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads  # transformers' default may not be the driver's
    if heads % world_size or kv_heads % world_size:
        raise RankFault(
            None,
            f"{config.model_type}: {heads} attention heads and {kv_heads} key/value heads must divide by the "
            f"{world_size} ranks; key/value heads are not replicated",
        )


def build(config: Any, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """The model, in evaluation mode, its parameters on the meta device and its buffers real, on the CPU."""
    interfaces.register()
    images = getattr(config, "vision_config", None) is not None
    kind = AutoModelForImageTextToText if images else AutoModelForCausalLM
    # The vision tower keeps PyTorch's own attention: it runs outside the graphs, on whole images.
    attention: Any = {"text_config": interfaces.NAME, "vision_config": "sdpa"} if images else interfaces.NAME
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype}
    if is_mixture(config.get_text_config().to_dict()):
        options["experts_implementation"] = interfaces.NAME
    if trust_remote_code:
        options["trust_remote_code"] = True
    with _parameters_on_meta():
        try:
            model = kind.from_config(config, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever becomes of a setting that nothing has checked
            raise RankFault(None, f"transformers cannot build a {config.model_type} model: {_what(error)}") from error
    model.eval()
    for name, module in decoder(model).named_modules():  # a vision tower has no experts
        if why := _odd_experts(module):
            raise RankFault(None, f"{config.model_type}: {name}: experts {why} are not implemented")
    return model


def decoder(model: Any) -> nn.Module:
    """The part that is compiled, without what makes embeddings of images. Raises RankFault if there is none."""
    base = getattr(model, "model", None)
    if base is None:
        raise RankFault(None, f"{type(model).__name__} has no decoder at .model; its architecture is not supported")
    return base.language_model if hasattr(base, "language_model") else base


def _odd_experts(module: Any) -> str | None:
    """In what these experts differ from those of :func:`.interfaces.experts`; None if in nothing, or if it has none."""
    fused = [one for one in module.parameters(recurse=False) if one.dim() == 3]
    if not hasattr(module, "has_gate"):
        return f"of class {type(module).__name__}" if len(fused) > 1 else None
    odd = {
        "with biases": module.has_bias,
        "with transposed weights": module.is_transposed,
        "with interleaved weights": not getattr(module, "is_concatenated", True),
        "without a gate": not module.has_gate,
        "with norms": getattr(module, "has_post_expert_norm", False),
        "with a gate of their own": type(module)._apply_gate is not _default_apply_gate,
        "with another activation than silu": not _is_silu(getattr(module, "act_fn", None)),
        "that keep transformers' own code": module.config._experts_implementation != interfaces.NAME,
    }
    return next((what for what, holds in odd.items() if holds), None)


def _is_silu(activation: Any) -> bool:
    values = torch.linspace(-4.0, 4.0, 33)
    return activation is not None and torch.equal(activation(values), torch.nn.functional.silu(values))


def eos_token_ids(path: str | Path, config: Any) -> frozenset[int]:
    """Tokens that end an answer: those of ``generation_config.json`` and of ``config.json``, the text model's too."""
    named = [getattr(one, "eos_token_id", None) for one in (config, config.get_text_config())]
    named.append(_generation_config(Path(path)).get("eos_token_id"))
    listed = [one for ids in named for one in (ids if isinstance(ids, list | tuple) else [ids])]
    return frozenset(one for one in listed if isinstance(one, int) and not isinstance(one, bool))


def _generation_config(folder: Path) -> Mapping[str, Any]:
    """The file as it is: transformers' class would refuse settings that are the driver's matter, or nobody's."""
    file = folder / "generation_config.json"
    try:
        data = from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        data = error
    if isinstance(data, Mapping):
        return data
    # Where the driver reads it, it has refused it; engine.sampling_defaults=openai says to leave it unread.
    log.warning("%s holds no mapping, and names no token that ends an answer: %s", file, data)
    return {}


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside take no memory; buffers are real, as rotary frequencies are computed when made.

    ``torch.device("meta")`` would lose the buffers. The patch is undone in every outcome.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
