"""What is wrong with the other fields of a request that is meant for SGLang: plain data in, an error out."""

from __future__ import annotations

from typing import Any

from raylaunch.errors import RequestError
from raylaunch.sglang.sampling import field_types, refuse_first_unlike, refuse_unknown

ONE_PER_PROMPT = (
    "rid", "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "return_sampling_mask",
    "return_hidden_states", "lora_path", "custom_logit_processor", "extra_key",
)  # fmt: skip
"""Fields that are one value for all prompts, or a list with one for each."""


def check_fields(request: Any, session: type[Any], vocab_size: int) -> None:
    """Refuses fields of the right types that do not fit together: over some SGLang would fail, over others its ranks.

    Args:
        request: a ``GenerateReqInput`` as it came, with sampling parameters that were checked.
        session: SGLang's class of ``session_params``.
        vocab_size: token ids are below it.
    Raises:
        RequestError: names the field; SGLang's server answers 400, as to any ``ValueError``.
    """
    listed = _listed_prompts(request)
    if request.text is None and request.input_ids is not None:
        for ids in request.input_ids if listed else [request.input_ids]:
            _check_ids(ids, vocab_size)
    prompts = 1 if listed is None and _samples(request.sampling_params) > 1 else listed
    for name in ONE_PER_PROMPT:
        value = getattr(request, name)
        if isinstance(value, list) and prompts is None:
            raise RequestError(f"{name} is a list, and the prompt is in none: give one value")
        if isinstance(value, list) and len(value) != prompts:
            raise RequestError(f"{name} has length {len(value)}: it needs {prompts}, one value for each prompt")
    if request.session_params:
        types = field_types(session)
        refuse_unknown("session parameter", request.session_params, types)
        refuse_first_unlike("session parameter", request.session_params, types)


def _listed_prompts(request: Any) -> int | None:
    """How many prompts are in a list; None for one that is in none. As SGLang, which takes the first kind it finds."""
    if request.text is not None:
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
        raise RequestError("the prompt is empty: it needs at least one token")
    return len(prompts) if listed else None


def _check_ids(ids: list[int], vocab_size: int) -> None:
    """SGLang hands any to its ranks: one that the model has not is read from beside its embeddings."""
    if min(ids) >= 0 and max(ids) < vocab_size:
        return
    position, token = next((i, one) for i, one in enumerate(ids) if not 0 <= one < vocab_size)
    raise RequestError(f"token {position} of the prompt is {token}: token ids are integers from 0 to {vocab_size - 1}")


def _samples(parameters: Any) -> int:
    one = next(iter(parameters), {}) if isinstance(parameters, list) else parameters or {}
    return one.get("n") or 1
