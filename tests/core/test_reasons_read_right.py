"""Reasons say what would have to hold, and cannot be read as its opposite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, export, normal
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer, get_embedding_config
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
FOUR_BITS = get_embedding_config(4, 32)


def reasons(quantizer: tq.Quantizer, function: Callable[..., Any], *inputs: Any, **parts: Any) -> list[str]:
    """The reasons of all operators that stay in float."""
    model = Fn(function, **parts)
    with pytest.warns(UserWarning, match="nothing is quantized"):
        ledger = tq.explain(export(model, *inputs), quantizer, strict=False)
    return [row.reasons[0].text for row in ledger.left_in_float]


@pytest.mark.parametrize(
    ("expected", "quantizer", "function", "x", "parts"),
    [
        (
            "conv2d: only if the batch has one sample; it has 16",
            XNNPACKQuantizer().set_global(DYNAMIC),
            lambda m, x: m.conv(x),
            normal(16, 3, 8, 8),
            {"conv": nn.Conv2d(3, 4, 3)},
        ),
        (
            "linear: only if all tensors are float32; there is torch.float16",
            XNNPACKQuantizer().set_global(STATIC),
            lambda m, x: m.fc(x),
            normal(3, 6).half(),
            {"fc": nn.Linear(6, 6).half()},
        ),
        (
            "linear: only if all tensors are float32, or all are float16; there is torch.bfloat16",
            XNNPACKQuantizer().set_global(DYNAMIC),
            lambda m, x: m.fc(x),
            normal(3, 6).bfloat16(),
            {"fc": nn.Linear(6, 6).bfloat16()},
        ),
        (
            "embedding_4bit_group32: only if the width of a row is a multiple of 32; it is 24",
            ExecuTorchEmbeddingQuantizer().set_global(FOUR_BITS),
            lambda m, x: m.table(x),
            torch.arange(3),
            {"table": nn.Embedding(5, 24)},
        ),
    ],
    ids=["one sample", "float32", "bfloat16", "groups"],
)
def test_a_reason_says_what_would_have_to_hold_and_what_was_found(
    expected: str, quantizer: tq.Quantizer, function: Any, x: torch.Tensor, parts: dict[str, Any]
) -> None:
    """With the number or the dtype that the operator has."""
    assert reasons(quantizer, function, x, **parts) == [expected]


TABLES = (XNNPACKQuantizer.TABLE, ExecuTorchEmbeddingQuantizer.TABLE)
CONSTRAINTS = {one.code: one for table in TABLES for row in table.rows for one in row.constraints}


@pytest.mark.parametrize("code", CONSTRAINTS)
def test_each_condition_is_told_as_a_condition(code: str) -> None:
    """Behind "only if", so that it is no statement about the operator, and not twice."""
    constraint = CONSTRAINTS[code]
    told = tq.Constraint(code, constraint.text, constraint.holds).rejection(
        tq.Match(TABLES[0].rows[0].pattern, (), ())
    )
    assert told == f"linear_relu: only if {constraint.text}"
    assert constraint.text[0].islower()
    assert not constraint.text.startswith(("only", "if ", "not ", "must"))


def test_an_operator_behind_a_float_output_is_told_so() -> None:
    """A weight may well be quantized of an operator whose output is float."""
    found = reasons(
        XNNPACKQuantizer().set_global(STATIC).set_module_name("act", STATIC),
        lambda m, x: m.act(functional.gelu(x)),
        normal(3, 6),
        act=nn.ReLU(),
    )
    assert "the output of gelu is float, and relu shares its parameters" in found


def test_the_shares_of_a_quantizer_that_is_alone_are_told_once() -> None:
    """Of several quantizers the whole is told, too."""
    exported = export(nn.Sequential(nn.Linear(6, 6), nn.GELU()), normal(3, 6))
    xnnpack = XNNPACKQuantizer().set_global(STATIC)
    assert str(tq.explain(exported, xnnpack)).startswith("XNNPACKQuantizer: 1 of 2 operators")
    nothing = str(tq.explain(exported, XNNPACKQuantizer().set_global(None)))
    assert nothing.startswith("all: 0 of 2 operators")


@pytest.mark.parametrize(("number", "shown"), [(12, 12), (13, 12)])
def test_operators_that_no_row_takes_are_listed_up_to_a_number(number: int, shown: int) -> None:
    """If nothing is quantized and nothing came near; an ellipsis stands for the rest."""
    functions = (
        *(torch.sin, torch.cos, torch.tan, torch.sinh, torch.cosh, torch.asinh, torch.atan),
        *(torch.exp, torch.erf, torch.neg, torch.abs, torch.floor, torch.ceil),
    )

    def run(_: Any, x: torch.Tensor) -> torch.Tensor:
        for function in functions[:number]:
            x = function(x)
        return x

    with pytest.raises(tq.IntentError, match="nothing is quantized") as caught:
        tq.prepare_pt2e(export(Fn(run), normal(2, 4)), ExecuTorchEmbeddingQuantizer().set_global(FOUR_BITS))
    assert str(caught.value.got).count("aten.") == shown
    assert str(caught.value.got).endswith("…") is (number > shown)
