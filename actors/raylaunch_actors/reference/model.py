"""From a model's folder to a rank's part of it, ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from raylaunch.config.context import rope_scaling
from raylaunch.errors import RankFault
from raylaunch_actors.reference import build, weights
from raylaunch_actors.reference.checkpoint import Checkpoint
from raylaunch_actors.reference.logits import LogitRule, logit_rule
from raylaunch_actors.reference.supported import is_mixture
from raylaunch_actors.reference.tensor_parallel import TensorParallelPlan, insert_all_reduces, with_norms_of_heads
from raylaunch_actors.reference.weight_files import weight_files

ReferenceLoadFormat = Literal["safetensors", "dummy"]
RUNS_IN = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ModelFacts:
    """What the rest of the engine has to know of a model.

    Attributes:
        model_type: as in its configuration.
        layers: decoder layers, each with attention.
        heads, kv_heads: on this rank.
        head_dim: elements a head.
        hidden_size: elements of a hidden state.
        working_width: elements that one token needs at the same time inside a layer, at most, on this rank.
        vocab_size: rows of the (whole) head.
        eos_token_ids: tokens that end an answer.
        dtype: of weights and activations.
        uses_embeds: the decoder takes embeddings, not token ids: those of images go between them.
        position_axes: positions of a token: 3 (time, height, width) with multimodal rotary embeddings, else 1.
        lm_head_sharded: each rank has a part of the vocabulary, so logits are a collective.
    """

    model_type: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    working_width: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    dtype: torch.dtype
    uses_embeds: bool
    position_axes: int
    lm_head_sharded: bool


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        tensors: tensors of the checkpoint that were read (dummy: parameters made).
        bytes_read: from the checkpoint, by this rank.
        parameter_bytes: of this rank's parameters, on the device.
        unused: tensors of the checkpoint that the model has no place for.
        all_reduces: sums over the ranks in one forward pass.
    """

    tensors: int
    bytes_read: int
    parameter_bytes: int
    unused: tuple[str, ...]
    all_reduces: int


@dataclass(frozen=True)
class LoadedModel:
    """A rank's model.

    Attributes:
        model: the whole transformers model.
        inner: its decoder, the part that is compiled: ids or embeddings in, hidden states out.
        embed: token ids -> embeddings.
        lm_head: hidden states -> logits (of this rank's part of the vocabulary, if sharded).
        logit_rule: what the model does to logits behind its head, element by element.
    """

    model: nn.Module
    inner: nn.Module
    embed: nn.Module
    lm_head: nn.Linear
    logit_rule: LogitRule
    facts: ModelFacts
    report: LoadReport


