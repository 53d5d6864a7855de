"""Our requests in SGLang's words and its answers in ours: plain data in, plain data out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylaunch.errors import RaylaunchError, RequestError, RequestFailed
from raylaunch.frontends.requests import Chunk
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.frontends.text import StopScanner
from raylaunch.tracing.spans import RequestFacts
from raylaunch.values.encodable import problem_of
from raylaunch.wire import FinishReason, TokenLogprob

BAD_REQUEST = 400
NAMED_OTHERWISE = {"sampling_seed": "seed", "no_stop_trim": "stop"}
"""Parameters of SGLang's that are ours by another name."""
REMOTE = ("http://", "https://", "file://", "data:")


def sampling_parameters(params: SamplingParams, preferred: Collection[str] = ()) -> dict[str, Any]:
    """Sampling parameters by SGLang's names.

    Args:
        preferred: those for which SGLang has a value of its own, its argument ``preferred_sampling_params``; what the
            request does not set of them is left to that.

    ``seed`` has an effect only where SGLang's argument ``enable_deterministic_inference`` is set.

    Raises:
        RequestError: ``extra`` has what is asked for by another name, or more than one answer.
    """
    own: dict[str, Any] = {
        "max_new_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k or -1,
        "top_p": params.top_p,
        "sampling_seed": params.seed,
        "stop": list(params.stop) or None,
        "stop_token_ids": list(params.stop_token_ids) or None,
        "ignore_eos": params.ignore_eos,
        # A stream shows the beginning of a stop string before its end is there: so it is cut here.
        "no_stop_trim": bool(params.stop),
    }
    if params.logit_bias:
        own["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    if params.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs are of the engine 'reference'; SGLang's are those of its /generate")
    for name in params.extra:
        if name in own:
            raise RequestError(f"extra: {name!r} is set by {NAMED_OTHERWISE.get(name, name)!r}, outside of extra")
        if name == "n":
            raise RequestError("extra: 'n': a request has one answer; ask as often as answers are wanted")
    unsaid = {NAMED_OTHERWISE.get(name, name) for name in preferred} - params.model_fields_set
    return {name: value for name, value in own.items() if NAMED_OTHERWISE.get(name, name) not in unsaid} | params.extra


def logprob_arguments(params: SamplingParams) -> dict[str, Any]:
    """Arguments of SGLang's request that ask for log probabilities of the new tokens, if they were asked for."""
    if params.logprobs is None:
        return {}
    return {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": params.logprobs}


def image_data(images: Sequence[Any]) -> tuple[Any, ...]:
    """Images as SGLang loads them: URLs and data URIs as they are, files as their bytes.

    Raises:
        RequestError: a file cannot be read, or something is no image.
    """
    if isinstance(images, str | bytes):
        raise RequestError("images must be a list, also of one image")
    return tuple(_image(image, place) for place, image in enumerate(images))


def _image(image: Any, place: int) -> Any:
    if isinstance(image, bytes) or (isinstance(image, str) and image.lower().startswith(REMOTE)):
        if problem := problem_of(image):
            raise RequestError(f"image {place} cannot be encoded: {problem}")
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return Path(os.path.expanduser(image)).read_bytes()
        except (OSError, ValueError) as error:
            raise RequestError(f"image {place} cannot be read: {error}") from None
    if hasattr(image, "convert") and hasattr(image, "size"):  # Pillow's, which need not be installed
        return image
    kinds = "a path, a URL, a data URI, bytes, or an image of Pillow"
    raise RequestError(f"image {place} is a {type(image).__name__}: it must be {kinds}")


class StreamedAnswer:
    """One request's answer: what SGLang streams, which repeats all that came before, cut into chunks.

    Args:
        incremental: SGLang's argument ``incremental_streaming_output`` is set: nothing is repeated.
    """

    def __init__(self, request_id: str, params: SamplingParams, *, incremental: bool = False) -> None:
        self.request_id = request_id
        self.prompt_tokens = 0
        self._params, self._incremental = params, incremental
        self._scanner = StopScanner(params.stop)
        self._text = self._tokens = self._logprobs = 0

    def receive(self, output: Mapping[str, Any]) -> Chunk | RaylaunchError | None:
        """What an output adds; an error ends the request; None if it adds nothing."""
        meta = output["meta_info"]
        self.prompt_tokens = meta.get("prompt_tokens", self.prompt_tokens)
        reason = meta.get("finish_reason")
        failure = failure_of(self.request_id, reason)
        if failure is not None:
            return failure
        finish = finish_of(reason)
        ids, text = self._new(output.get("output_ids") or (), output.get("text") or "")
        matched = reason.get("matched") if reason else None
        if isinstance(matched, int) and ids and ids[-1] == matched:
            ids = ids[:-1]  # the token that ended it is no part of the answer
        text = self._scanner.push(text)
        if finish:
            held = self._scanner.flush()
            # SGLang finds stop strings in special tokens, which its text leaves out: the rest of one is no text either.
            text += "" if isinstance(matched, str) and matched.startswith(held) else held
            if self._scanner.stopped:  # SGLang looks at the length first, and both may be reached by one token
                finish, matched = "stop", self._scanner.matched
        logprobs = self._new_logprobs(meta, len(ids)) if self._params.logprobs is not None else None
        if not (text or ids or finish):
            return None
        return Chunk(self.request_id, text, tuple(ids), finish, logprobs, matched if finish == "stop" else None)

    def _new(self, ids: Sequence[int], text: str) -> tuple[list[int], str]:
        if self._incremental:
            return list(ids), text
        new_ids, new_text = list(ids[self._tokens :]), text[self._text :]
        self._tokens, self._text = self._tokens + len(new_ids), self._text + len(new_text)
        return new_ids, new_text

    def _new_logprobs(self, meta: Mapping[str, Any], count: int) -> tuple[TokenLogprob, ...]:
        values = meta.get("output_token_logprobs") or []
        tops = meta.get("output_top_logprobs") or []
        start = 0 if self._incremental else self._logprobs
        self._logprobs += count
        return tuple(
            TokenLogprob(token, value, [(one, log) for log, one, *_ in (tops[at] or ())] if at < len(tops) else [])
            for at, (value, token, *_) in enumerate(values[start : start + count], start)
        )


def finish_of(reason: Mapping[str, Any] | None) -> FinishReason | None:
    """How a request ended, in our words; None if it goes on."""
    if not reason:
        return None
    kind = reason.get("type")
    return kind if kind in ("stop", "length") else "abort"


def failure_of(request_id: str, reason: Mapping[str, Any] | None) -> RaylaunchError | None:
    """The error of a request that SGLang gave up; None if it goes on, has ended well, or was aborted by its caller."""
    if not reason or reason.get("type") != "abort" or reason.get("status_code") is None:
        return None
    message = str(reason.get("message") or "given up by SGLang")
    if reason["status_code"] == BAD_REQUEST:
        return RequestError(message)
    return RequestFailed(f"request {request_id}: {message}")


def note(facts: RequestFacts, outputs: Any, *, first_token: bool) -> None:
    """Notes what SGLang has put out for the span of a request: of one prompt, or a list for several."""
    for output in outputs if isinstance(outputs, list) else [outputs]:
        meta = output.get("meta_info") or {}
        facts.output(
            meta.get("id"), meta.get("prompt_tokens", 0), meta.get("completion_tokens", 0), first_token=first_token
        )
        if reason := meta.get("finish_reason"):
            facts.reasons.append(reason["type"])
