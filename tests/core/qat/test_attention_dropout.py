"""Attention has its dropout in a probability and no flag; it is switched like any other dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, calls, normal, one_call
from trained import differences, distances, train, trainable, values_of, weighted

X = (normal(2, 4, 6, 8),)


def attention(probability: float = 0.25, *, always: bool = False) -> nn.Module:
    """A linear and attention, with dropout in training, or in both modes."""
    torch.manual_seed(0)

    def run(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value = self.dropout(self.linear(x))
        p = probability if self.training or always else 0.0
        return functional.scaled_dot_product_attention(value, value, value, dropout_p=p, is_causal=True)

    return Fn(run, linear=nn.Linear(8, 8), dropout=nn.Dropout(0.1))


def is_random(model: nn.Module) -> bool:
    """Whether two passes differ."""
    return distances(values_of(model, X), values_of(model, X)) != [0.0]


def probability_of(model: GraphModule) -> float:
    """The probability that stands in the graph."""
    found: float = one_call(model, "scaled_dot_product_attention").args[4]
    return found


def test_attention_drops_in_training_and_not_in_evaluation() -> None:
    """After convert nothing is dropped; training computes with the probability that was exported."""
    model = trainable(attention(), X, weighted())
    train(model, [X])
    for _ in range(2):
        assert is_random(model.train())
        assert not is_random(model.eval())
    assert differences(model, X) == [0.0]
    converted = tq.convert_pt2e(model)
    assert not any(call.args[4:5] == (0.25,) for call in calls(converted, "scaled_dot"))
    held = [one for one in model.modules() if getattr(one, "flag", "") == "dropout_p"]
    assert [one.when_training for one in held] == [0.25]


def test_dropout_that_is_meant_in_attention_is_never_switched() -> None:
    """On in a program that was exported in evaluation mode, it stays on."""
    program = torch.export.export(attention(always=True).eval(), X)
    with pytest.warns(UserWarning, match="training"):
        model = tq.prepare_qat_pt2e(program, weighted(), strict=False)
    model(*X)
    assert is_random(model.train())
    assert is_random(model.eval())


def test_dropout_of_a_program_in_training_mode_is_switched_wherever_it_is() -> None:
    """A program in training mode does not say which dropout was meant to stay on."""
    model = trainable(attention(always=True), X, weighted())
    model(*X)
    assert is_random(model.train())
    assert not is_random(model.eval())


def test_an_exported_float_model_keeps_the_probability_over_any_number_of_switches() -> None:
    """Off is 0, on is what was exported."""
    model = torch.export.export(attention().train(), X).module()
    for _ in range(3):
        tq.move_exported_model_to_eval(model)
        assert probability_of(model) == 0.0
        assert not is_random(model)
        tq.move_exported_model_to_train(model)
        assert probability_of(model) == 0.25
        assert is_random(model)


def test_attention_that_drops_nothing_is_left_alone() -> None:
    """No probability is known of a program that was exported in evaluation mode."""
    model = torch.export.export(attention().eval(), X).module()
    tq.move_exported_model_to_train(model)
    assert probability_of(model) in (0, 0.0)
    prepared = trainable(attention(), X, weighted(), training=False)
    assert not any(getattr(one, "flag", "") == "dropout_p" for one in prepared.modules())


def test_random_numbers_that_no_flag_switches_off_are_warned_of() -> None:
    """Stochastic depth by hand is random in evaluation, too: the warning names the module and the way out."""
    torch.manual_seed(0)
    depth = Fn(lambda self, x: x * (torch.rand(2, 1, 1, 1) > 0.5) if self.training else x)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), depth)
    with pytest.warns(UserWarning, match=r"(?s)2.*aten.rand.*export the model in evaluation mode"):
        prepared = trainable(model, X, weighted())
    train(prepared, [X])
    assert is_random(prepared.eval())
    prepared = trainable(model, X, weighted(), training=False)
    train(prepared, [X])
    assert not is_random(prepared.eval())
