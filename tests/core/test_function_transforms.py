"""Function transforms in a graph (torch.vmap, torch.func.jvp): what is under them stays in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, export, normal, outputs_of
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(2, 3, 16)


def mapped(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A layer for each sample, between two that are not."""
    return m.last(torch.vmap(lambda one: m.inner(one).relu())(m.first(x)))


def mapped_twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A transform within another one."""
    return m.last(torch.vmap(torch.vmap(m.inner))(m.first(x)))


def mapped_over_weights(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Batched weights, and a layer that reads nothing batched."""
    y, weights = m.first(x), torch.stack([m.inner.bias, m.inner.bias])
    return m.last(torch.vmap(lambda w: m.inner(y).relu() * w)(weights)[0])


def differentiated(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A derivative of a layer in a direction."""
    return m.last(torch.func.jvp(m.inner, (m.first(x),), (x,))[1])


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("function", [mapped, mapped_twice, mapped_over_weights, differentiated])
def test_what_is_under_a_transform_stays_in_float(function: Callable[..., Any], is_dynamic: bool) -> None:
    """The layers around it are quantized; the reason says what would help, and that does help."""
    layers = {name: nn.Linear(16, 16) for name in ("first", "inner", "last")}
    model = Fn(function, **layers).eval()
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    xnnpack = XNNPACKQuantizer().set_global(config)
    prepared = tq.prepare_pt2e(export(model, X), xnnpack)
    rows = [row for row in tq.ledger_of(prepared) if row.op == "aten.linear.default"]
    assert {row.module: row.code for row in rows} == {
        "first": "",
        "inner": "function_transform",
        "last": "",
    }
    assert "run_decompositions" in next(row.reasons[0].text for row in rows if row.code)
    tq.calibrate(prepared, [X])
    converted = tq.convert_pt2e(prepared)
    expected = model(X)
    error = (converted(X) - expected).square().sum() / expected.square().sum()
    assert error < 1e-3
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0


def test_a_batch_that_fails_under_a_transform_leaves_torch_outside_of_it() -> None:
    """The error is about the batch, and what is computed afterwards is computed as always."""
    model = Fn(mapped, **{name: nn.Linear(16, 16) for name in ("first", "inner", "last")}).eval()
    program = export(model, X).module()

    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel")

    xnnpack = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    prepared = tq.prepare_pt2e(program, xnnpack)
    relu = next(node for node in prepared.graph.nodes if "relu" in str(node.target))
    prepared.add_module("fails", Fails())
    with prepared.graph.inserting_before(relu):
        relu.args = (prepared.graph.call_module("fails", relu.args),)
    prepared.recompile()
    with pytest.raises(tq.CalibrationError, match="no kernel"):
        tq.calibrate(prepared, [X])
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0
    assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))


def test_an_annotation_under_a_transform_is_refused() -> None:
    """In every form of writing it; the error says where and what to do."""
    model = Fn(mapped, **{name: nn.Linear(16, 16) for name in ("first", "inner", "last")}).eval()
    with pytest.raises(tq.AnnotationError, match=r"torch\.vmap") as caught:
        tq.prepare_pt2e(export(model, X), outputs_of("linear"))
    assert caught.value.node == "linear_1"
    assert "run_decompositions" in str(caught.value.remedy)
