"""A whole rank, as the launch puts it together, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.graphs.capture import CaptureRunner
from raylaunch_actors.graphs.recorded import RecordedGraphs
from raylaunch_actors.graphs.split import CompiledOnce, PieceBackend
from raylaunch_actors.reference.kv_cache import KVCache
from raylaunch_actors.reference.limits import Limits
from raylaunch_actors.reference.model import load_model
from raylaunch_actors.reference.runner import ModelRunner

from raylaunch.config.context import longest_context
from raylaunch.wire import Output, Sampling, Submit

CPU = torch.device("cpu")


def make_runner(
    path: Path,
    rank: int = 0,
    world_size: int = 1,
    communicator: AllReduce | None = None,
    prefill: tuple[int, ...] = (128, 1032),
    decode: tuple[int, ...] = (2, 8),
    capacity: int = 4096,
    **options: Any,
) -> ModelRunner:
    """A prepared runner, without graphs."""
    loaded = load_model(path, rank, world_size, CPU, **options)
    facts = loaded.facts
    context = longest_context(loaded.model.config.get_text_config().to_dict())
    limits = Limits(prefill, decode, 8, context, capacity, facts.vocab_size, facts.eos_token_ids)
    cache = KVCache(facts.layers, capacity, facts.kv_heads, facts.head_dim, facts.dtype, CPU)
    runner = ModelRunner(loaded, cache, limits, CPU, communicator)
    runner.prepare()
    return runner


def compile_and_capture(runner: ModelRunner, communicator: AllReduce) -> PieceBackend:
    """Traces and captures both rounds; the recorded inputs are pending afterwards."""
    backend = PieceBackend(RecordedGraphs(communicator), runner.fixed_addresses())
    runner.compile(CompiledOnce(runner.loaded.inner, backend))
    capture = CaptureRunner(communicator, runner.dummy, dict.fromkeys(("prefill", "decode"), backend.pieces))
    capture.capture("prefill", runner.limits.prefill_shapes, lambda *_: None)
    capture.capture("decode", runner.limits.decode_shapes, lambda *_: None)
    assert all(all(pieces.values()) for pieces in capture.audit().values())
    return backend


def prompts(*lengths: int, seed: int = 1, vocabulary: int = 1000) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def submits(texts: Sequence[list[int]], sampling: Sampling) -> list[Submit]:
    return [Submit(str(number), prompt, sampling) for number, prompt in enumerate(texts)]


def tokens(outputs: Sequence[Output], name: object) -> list[int]:
    return [token for output in outputs if output.request_id == str(name) for token in output.tokens]


def prompt_scores(path: Path, prompt: list[int]) -> list[float]:
    """Transformers' own log probabilities of a prompt's tokens but the first."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    return [float(logprobs[at, token]) for at, token in enumerate(prompt[1:])]
