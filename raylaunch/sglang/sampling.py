"""What is wrong with sampling parameters that are meant for SGLang: plain data in, an error out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from raylaunch.errors import RequestError


def check_parameters(parameters: Mapping[str, Any], kind: type[msgspec.Struct]) -> None:
    """Refuses what SGLang has no name for, and values of another type than ranks can read.

    SGLang checks neither on the driver: an unknown name is a server error there, and a value of a wrong type, such as
    ``max_new_tokens`` of 5.0, ends rank 0 when it decodes the request.

    Args:
        parameters: by SGLang's names.
        kind: SGLang's own class of them.
    Raises:
        RequestError: names the parameter; SGLang's server answers 400, as to any ``ValueError``.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for name in parameters:
        if name not in types:
            close = difflib.get_close_matches(str(name), types, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RequestError(f"SGLang has no sampling parameter {name!r}{hint}")
    failed: TypeError | None = None
    values = parameters
    try:
        made = kind(**parameters)
    except TypeError as error:  # it compares numbers, whatever it was given
        failed = error
    else:
        values = {name: getattr(made, name) for name in parameters}  # as they are sent: null is a default by now
    for name, value in values.items():
        try:
            msgspec.convert(value, types[name])
        except msgspec.ValidationError as error:
            text = str(error)
            raise RequestError(f"sampling parameter {name} = {value!r}: {text[:1].lower() + text[1:]}") from None
    if failed is not None:
        raise RequestError(f"sampling parameters {dict(parameters)!r}: {failed}")
