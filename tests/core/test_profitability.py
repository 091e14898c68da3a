"""Cheap operators between float ones: quantized where it saves more than the conversions cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, export, normal, outputs_of
from torchquilt.backend import operators
from torchquilt.quantizers import profitability
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from work import calls_in, growth

STATIC = get_symmetric_quantization_config()
X, Y = normal(3, 6), normal(3, 6, seed=1)
INT8 = (tq.AllowedSpec("int8", -128, 127, ("per_tensor",)),)
SPECS = {"input_activation": INT8, "output_activation": INT8}


def ledger_of(quantizer: object, function: Callable[..., Any], *inputs: torch.Tensor) -> tq.Ledger:
    """The ledger of a function with a linear ``fc`` at hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        exported = export(Fn(function, fc=nn.Linear(6, 6), c=normal(6)), *(inputs or (X, Y)))
        return tq.explain(exported, quantizer, strict=False)


def static() -> XNNPACKQuantizer:
    """XNNPACK, static, everywhere."""
    return XNNPACKQuantizer().set_global(STATIC)


# Each with the operators that are quantized.
KEPT: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "between inputs and an output": (lambda m, x, y: x + y, {"add"}),
    "behind a linear, on to an output": (lambda m, x, y: m.fc(x) + y, {"linear", "add"}),
    "between linears": (lambda m, x, y: m.fc(m.fc(x) + y), {"linear", "add", "linear_1"}),
    "of two linears, for a float operator": (
        lambda m, x, y: torch.tanh(m.fc(x) + m.fc(y)),
        {"linear", "linear_1", "add"},
    ),
    "of two linears, reshaped for a float operator": (
        lambda m, x, y: torch.tanh((m.fc(x) + m.fc(y)).view(6, 3)),
        {"linear", "linear_1", "add", "view"},
    ),
    "more operators than conversions": (
        lambda m, x, y: torch.tanh((x + y) * x + y),
        {"add", "mul", "add_1"},
    ),
    "a constant is no conversion": (lambda m, x, y: x + m.c, {"add"}),
    "of a tensor that is converted for another operator anyway": (
        lambda m, x, y: (torch.tanh(s := m.fc(x) + (t := torch.tanh(y))), m.fc(s), m.fc(t)),
        {"linear", "add", "linear_1", "linear_2"},
    ),
}
LEFT: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "between float operators": (lambda m, x, y: torch.tanh(torch.tanh(x) + torch.tanh(y)), {"add"}),
    "read by a float operator": (lambda m, x, y: torch.tanh(x + y), {"add"}),
    "as many operators as conversions": (
        lambda m, x, y: torch.tanh((torch.tanh(x) + y) * y),
        {"add", "mul"},
    ),
    "data movement does not count": (
        lambda m, x, y: torch.tanh((torch.tanh(x) + y).view(6, 3).relu().t()),
        {"add", "view", "relu", "t"},
    ),
    "behind a linear": (lambda m, x, y: torch.tanh(m.fc(x) + y), {"add"}),
    "the last of several behind a linear first": (
        lambda m, x, y: torch.tanh((m.fc(x) + y) * y),
        {"add", "mul"},
    ),
    "behind a linear, reshaped": (lambda m, x, y: torch.tanh((m.fc(x) + y).view(6, 3)), {"add", "view"}),
    "behind the transpose of a linear": (lambda m, x, y: torch.tanh(m.fc(x).t().t() + y), {"add"}),
    "before a linear": (lambda m, x, y: m.fc(torch.tanh(x) * torch.tanh(y)), {"mul"}),
    "reshaped for a linear": (
        lambda m, x, y: m.fc((torch.tanh(x) + torch.tanh(y)).view(6, 3).view(3, 6)),
        {"add", "view", "view_1"},
    ),
    "before what was left behind a linear": (
        lambda m, x, y: torch.tanh(m.fc(x) + (torch.tanh(y) * y).view(3, 6)),
        {"add", "mul", "view"},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_saves_more_than_it_costs_is_quantized(name: str) -> None:
    """Cheap operators are quantized in company of others, and at the inputs and outputs of the model."""
    function, quantized = KEPT[name]
    ledger = ledger_of(static(), function)
    assert {row.node for row in ledger.quantized} == quantized


@pytest.mark.parametrize("name", LEFT)
def test_what_costs_more_than_it_saves_stays_in_float(name: str) -> None:
    """All of the island stays in float, and each operator of it says why."""
    function, left = LEFT[name]
    ledger = ledger_of(static(), function)
    assert {row.node for row in ledger if row.code == "not_profitable"} == left
    assert all("conversion" in ledger[node].reasons[0].text for node in left)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("between float operators", "add is cheap, and would take 3 conversions "),
        ("as many operators as conversions", "add and 1 other cheap operators would take 2 conversions "),
    ],
)
def test_the_reason_counts_operators_and_conversions(name: str, text: str) -> None:
    """Of the whole island."""
    assert ledger_of(static(), LEFT[name][0])["add"].reasons[0].text.startswith(text)


def test_what_is_asked_for_by_name_is_done() -> None:
    """A rule about the operator itself is followed, whatever it costs; one about a module is not."""
    function = LEFT["between float operators"][0]
    assert ledger_of(XNNPACKQuantizer().set_object_type(torch.add, STATIC), function)["add"].is_quantized
    assert ledger_of(XNNPACKQuantizer().set_module_name("", STATIC), function)["add"].code == "not_profitable"


