"""How long a model's context is, told from its ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "model_max_length",
)  # fmt: skip
"""What models call the number of their positions."""
SCALED = ("yarn", "deepseek_yarn", "linear", "dynamic")
"""Types of rotary scaling that make the context ``factor`` times as long as what the model was trained with. Of the
other types (``llama3``, ``longrope``, ``mrope``, ``proportional``) the positions are those after scaling."""
NEEDS_FACTOR = ("linear", "dynamic")
ORIGINAL = "original_max_position_embeddings"


def rope_scaling(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rotary parameters of a model's text part: one set for all layers, or one for each type of layer.

    Raises:
        ValueError: they are no mapping.
    """
    name = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
    given = text.get(name) or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} = {given!r}: must be a mapping")
    if any(isinstance(one, Mapping) for one in given.values()):
        return [{**one, "by_layer": True} for one in given.values() if isinstance(one, Mapping)]
    return [given]


def trained_context(text: Mapping[str, Any]) -> int:
    """Positions that the configuration names: of several names the least counts.

    Raises:
        ValueError: there are none, or ``max_position_embeddings`` is no positive integer.
    """
    first = text.get(POSITIONS[0])
    given = [text[name] for name in POSITIONS if _is_size(text.get(name))]
    if not given or (first is not None and not _is_size(first)):
        raise ValueError(f"{POSITIONS[0]} = {first!r}: must be a positive integer")
    return int(min(given))


def longest_context(text: Mapping[str, Any]) -> int:
    """The longest context of a model, in tokens: its positions, or what rotary scaling makes of them.

    YaRN, linear and dynamic scaling by a factor are switched on in many models by their users, who leave
    ``max_position_embeddings`` at what the model was trained with; where it says more than that already, it counts.

    Args:
        text: the ``config.json``, or its ``text_config``.
    Raises:
        ValueError: positions or scaling that no model can have.
    """
    positions = trained_context(text)
    return max([positions, *(_scaled(one, text, positions) for one in rope_scaling(text))])


def _scaled(rope: Mapping[str, Any], text: Mapping[str, Any], positions: int) -> int:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str):
        raise ValueError(f"rope_type = {kind!r}: must be a name, such as yarn")
    original = next((one[ORIGINAL] for one in (text, rope) if one.get(ORIGINAL) is not None), None)
    if kind not in SCALED or ("by_layer" in rope and original is None):
        return positions  # those by type of layer, as in Gemma 3, are of models whose positions are scaled already
    factor = rope.get("factor")
    if factor is None and kind not in NEEDS_FACTOR and original is not None:
        return positions  # the factor is what they are more than the original
    tokens = _number("factor", factor) * _number(ORIGINAL, positions if original is None else original)
    if not math.isfinite(tokens):
        raise ValueError(f"rotary scaling by {factor!r} of {original or positions} positions is no context")
    return int(tokens)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} = {value!r} of its rotary scaling: must be a number above 0")
    return float(value)