def load_model(
    path: str | Path,
    rank: int,
    world_size: int,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    group: str = "tp",
    load_format: ReferenceLoadFormat = "safetensors",
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> LoadedModel:
    """Builds the model in ``path`` and loads this rank's part of its weights.

    Args:
        path: folder with ``config.json`` and, unless the weights are dummies, a safetensors checkpoint.
        rank: in the tensor-parallel group of ``world_size`` ranks.
        device: where the parameters go.
        dtype: of weights and activations; None: the configuration's own, or the weights' if it names none.
        group: name under which the rank's communicator is bound to ``raylaunch::all_reduce``.
        load_format: ``dummy`` makes seeded weights and reads nothing but the configuration.
        seed: of dummy weights.
        trust_remote_code: run model code that comes with the checkpoint.
        progress: called with each parameter's name before it is filled.

    Raises:
        RankFault: the model is not supported, the checkpoint does not fit it or is damaged.
    """
    config = build.read_config(path, trust_remote_code=trust_remote_code)
    build.check_supported(config, world_size)
    checkpoint = None if load_format == "dummy" else _open(Path(path))
    dtype = dtype or own_dtype(config, checkpoint)
    model = build.build(config, dtype, trust_remote_code=trust_remote_code)
    inner, head = build.decoder(model), _head(model)
    shard = weights.Shard(rank, world_size, dtype, device)
    unused: tuple[str, ...] = ()
    if checkpoint is None:
        plan = _plan(model, world_size)
        tensors = weights.fill_dummy(model, plan, shard, seed, progress)
    else:
        try:
            contents = weights.understand(model, checkpoint, dtype)
            plan = _plan(model, world_size)  # once it is known what is tied
            tensors = weights.fill_from_checkpoint(model, plan, contents, shard, progress)
        finally:
            checkpoint.close()
        unused = contents.unused
    weights.tie(model)
    model.to(device)  # the buffers; the parameters are there
    rule = logit_rule(model, head)
    all_reduces = insert_all_reduces(model, plan, group) if world_size > 1 else 0
    size = sum(parameter.nbytes for parameter in model.parameters())
    report = LoadReport(tensors, checkpoint.bytes_read if checkpoint else 0, size, unused, all_reduces)
    sharded = world_size > 1 and plan.parameter_style("lm_head.weight") is not None
    facts = _facts(path, model, world_size, world_size if _divides_heads(model, plan) else 1, dtype, sharded)
    return LoadedModel(model, inner, model.get_input_embeddings(), head, rule, facts, report)


def _open(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint(weight_files(folder))
    checkpoint.open()
    return checkpoint


def own_dtype(config: Any, checkpoint: Checkpoint | None) -> torch.dtype:
    """What ``auto`` means, as transformers has it: the configuration's dtype, else the index's or the weights' own.

    Raises RankFault if the engine does not run in it.
    """
    dtype = getattr(config, "dtype", None)
    if dtype is None and checkpoint is not None:
        dtype = checkpoint.own_dtype()
    if dtype is None:
        dtype = getattr(config.get_text_config(), "dtype", None) or torch.float32
    if dtype not in RUNS_IN:
        raise RankFault(None, f"the model is of dtype {dtype}: set model.dtype to float32, bfloat16 or float16")
    return dtype


def _plan(model: Any, world_size: int) -> TensorParallelPlan:
    plan = TensorParallelPlan(_styles(model, world_size))
    plan.check()
    return plan


def _styles(model: Any, world_size: int) -> dict[str, str]:
    # Some versions keep the head's entry on the class only, some copy it to the instance.
    styles = {**(getattr(type(model), "_tp_plan", None) or {}), **(getattr(model, "_tp_plan", None) or {})}
    # Outputs that would be gathered at once, and inputs divided again, are computed as a whole by every rank.
    for name, style in styles.items():
        if name != "lm_head" and style in ("colwise_gather_output", "rowwise_split_input"):
            styles[name] = "replicate"
    styles = with_norms_of_heads(styles, {name: tuple(one.shape) for name, one in model.named_parameters()})
    head = _head(model)
    tied = weights.tied_names(model)
    if "lm_head.weight" in tied or "lm_head.weight" in tied.values() or head.weight.shape[0] % world_size:
        styles.pop("lm_head", None)  # a tied head is the embedding, which every rank holds
    return styles


def _head(model: Any) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise RankFault(None, f"{type(model).__name__} has no linear head; it is no language model")
    return head


def _divides_heads(model: Any, plan: TensorParallelPlan) -> bool:
    """Whether the ranks share the heads of a layer; else the plan lets every rank compute all of them.

    Raises RankFault if they share those of the queries, and not those of the keys.
    """
    found = {
        leaf: plan.parameter_style(f"{name}.weight") == "colwise"
        for name, module in model.named_modules()
        if (leaf := name.rpartition(".")[2]) in ("q_proj", "k_proj", "v_proj") and isinstance(module, nn.Linear)
    }
    if len(set(found.values())) > 1:
        names = " and ".join(sorted(name for name, divided in found.items() if divided))
        raise RankFault(None, f"{type(model).__name__}: a plan that divides {names} alone is not implemented")
    return any(found.values())


def _facts(
    path: str | Path, model: Any, world_size: int, attention_ranks: int, dtype: torch.dtype, lm_head_sharded: bool
) -> ModelFacts:
    text = model.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelFacts(
        model_type=model.config.model_type,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads // attention_ranks,
        kv_heads=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) // attention_ranks,
        head_dim=head_dim,
        hidden_size=text.hidden_size,
        working_width=_working_width(text, world_size),
        vocab_size=text.vocab_size,
        eos_token_ids=build.eos_token_ids(path, model.config),
        dtype=dtype,
        uses_embeds=hasattr(model.model, "language_model"),
        position_axes=_position_axes(text),
        lm_head_sharded=lm_head_sharded,
    )


def _position_axes(text: Any) -> int:
    sections = [rope["mrope_section"] for rope in rope_scaling(text.to_dict()) if rope.get("mrope_section")]
    return len(sections[0]) if sections else 1


def _working_width(text: Any, world_size: int) -> int:
    """Residual, normed and reduced hidden states and one spare, beside gate, up and their product."""
    widest = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    inner = 3 * widest // world_size
    if is_mixture(text.to_dict()):  # every chosen expert has its own copies, and its hidden states in and out
        own = getattr(text, "moe_intermediate_size", None) or widest
        inner = max(inner, text.num_experts_per_tok * (2 * text.hidden_size + 3 * own // world_size))
    return int(4 * text.hidden_size + inner)
