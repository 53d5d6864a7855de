"""What is wrong with the other fields of a request that is meant for SGLang: plain data in, an error out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylaunch.errors import RequestError
from raylaunch.sglang.sampling import LARGEST_NUMBER, field_types, refuse_first_unlike, refuse_unknown

ONE_PER_PROMPT = (
    "rid", "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "return_sampling_mask",
    "return_hidden_states", "lora_path", "custom_logit_processor", "extra_key",
)  # fmt: skip
"""Fields that are one value for all prompts, or a list with one for each. Left out are those of servers that only read
prompts or only answer them, such as ``bootstrap_room``: no rank here looks at them."""

NO_TOKENS = "the prompt is empty: it needs at least one token"


@dataclass(frozen=True)
class FieldLimits:
    """What the fields of a request are bounded by.

    Attributes:
        vocab_size: token ids are below it.
        hidden_size: numbers in the embedding of a token.
        no_embeds: why a prompt can be no embeddings; see :func:`embeds_problem`.
        labels: what SGLang's metrics may be told apart by; None if it keeps none.
    """

    vocab_size: int
    hidden_size: int
    no_embeds: str = ""
    labels: frozenset[str] | None = None


def embeds_problem(dtype: str, max_running: int | None, prefix_cache: bool) -> str:
    """Why SGLang, or its ranks, would fail over ``input_embeds``, with all settings that are missing, or "".

    Args:
        dtype: the model's, such as ``bfloat16``: SGLang hands them over in that one.
        max_running: how many requests the ranks answer at once; None if SGLang decides. They fail over embeddings in
            one step with another prompt.
        prefix_cache: whether SGLang looks for the beginnings of prompts, by their tokens.
    """
    right = {
        "model.dtype=bfloat16": dtype == "bfloat16",
        "engine.max_running_requests=1": max_running == 1,
        "engine.sglang.args.disable_radix_cache=true": not prefix_cache,
    }
    missing = [setting for setting, there in right.items() if not there]
    return f"SGLang takes them only from a server that was started with {' and '.join(missing)}" if missing else ""


def check_fields(request: Any, session: type[Any], limits: FieldLimits) -> None:
    """Refuses fields of the right types that do not fit together, or not the model: over some SGLang would fail, over
    others its ranks, and all requests with them.

    Args:
        request: a ``GenerateReqInput`` as it came, with sampling parameters that were checked.
        session: SGLang's class of ``session_params``.
    Raises:
        RequestError: names the field; SGLang's server answers 400, as to any ``ValueError``.
    """
    listed = _listed_prompts(request)
    if request.text is None:
        _check_prompts(request, listed is not None, limits)
    _check_lists(request, 1 if listed is None and _samples(request.sampling_params) > 1 else listed)
    _check_range("top_logprobs_num", request.top_logprobs_num, 0, limits.vocab_size)
    _check_range("logprob_start_len", request.logprob_start_len, -1)  # the ranks know how long the prompt is
    _check_overrides(request.positional_embed_overrides, limits)
    for label in request.custom_labels or ():
        if limits.labels is not None and label not in limits.labels:  # over it SGLang loses all answers of a step
            raise RequestError(f"custom_labels has {label!r}: tokenizer_metrics_allowed_custom_labels has it not")
    if request.lora_id is not None:
        raise RequestError("lora_id is SGLang's own: name an adapter by lora_path")
    if request.session_params:
        types = field_types(session)  # type: ignore[arg-type]  # a class is hashable
        refuse_unknown("session parameter", request.session_params, types)
        refuse_first_unlike("session parameter", request.session_params, types)


def _listed_prompts(request: Any) -> int | None:
    """How many prompts are in a list; None for one that is in none. As SGLang, which takes the first kind it finds."""
    if request.text is not None:
        if request.text == "" and not any((request.image_data, request.video_data, request.audio_data)):
            raise RequestError(NO_TOKENS)  # 0.5.23 would take it
        return len(request.text) if isinstance(request.text, list) else None
    if request.input_ids is not None:
        prompts = request.input_ids
        listed = bool(prompts) and isinstance(prompts[0], list)
        empty = not prompts or (listed and [] in prompts)
    elif request.input_embeds is not None:
        prompts = request.input_embeds  # one prompt is a list of lists here
        empty = not prompts or [] in prompts
        listed = not empty and isinstance(prompts[0][0], list)
    else:
        raise RequestError("there is no prompt: give text, input_ids or input_embeds")
    if empty:
        raise RequestError(NO_TOKENS)
    return len(prompts) if listed else None


def _check_prompts(request: Any, listed: bool, limits: FieldLimits) -> None:
    if request.input_ids is not None:
        for ids in request.input_ids if listed else [request.input_ids]:
            _check_ids(ids, limits.vocab_size)
        return
    if limits.no_embeds:
        raise RequestError(f"input_embeds: {limits.no_embeds}")
    for rows in request.input_embeds if listed else [request.input_embeds]:
        for place, row in enumerate(rows):
            _check_embedding(f"row {place} of input_embeds", row, limits.hidden_size)


def _check_ids(ids: list[int], vocab_size: int) -> None:
    """SGLang hands any to its ranks: one that the model has not is read from beside its embeddings
    (https://github.com/sgl-project/sglang/pull/31908)."""
    if min(ids) >= 0 and max(ids) < vocab_size:
        return
    position, token = next((i, one) for i, one in enumerate(ids) if not 0 <= one < vocab_size)
    raise RequestError(f"token {position} of the prompt is {token}: token ids are integers from 0 to {vocab_size - 1}")


def _check_embedding(what: str, row: Sequence[float], hidden_size: int) -> None:
    if len(row) != hidden_size:
        raise RequestError(f"{what} has length {len(row)}: an embedding of this model has {hidden_size} numbers")
    if not all(abs(number) <= LARGEST_NUMBER for number in row):
        raise RequestError(f"{what} has a number that is not from {-LARGEST_NUMBER} to {LARGEST_NUMBER}")


def _check_lists(request: Any, prompts: int | None) -> None:
    for name in ONE_PER_PROMPT:
        value = getattr(request, name)
        if isinstance(value, list) and prompts is None:
            raise RequestError(f"{name} is a list, and the prompt is in none: give one value")
        if isinstance(value, list):
            _check_length(name, value, prompts)
    tokens = request.token_ids_logprob  # one list for all prompts, or a list of lists
    if prompts is not None and isinstance(tokens, list) and tokens and isinstance(tokens[0], list):
        _check_length("token_ids_logprob", tokens, prompts)


def _check_length(name: str, value: list[Any], prompts: int | None) -> None:
    if len(value) != prompts:
        raise RequestError(f"{name} has length {len(value)}: it needs {prompts}, one value for each prompt")


def _check_range(name: str, given: Any, least: int, greatest: int | None = None) -> None:
    for value in given if isinstance(given, list) else [given]:
        if value is None or (value >= least and (greatest is None or value <= greatest)):
            continue
        most = "" if greatest is None else f" and at most {greatest}"
        raise RequestError(f"{name} = {value}: it must be at least {least}{most}")


def _check_overrides(given: Any, limits: FieldLimits) -> None:
    """SGLang makes them itself, of a request for scores. Over what a client sends in their place the ranks fail."""
    for one in given if isinstance(given, list) else [given]:
        if one is None:
            continue
        if not hasattr(one, "positions"):
            raise RequestError(
                "positional_embed_overrides is SGLang's own: ask /v1/score, with embed_override_token_id"
            )
        for row in one.embeds.tolist():
            _check_embedding("an embedding to put in a token's place", row, limits.hidden_size)


def _samples(parameters: Any) -> int:
    one = next(iter(parameters), {}) if isinstance(parameters, list) else parameters or {}
    return one.get("n") or 1
