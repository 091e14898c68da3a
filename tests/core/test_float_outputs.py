"""Outputs of kernels that return floats as well: quantized where something reads the integers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, export, normal, weights_of
from torchquilt.quantizers import float_outputs, profitability
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from work import calls_in, growth

STATIC = get_symmetric_quantization_config()
X, Y = normal(3, 6), normal(3, 6, seed=1)


class Floats(XNNPACKQuantizer):
    """XNNPACK's quantizer for kernels with weights that return floats as well."""

    TABLE: ClassVar = attrs.evolve(
        XNNPACKQuantizer.TABLE,
        rows=tuple(
            attrs.evolve(row, may_return_float="weight" in dict(row.specs))
            for row in XNNPACKQuantizer.TABLE.rows
        ),
    )


def ledger_of(function: Callable[..., Any], quantizer: object = None) -> tq.Ledger:
    """The ledger of a function with a linear ``fc`` at hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        exported = export(Fn(function, fc=nn.Linear(6, 6)), X, Y)
        return tq.explain(exported, quantizer or Floats().set_global(STATIC), strict=False)


def in_float(ledger: tq.Ledger) -> set[str]:
    """The quantized operators whose outputs stay in float, and the operators that stay in float."""
    return {row.node for row in ledger if all(tensor.edge != "output" for tensor in row.tensors)}


# Each with the operators that return floats.
FLOAT: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "for a float operator": (lambda m, x, y: torch.tanh(m.fc(x)), {"linear", "tanh"}),
    "moved for a float operator": (
        lambda m, x, y: torch.tanh(m.fc(x).view(6, 3).t()),
        {"linear", "view", "t", "tanh"},
    ),
    "for a sum in front of a float operator": (
        lambda m, x, y: torch.tanh(m.fc(x) + y),
        {"linear", "add", "tanh"},
    ),
    "of two linears for one sum": (
        lambda m, x, y: torch.tanh(m.fc(x) + m.fc(y)),
        {"linear", "linear_1", "add", "tanh"},
    ),
    "of two linears for one sum, moved": (
        lambda m, x, y: torch.tanh(m.fc(x).t() + m.fc(y).view(6, 3)),
        {"linear", "linear_1", "t", "view", "add", "tanh"},
    ),
    "for a float operator that also reads what it reads": (
        lambda m, x, y: torch.tanh((h := m.fc(x)) + y) + torch.tanh(h),
        {"linear", "add", "tanh", "tanh_1", "add_1"},
    ),
}
QUANTIZED: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "an output of the program": (lambda m, x, y: m.fc(x), set()),
    "moved to an output of the program": (lambda m, x, y: m.fc(x).view(6, 3), set()),
    "for a float operator, and an output": (lambda m, x, y: (h := m.fc(x), torch.tanh(h)), {"tanh"}),
    "for an operator of integers": (lambda m, x, y: m.fc(m.fc(x)), set()),
    "for one of integers and one of floats": (
        lambda m, x, y: (torch.tanh(h := m.fc(x)), m.fc(h)),
        {"tanh"},
    ),
    "moved for one of integers and one of floats": (
        lambda m, x, y: (torch.tanh((h := m.fc(x)).view(6, 3)), m.fc(h.t().t())),
        {"tanh"},
    ),
    "for a sum in front of a linear": (lambda m, x, y: m.fc(m.fc(x) + y), set()),
    "of two linears for a sum in front of another": (lambda m, x, y: m.fc(m.fc(x) + m.fc(y)), set()),
}


@pytest.mark.parametrize("name", FLOAT)
def test_an_output_that_is_read_in_float_stays_in_float(name: str) -> None:
    """So do those that are moved in between, or are read by sums that are as cheap in float."""
    function, expected = FLOAT[name]
    assert in_float(ledger_of(function)) == expected


@pytest.mark.parametrize("name", QUANTIZED)
def test_an_output_whose_integers_are_read_is_quantized(name: str) -> None:
    """By an operator, or by who calls the program."""
    function, expected = QUANTIZED[name]
    assert in_float(ledger_of(function)) == expected


def test_without_the_flag_each_output_is_quantized() -> None:
    """Kernels that return integers alone keep what they do."""
    plain = XNNPACKQuantizer().set_global(STATIC)
    assert in_float(ledger_of(FLOAT["for a float operator"][0], plain)) == {"tanh"}
    assert in_float(ledger_of(FLOAT["of two linears for one sum"][0], plain)) == {"tanh"}


def test_the_reason_names_what_returns_floats() -> None:
    """Of a data-movement operator that could move integers."""
    ledger = ledger_of(FLOAT["moved for a float operator"][0])
    assert {ledger[node].code for node in ("view", "t")} == {"no_quantized_neighbour"}
    assert ledger["linear"].is_quantized


def test_data_movement_that_was_asked_for_by_name_moves_integers() -> None:
    """So what it reads is quantized."""
    by_name = Floats().set_global(STATIC).set_object_type(torch.Tensor.view, STATIC)
    ledger = ledger_of(FLOAT["moved for a float operator"][0], by_name)
    assert in_float(ledger) == {"tanh"}


def test_what_another_quantizer_reads_as_integers_is_quantized() -> None:
    """Its readers count as one's own, if it annotated them before."""
    reading = weights_of("tanh", spec=STATIC.input_activation, position=0)
    composed = tq.ComposableQuantizer([reading, Floats().set_global(STATIC)])
    row = ledger_of(FLOAT["for a float operator"][0], composed)["linear"]
    assert "output" in {tensor.edge for tensor in row.tensors}


def test_the_converted_model_rounds_no_such_output() -> None:
    """It computes what the linear of integers returns, and nothing else is rounded."""
    exported = export(Fn(FLOAT["for a float operator"][0], fc=nn.Linear(6, 6)), X, Y)
    prepared = tq.prepare_pt2e(exported, Floats().set_global(STATIC), strict=False)
    converted = tq.convert_pt2e(tq.calibrate(prepared, [(X, Y)]))
    names = [node.name for node in converted.graph.nodes if "quantize_per_tensor" in str(node.target)]
    quantizes = [name for name in names if not name.startswith("dequantize")]
    assert len(quantizes) == 1  # of the input


def test_the_cost_is_linear() -> None:
    """A chain of twice as many moves is twice the work to decide about."""

    def moved(length: int) -> Callable[..., torch.Tensor]:
        def function(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x = m.fc(x)
            for _ in range(length):
                x = x.t()
            return torch.tanh(x + torch.tanh(x))

        return function

    def work(length: int) -> int:
        return calls_in((profitability, float_outputs), lambda: ledger_of(moved(2 * length)))

    assert growth(work, 20) <= 2.1
