"""Operators that the ledger leaves in float are computed in float, also between dequantize and quantize."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

ADD = torch.ops.aten.add.Tensor


def between(operator: str, **others: torch.Tensor) -> nn.Module:
    """Two linears, one operator of what they return, and a linear of that."""
    code = {
        "add": lambda m, x: m.last(m.first(x) + m.second(x)),
        "relu": lambda m, x: m.last(torch.relu(m.first(x) * 1.0)),
        "permute": lambda m, x: m.last(m.first(x).permute(1, 0)),
        "reshape": lambda m, x: m.last(m.first(x).reshape(4, 2, 8)),
        "cat": lambda m, x: m.last(torch.cat([m.first(x), 9 * m.second(x)])),
    }
    return Fn(code[operator], first=nn.Linear(8, 8), second=nn.Linear(8, 8), last=nn.Linear(8, 8))


def quantized(model: nn.Module, *without: object) -> tuple[torch.fx.GraphModule, tuple[torch.Tensor]]:
    """A model of static integers, without these operators."""
    inputs = (normal(8, 8),)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    for operator in without:
        quantizer.set_object_type(operator, None)
    prepared = tq.prepare_pt2e(torch.export.export(model.eval(), inputs), quantizer)
    return tq.convert_pt2e(tq.calibrate(prepared, [inputs])), inputs


@pytest.mark.parametrize(
    ("operator", "overload"),
    [
        ("add", ADD),
        ("relu", torch.ops.aten.relu.default),
        ("permute", torch.ops.aten.permute.default),
        ("reshape", torch.ops.aten.reshape.default),
        ("cat", torch.ops.aten.cat.default),
    ],
)
def test_an_operator_that_a_rule_leaves_in_float_is_computed_in_float(
    operator: str, overload: object
) -> None:
    """The rule holds at run time; by itself the delegate takes what is between conversions as integers."""
    model, inputs = quantized(between(operator), overload)
    program = tq.lower(model, inputs, verify=True)
    assert program.ledger is not None
    rows = [row for row in program.ledger if row.op == str(overload)]
    assert rows
    for row in rows:
        assert row.code == "excluded_by_intent"
        assert row.lowered is not None
        assert row.lowered.code == "delegated_as_float"


@pytest.mark.parametrize("operator", ["permute", "reshape", "cat"])
def test_without_a_ledger_data_is_moved_as_integers_only_with_one_set_of_parameters(operator: str) -> None:
    """Nothing says what was decided; the parameters say that the kernel of integers would be wrong."""
    overload = getattr(torch.ops.aten, operator).default
    model, inputs = quantized(between(operator), overload)
    program = torch.export.export(model, inputs)
    program.graph_module.meta.clear()  # the ledger is in it
    for node in program.graph.find_nodes(op="call_function", target=overload):
        (quantize,) = node.users
        (dequantize,) = quantize.users
        for one in (quantize, dequantize):  # other parameters than what the operator reads has
            source, scale, *others = one.args
            assert isinstance(scale, float)
            one.args = (source, 2 * scale, *others)
    lowered = tq.lower(program, inputs, backends=["xnnpack"], verify=True)
    assert lowered.ledger is None
    assert any(one.op.startswith("aten") and one.arithmetic == "float" for one in lowered.operations)


def test_lowering_leaves_the_program_unmarked() -> None:
    """What was decided is marked in a copy."""
    model, inputs = quantized(between("add"), ADD)
    program = torch.export.export(model, inputs)
    before = [dict(node.meta.get("custom") or {}) for node in program.graph.nodes]
    lowered = tq.lower(program, inputs)
    assert lowered.ledger is not None
    assert [dict(node.meta.get("custom") or {}) for node in program.graph.nodes] == before
    assert not any(tq.lowering.stays_in_float(node) for node in program.graph.nodes)
