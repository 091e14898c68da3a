"""Readers of a quantized output: none goes on to read the float tensor behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import ByFunction, Fn, calls, export, normal, one_call, outputs_of
from torchquilt.errors import ModelError
from torchquilt.graph.invariants import check_invariants
from torchquilt.pt2e.invariants import INVARIANTS

X = normal(4, 8)
ATEN = torch.ops.aten

Readers = Callable[[torch.Tensor], Any]

#: What a model may do with a tensor that is quantized; most of it makes export write an assertion.
READERS: dict[str, Readers] = {
    "float": lambda y: y.float(),
    "half": lambda y: y.half(),
    "double": lambda y: y.double(),
    "to a dtype": lambda y: y.to(torch.int32),
    "to a copy": lambda y: y.to(torch.float32, copy=True),
    "to a device": lambda y: y.to("cpu"),
    "to another": lambda y: y.to(y.new_zeros(1)),
    "type": lambda y: y.type(torch.float16),
    "type_as": lambda y: y.type_as(torch.zeros(1)),
    "there and back": lambda y: y.bfloat16().float(),
    "cast and used": lambda y: y.float() + y,
    "asserted": lambda y: (torch._assert_async((y < 1e9).all()), y)[1],
    "of its size": lambda y: y + torch.arange(y.shape[0])[:, None],
    "branches": lambda y: torch.cond(y.sum() > 0, lambda a: a.half(), lambda a: a.half() * 2, (y,)),
    "returned twice": lambda y: (y, y.float(), y),
}


def quantized_by_hand(readers: Readers, quantizer: object) -> tuple[GraphModule, GraphModule]:
    """A model whose linear is quantized before others read it: prepared, and converted."""
    batch = torch.export.Dim("batch", max=64)
    model = Fn(lambda m, x: readers(m.fc(x)), fc=nn.Linear(8, 8))
    prepared = tq.prepare_pt2e(export(model, X, dynamic_shapes=(({0: batch},),)), quantizer)
    tq.calibrate(prepared, [(X,)])
    return prepared, tq.convert_pt2e(prepared)


@pytest.mark.parametrize("name", READERS)
def test_only_quantize_reads_a_tensor_that_is_quantized(name: str) -> None:
    """Others, assertions of export among them, read what it is dequantized to."""
    _, converted = quantized_by_hand(READERS[name], outputs_of("linear"))
    readers = [str(user.target) for user in one_call(converted, "linear").users]
    assert readers == ["quantized_decomposed.quantize_per_tensor.default"]


def test_an_operator_that_returns_nothing_reads_what_others_read() -> None:
    """So what it checks is what the model computes with."""
    program = export(Fn(lambda m, x: m.fc(x).sum(), fc=nn.Linear(8, 8)), X).module()
    summed = one_call(program, "sum")
    with program.graph.inserting_after(summed):
        check = program.graph.call_function(ATEN._assert_async.default, (summed,))
    check.meta = {**summed.meta, "val": None}
    program.recompile()
    prepared = tq.prepare_pt2e(program, outputs_of("sum"))
    tq.calibrate(prepared, [(X,)])
    converted = tq.convert_pt2e(prepared)
    assert "dequantize" in str(one_call(converted, "_assert_async").args[0])


def test_an_assertion_about_an_input_is_about_what_was_handed_in() -> None:
    """It is no reason to dequantize the input."""
    model = Fn(lambda m, x: m.fc(x.to(torch.float32)), fc=nn.Linear(8, 8))

    def inputs(node: Node) -> tq.QuantizationAnnotation | None:
        is_input = node.op == "placeholder"
        return tq.QuantizationAnnotation({}, tq.QuantizationSpec("int8")) if is_input else None

    prepared = tq.prepare_pt2e(export(model, X), ByFunction(inputs))
    tq.calibrate(prepared, [(X,)])
    converted = tq.convert_pt2e(prepared)
    assert one_call(converted, "_assert_tensor_metadata").args[0].op == "placeholder"
    assert len(calls(converted, ".dequantize")) == 1


def test_the_invariant_finds_who_reads_the_float_tensor() -> None:
    """Whichever pass leaves one: it is named, and so is the pass."""
    prepared, _ = quantized_by_hand(READERS["float"], outputs_of("linear"))
    check = one_call(prepared, "_assert_tensor_metadata")
    check.replace_input_with(check.all_input_nodes[0], one_call(prepared, "linear"))
    with pytest.raises(ModelError, match="quantized_once") as caught:
        check_invariants(prepared, "a pass", invariants=INVARIANTS)
    assert caught.value.got == check.name
