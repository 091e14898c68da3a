"""io_dtype: programs that take and return integers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from plugins.executorch.models import TOKENS, Encoder, composed, converted, xnnpack
from strategies import Fn, normal
from torchquilt.lowering import Port, load


def quantized(x: torch.Tensor, port: Port) -> torch.Tensor:
    """Integers for a port, by the parameters that it tells."""
    assert port.scale is not None
    assert port.zero_point is not None
    assert port.quant_min is not None
    whole = torch.round(x / port.scale) + port.zero_point
    return whole.clamp(port.quant_min, port.quant_max).to(getattr(torch, port.dtype))


def dequantized(q: torch.Tensor, port: Port) -> torch.Tensor:
    """Real numbers of what a port returns."""
    assert port.scale is not None
    assert port.zero_point is not None
    return (q.float() - port.zero_point) * port.scale


MODELS: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "linear": (nn.Linear(8, 4), (normal(3, 8),)),
    "network": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)),
        (normal(2, 3, 8, 8),),
    ),
    "two inputs": (Fn(lambda m, x, y: x + y), (normal(3, 8), normal(3, 8, seed=1))),
    "input with two users": (Fn(lambda m, x: m.fc(x) + x, fc=nn.Linear(8, 8)), (normal(3, 8),)),
    "two outputs": (Fn(lambda m, x: (m.fc(x), m.fc(x).relu()), fc=nn.Linear(8, 8)), (normal(3, 8),)),
}


@cache
def case(name: str) -> tuple[GraphModule, tq.LoweredProgram]:
    """A model and its program with integer inputs and outputs."""
    module, inputs = MODELS[name]
    model = converted(module, xnnpack(), *inputs)
    return model, tq.lower(model, inputs, io_dtype=torch.int8)


@pytest.mark.parametrize("name", MODELS)
def test_integers_go_in_and_come_out(name: str) -> None:
    """With the scales and zero points that are told, within one step of what the model returns."""
    model, program = case(name)
    inputs = MODELS[name][1]
    given = [quantized(x, port) for x, port in zip(inputs, program.io.inputs, strict=True)]
    expected, found = model(*inputs), program.run(*given)
    if not isinstance(expected, tuple):
        expected, found = (expected,), (found,)
    assert [one.dtype for one in (*given, *found)] == [torch.int8] * len((*given, *found))
    for port, one, other in zip(program.io.outputs, expected, found, strict=True):
        assert (dequantized(other, port) - one).abs().max() <= 1.001 * (port.scale or 0)


def test_no_conversion_is_left_in_the_program() -> None:
    """The delegate gets integers, and neither it nor the runtime makes floats of them."""
    _, program = case("network")
    assert program.leftovers == ()
    assert [kernel.name for kernel in program.kernels if kernel.name == "Convert"] == []


def test_the_model_is_not_changed() -> None:
    """The same model is lowered with float inputs and outputs afterwards."""
    model, _ = case("linear")
    program = tq.lower(model, (normal(3, 8),))
    assert [port.dtype for port in (*program.io.inputs, *program.io.outputs)] == ["float32", "float32"]


def test_floats_are_refused_where_integers_are_taken() -> None:
    """The error has the scale and the zero point to quantize them with."""
    _, program = case("linear")
    with pytest.raises(tq.ProgramInputError) as caught:
        program.run(normal(3, 8))
    assert f"scale {program.io.inputs[0].scale:.6g}" in str(caught.value.expected)


def test_verifying_converts_inputs_and_outputs() -> None:
    """Inputs are quantized and outputs dequantized to compare with the model."""
    module, inputs = MODELS["network"]
    program = tq.lower(converted(module, xnnpack(), *inputs), inputs, io_dtype=torch.int8, verify=True)
    assert program.verification


def test_the_parameters_are_in_the_report(tmp_path: Path) -> None:
    """A program that was saved has them after it is loaded."""
    _, program = case("linear")
    program.save(tmp_path / "linear.pte")
    assert load(tmp_path / "linear.pte").io == program.io


class Tail(nn.Module):
    """A layer whose result is returned in float."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Softmax of the layer."""
        return self.fc(x).softmax(-1)


def test_an_input_or_output_that_is_not_quantized_is_refused_by_name() -> None:
    """An output that is computed in float cannot be integers, and is named with what computes it."""
    model = converted(Tail(), xnnpack(), normal(3, 8))
    with pytest.raises(tq.LoweringError, match="output 'output_0' is not quantized to int8") as caught:
        tq.lower(model, (normal(3, 8),), io_dtype=torch.int8)
    assert "aten.softmax.int" in str(caught.value.got)


def test_some_inputs_and_outputs_can_be_asked_for() -> None:
    """By name; the rest stays as it is."""
    model = converted(Tail(), xnnpack(), normal(3, 8))
    program = tq.lower(model, (normal(3, 8),), io_dtype={"x": torch.int8}, verify=True)
    assert [port.dtype for port in (*program.io.inputs, *program.io.outputs)] == ["int8", "float32"]


@pytest.mark.parametrize(
    ("io_dtype", "problem"),
    [
        (torch.uint8, "input 'input' is not quantized to uint8"),
        ({"y": torch.int8}, "no floating-point input or output 'y'"),
    ],
)
def test_another_dtype_or_name_is_refused(io_dtype: Any, problem: str) -> None:
    """Another dtype or name is an error."""
    model = converted(nn.Linear(8, 4), xnnpack(), normal(3, 8))
    with pytest.raises(tq.LoweringError, match=problem):
        tq.lower(model, (normal(3, 8),), io_dtype=io_dtype)


def test_a_dynamic_model_has_no_integer_inputs_or_outputs() -> None:
    """There the integers are made when it runs, so no scale could be told."""
    model = converted(nn.Linear(8, 4), xnnpack(is_dynamic=True), normal(3, 8))
    with pytest.raises(tq.LoweringError, match="is not quantized to int8"):
        tq.lower(model, (normal(3, 8),), io_dtype=torch.int8)


def test_whole_numbers_stay_what_they_are() -> None:
    """Token ids are no real numbers; only what is floating point is asked for."""
    model = converted(Encoder(), composed(), TOKENS)
    with pytest.raises(tq.LoweringError, match="output 'output_0'"):
        tq.lower(model, (TOKENS,), io_dtype=torch.int8)
