"""What a model does to its logits after the head: scaling, capping. Found by asking the model itself.

The engine runs decoder and head by themselves; the rest of a model's ``forward`` would be lost. So, once the weights
are there, a few random hidden states go through the model's own code and through the engine's, and a model that
computes anything else is refused instead of answering wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from raylaunch.errors import RankFault

LogitRule = Callable[[Tensor], Tensor]
_FACTORS = ("logits_scaling", "logit_scale", "lm_head_multiplier")
_CAP = "final_logit_softcapping"
_ROWS = 2
_RELATIVE = 1e-3  # what rounding may differ by; a wrong factor differs by much more


def logit_rule(model: Any, head: nn.Linear) -> LogitRule:
    """What to apply to what the head gives, whole or this rank's part of it.

    Args:
        model: with its weights on their device, not yet changed for several ranks.
        head: its output embedding.

    Raises:
        RankFault: the model's own code computes something else of hidden states, or the head's weights are no numbers.
    """
    weight = head.weight
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((1, _ROWS, weight.shape[-1]), generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        plain, wanted = head(hidden), _own_logits(model, hidden)
        for rule in _rules(model.config.get_text_config()):
            if _close(rule(plain), wanted):
                return rule
    kind = type(model).__name__
    if not plain.isfinite().all():
        raise RankFault(None, f"{kind}: its head gives logits that are not finite: its weights hold NaN or infinity")
    known = ", ".join((*_FACTORS, _CAP))
    raise RankFault(
        None, f"{kind} changes the logits behind its head in a way that is not implemented (known: {known})"
    )


def _own_logits(model: Any, hidden: Tensor) -> Tensor:
    """The model's logits of these hidden states, which its decoder is made to return."""
    base = model.model
    output = _Output(hidden)
    base.forward = lambda *_, **__: output
    try:
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        text = f"{type(model).__name__} cannot be asked what it does to its logits"
        raise RankFault(None, f"{text}: {type(error).__name__}: {error}") from error
    finally:
        del base.forward
    return logits


class _Output(SimpleNamespace):
    """What a decoder returns; whatever else is asked for is None."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(last_hidden_state=hidden)

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        hidden: Tensor = self.last_hidden_state
        return hidden


def _rules(text: Any) -> Iterator[LogitRule]:
    """What models are known to do, by the settings that they do it with."""
    yield lambda logits: logits
    if cap := getattr(text, _CAP, None):
        yield partial(_capped, cap)
    for factor in (getattr(text, name, None) for name in _FACTORS):
        if factor:
            yield partial(torch.mul, other=factor)
            yield partial(torch.div, other=factor)


def _capped(cap: float, logits: Tensor) -> Tensor:
    return torch.tanh(logits / cap) * cap


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.float(), theirs.float()
    return bool((ours - theirs).abs().max() <= _RELATIVE * theirs.abs().max())