@pytest.mark.parametrize("order", [1, -1], ids=["behind", "before"])
def test_what_another_quantizer_makes_of_the_neighbours_counts(order: int) -> None:
    """Integers of another quantizer are as good as one's own, in whatever order they are composed."""
    function = LEFT["between float operators"][0]
    others = [outputs_of("tanh", spec=STATIC.input_activation), static()][::order]
    assert ledger_of(tq.ComposableQuantizer(others), function)["add"].is_quantized


class PairsAndRelu(tq.PatternQuantizer):
    """Sums with the relu behind them, which are cheap; and relu by itself, which is none."""

    TABLE = tq.SupportTable(
        "pairs",
        (
            tq.SupportRow(
                tq.OperatorPattern.of(operators.ADD, operators.RELU), SPECS, profitable_alone=False
            ),
            tq.SupportRow(tq.OperatorPattern.of(operators.RELU), SPECS, profitable_alone=True),
        ),
    )


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_left_of_a_pair_is_decided_again(beside: bool) -> None:
    """A quantizer by itself is asked as often as one of a composition: until nothing is added."""
    pairs = PairsAndRelu().set_global(STATIC)
    quantizer = tq.ComposableQuantizer([pairs, XNNPACKQuantizer()]) if beside else pairs
    ledger = ledger_of(quantizer, lambda m, x, y: torch.tanh(torch.relu(torch.tanh(x) + torch.tanh(y))))
    assert {row.node for row in ledger.quantized} == {"relu"}


def test_what_is_explained_is_what_is_done() -> None:
    """The converted model has no conversions for what is left."""
    exported = export(Fn(LEFT["between float operators"][0], fc=nn.Linear(6, 6)), X, Y)
    prepared = tq.prepare_pt2e(exported, static(), strict=False)
    converted = tq.convert_pt2e(tq.calibrate(prepared, [(X, Y)]))
    assert torch.equal(converted(X, Y), exported.module()(X, Y))


def stream(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A residual stream: each layer adds to it, and normalizes it first."""
    for _ in range(40):
        x = x + m.fc(nn.functional.layer_norm(x, (6,)))
    return nn.functional.layer_norm(x, (6,))


def test_a_residual_stream_stays_in_float() -> None:
    """Of a transformer the linears are quantized, and no sum between its LayerNorms is rounded."""
    ledger = ledger_of(static(), stream)
    quantized = {row.op for row in ledger.quantized}
    assert quantized == {"aten.linear.default"}
    assert sum(row.code == "not_profitable" for row in ledger) == 40


def test_a_sum_that_was_asked_for_by_name_is_quantized_behind_a_linear() -> None:
    """The rule about the edge of an island yields to one about the operator, as that about islands does."""
    by_name = static().set_object_type(torch.add, STATIC)
    assert {row.node for row in ledger_of(by_name, LEFT["behind a linear"][0]).quantized} == {"linear", "add"}


def test_what_passes_a_sum_on_and_was_asked_for_by_name_keeps_it() -> None:
    """It has integers to reshape only where the sum is quantized."""
    function = LEFT["behind a linear, reshaped"][0]
    ledger = ledger_of(static().set_object_type(torch.Tensor.view, STATIC), function)
    assert {row.node for row in ledger.quantized} == {"linear", "add", "view"}


def test_integers_of_another_quantizer_count_at_the_edge_of_an_island() -> None:
    """A tensor that another quantizer reads as integers is not better made in float."""
    reader = outputs_of("tanh", spec=STATIC.input_activation)
    function = KEPT["between linears"][0]
    kept = ledger_of(
        tq.ComposableQuantizer([reader, static()]), lambda m, x, y: function(m, torch.tanh(x), y)
    )
    assert {"tanh", "linear", "add", "linear_1"} <= {row.node for row in kept.quantized}
    before = ledger_of(tq.ComposableQuantizer([reader, static()]), LEFT["before a linear"][0])
    assert before["mul"].is_quantized


def chain(length: int) -> Callable[..., torch.Tensor]:
    """Cheap operators that hand each other what they compute."""

    def function(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for _ in range(length):
            x = x + y
        return torch.tanh(x)

    return function


def test_a_long_chain_is_one_island() -> None:
    """All of its operators together save more than the conversions around them cost."""
    ledger = ledger_of(static(), chain(400))
    assert sum(row.is_quantized for row in ledger) == 400


def test_the_cost_is_linear() -> None:
    """A chain of twice as many cheap operators is twice the work to decide about."""

    def work(length: int) -> int:
        return calls_in((profitability,), lambda: ledger_of(static(), chain(length)))

    assert growth(work, 20) <= 2.1


def test_the_edge_of_an_island_is_decided_in_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operator at the edge of an island is asked once, and again when a neighbour of it was left in
    float.
    """
    asked: list[object] = []
    question = profitability._IslandEdges._conversions
    monkeypatch.setattr(
        profitability._IslandEdges,
        "_conversions",
        lambda self, group: asked.append(group) or question(self, group),
    )
    ledger_of(static(), stream)
    assert 40 <= len(asked) <= 4 * 40
