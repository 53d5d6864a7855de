"""What is wrong with sampling parameters that are meant for SGLang: plain data in, an error out."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from raylaunch.errors import RequestError

LARGEST_NUMBER = 1e30
"""Of what is added to a model's numbers: divided by any temperature it is still finite in 32 bits."""
BOUNDS: Mapping[str, tuple[float, float]] = {
    "n": (1, 4096),  # SGLang makes as many requests at once
    "top_k": (-1, (1 << 31) - 1),  # a tensor of 32 bits on the ranks
    "sampling_seed": (-(1 << 63), (1 << 63) - 1),
    "repetition_penalty": (1e-6, 2.0),  # the ranks divide by it: no probability is left where that is infinite
}
"""Least and greatest of what SGLang does not bound, or not enough."""
INTERNAL = ("stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized")
"""Fields of SGLang's class that it fills itself: from a request they are dropped, or have it fill none."""


def check_parameters(
    parameters: Mapping[str, Any], kind: type[Any], tokenizer: Any, vocab_size: int, *, seeded: bool = True
) -> None:
    """Refuses what SGLang refuses, and what it would fail over: of its own it catches neither names that it does not
    know nor values that it cannot compare or count, and over a ``json_schema`` that is no text, a stop token that the
    model has not or a number out of its tensors' range the ranks end.

    Args:
        parameters: by SGLang's names.
        kind: SGLang's own class of them, whose fields say what they may be.
        tokenizer: the model's, or None.
        vocab_size: token ids are below it.
        seeded: the ranks draw by a request's seed. Without ``enable_deterministic_inference`` they look at none.
    Raises:
        RequestError: names the parameter; SGLang's server answers 400, as to any ``ValueError``.
    """
    types = field_types(kind)  # type: ignore[arg-type]  # a class is hashable
    refuse_unknown(
        "sampling parameter", parameters, {name: kind for name, kind in types.items() if name not in INTERNAL}
    )
    try:
        made = kind(**parameters)
        values = {name: getattr(made, name) for name in parameters}  # null is a default by now
        made.normalize(tokenizer)
        made.verify(vocab_size)
    except re.error as error:
        raise RequestError(f"sampling parameter stop_regex = {parameters.get('stop_regex')!r}: {error}") from None
    except ValueError as error:
        raise RequestError(str(error)) from None
    except TypeError as error:
        refuse_first_unlike("sampling parameter", parameters, types)
        raise RequestError(f"sampling parameters {dict(parameters)!r}: {error}") from None
    refuse_first_unlike("sampling parameter", values, types)
    _check_bounds(values, vocab_size)
    if not seeded and values.get("sampling_seed") is not None and made.top_k != 1:  # 1: nothing is drawn
        missing = "engine.sglang.args.enable_deterministic_inference=true"
        raise RequestError(f"sampling_seed: tokens are drawn by a seed only where {missing} is set; leave the seed out")


def _check_bounds(values: Mapping[str, Any], vocab_size: int) -> None:
    for name, (least, greatest) in BOUNDS.items():
        if values.get(name) is not None:
            _check_number(name, values[name], least, greatest)
    for token in values.get("stop_token_ids") or ():
        _check_number("stop_token_ids: token", token, 0, vocab_size - 1)
    for token, bias in (values.get("logit_bias") or {}).items():
        _check_number(f"logit_bias: bias of token {token}", bias, -LARGEST_NUMBER, LARGEST_NUMBER)


def _check_number(what: str, number: float, least: float, greatest: float) -> None:
    if not least <= number <= greatest:
        raise RequestError(f"sampling parameter {what} = {number!r}: it must be from {least} to {greatest}")


@functools.cache  # asked for every request
def field_types(kind: type[Any]) -> Mapping[str, Any]:
    """What the fields of one of SGLang's classes may be."""
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def refuse_unknown(what: str, names: Iterable[str], types: Mapping[str, Any]) -> None:
    """Raises :class:`RequestError` for the first name that no field has. ``what`` is what the names are of."""
    for name in names:
        if name not in types:
            close = difflib.get_close_matches(str(name), types, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RequestError(f"SGLang has no {what} {name!r}{hint}")


def refuse_first_unlike(what: str, values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raises :class:`RequestError` for the first value that its field cannot be."""
    for name, value in values.items():
        try:
            # As SGLang does: 5.0 is 5, and a text is no number.
            msgspec.convert(value, types[name], strict=not isinstance(value, int | float))
        except msgspec.ValidationError as error:
            text = str(error)
            raise RequestError(f"{what} {name} = {value!r}: {text[:1].lower() + text[1:]}") from None
