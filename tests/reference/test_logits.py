"""What a model does behind its head is found out, and applied, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from raylaunch_actors.reference.logits import logit_rule
from torch import Tensor, nn

from raylaunch.errors import RankFault


class Model(nn.Module):
    """A decoder that must not run, a head, and what ``change`` does to the logits."""

    def __init__(self, change: Callable[[Tensor], Tensor], **settings: float | None) -> None:
        super().__init__()
        self.model, self.lm_head, self.change = nn.Identity(), nn.Linear(16, 8, bias=False), change
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        output = self.model(input_ids=input_ids, use_cache=use_cache)
        assert output.rope_deltas is None
        return SimpleNamespace(logits=self.change(self.lm_head(output[0])), hidden=output.last_hidden_state)


CHANGES: list[tuple[Callable[[Tensor], Tensor], dict[str, float | None]]] = [
    (lambda x: x, {}),
    (lambda x: x, {"logit_scale": 1.0, "final_logit_softcapping": None}),
    (lambda x: x, {"final_logit_softcapping": 0.5}),  # a model that leaves it to somebody else
    (lambda x: x * 0.0625, {"logit_scale": 0.0625}),
    (lambda x: x / 8.0, {"logits_scaling": 8.0}),
    (lambda x: x * 8.0, {"logits_scaling": 8.0}),
    (lambda x: torch.tanh(x / 0.5) * 0.5, {"final_logit_softcapping": 0.5}),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_the_models_own_logits(number: int) -> None:
    change, settings = CHANGES[number]
    model = Model(change, **settings)
    rule = logit_rule(model, model.lm_head)
    logits = torch.randn(3, 8)
    assert torch.equal(rule(logits), change(logits))
    assert "forward" not in vars(model.model)  # it is as it was


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x[..., :5], lambda x: x * 3])
def test_anything_else_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    model = Model(change, logit_scale=2.0)
    with pytest.raises(RankFault, match="Model changes the logits behind its head in a way that is not implemented"):
        logit_rule(model, model.lm_head)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    model = Model(lambda x: x)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = value
    with pytest.raises(RankFault, match="Model: its head gives logits that are not finite: its weights hold NaN or"):
        logit_rule(model, model.lm_head)


def test_a_model_that_wants_more_of_its_decoder_is_refused() -> None:
    model = Model(lambda x: x.no_such_thing)
    with pytest.raises(RankFault, match="Model cannot be asked what it does to its logits: AttributeError"):
        logit_rule(model, model.lm_head)
