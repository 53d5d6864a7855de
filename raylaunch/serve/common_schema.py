"""Types of request fields that SGLang's and OpenAI's interfaces share, and the refusal of what is not supported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from raylaunch.serve.errors import shown, wrong

MAX_STOPS = 64
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=1 << 31, description="-1 or 0: among all tokens")]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)]
Integers = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=1024)]


def chosen(
    defaults: Mapping[str, Any], temperature: float | None, top_p: float | None, top_k: int | None
) -> dict[str, Any]:
    """How tokens are chosen: as the request says; where that says nothing as the model's ``defaults`` say, or OpenAI's
    and SGLang's."""
    given = {"temperature": temperature, "top_p": top_p, "top_k": None if top_k is None else max(top_k, 0)}
    said = {name: value for name, value in given.items() if value is not None}
    return {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **defaults, **said}


def refuse_unsupported(extra: Mapping[str, Any] | None, table: Mapping[str, tuple[Any, ...]], prefix: str = "") -> None:
    """Refuses fields that this server knows and cannot honour, unless their value changes nothing.

    Args:
        extra: the request's fields beyond its model's.
        table: such fields, and the values that change nothing; null always does.
    Raises:
        ApiError: 400.
    """
    for key, value in (extra or {}).items():
        if value is None or key not in table or any(type(value) is type(one) and value == one for one in table[key]):
            continue
        found = f" = {shown(value)}" if isinstance(value, str | int | float) else ""
        raise wrong(f"{prefix}{key}{found} is not supported by this server; leave it out", prefix + key, "unsupported")
