"""Choices that a calibrated model carries: convert takes them, and they go where the model goes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import INT8, ByFunction, Fn, calls, export, normal, one_call
from torchquilt.graph.edits import copy_model
from torchquilt.observers import QParams
from torchquilt.pt2e.choices import ChosenConstant, ChosenRange
from torchquilt.pt2e.observer_points import ConstantPoint, ObservedPoint

X = normal(4, 8)
SPECS = {
    "per tensor": tq.QuantizationSpec("int8", -8, 7, symmetric=True),
    "per axis": tq.QuantizationSpec("int8", -8, 7, "per_axis", ch_axis=0, symmetric=True),
    "per axis 1, affine": tq.QuantizationSpec("uint8", 0, 15, "per_axis", ch_axis=1),
    "per group": tq.QuantizationSpec("int8", -8, 7, "per_group", group_size=4, symmetric=True),
}


def linears(spec: Any, activation: Any = INT8) -> ByFunction:
    """Quantizes what each linear reads and its weight."""

    def decide(node: Any) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        read = {node.args[1]: spec}
        if activation is not None:
            read[node.args[0]] = activation
        return tq.QuantizationAnnotation(read, activation, quantizer="linears")

    return ByFunction(decide)


def calibrated(spec: Any = SPECS["per axis"]) -> GraphModule:
    """One linear with a weight of 6 × 8, calibrated."""
    torch.manual_seed(0)
    exported = export(nn.Linear(8, 6), X)
    return tq.calibrate(tq.prepare_pt2e(exported, linears(spec)), [X])


def constant_point(model: GraphModule) -> ConstantPoint:
    """The only point of a constant."""
    (point,) = (module for module in model.modules() if isinstance(module, ConstantPoint))
    return point


def with_integers(spec: Any) -> tuple[GraphModule, torch.Tensor]:
    """A calibrated model with random integers instead of the nearest ones, and these."""
    model = calibrated(spec)
    point = constant_point(model)
    found = point.qparams_for([dict(model.named_parameters())["weight"]])
    generator = torch.Generator().manual_seed(1)
    shape = (spec.quant_min, spec.quant_max + 1, (6, 8))
    integers = torch.randint(*shape, generator=generator, dtype=torch.int32).to(spec.dtype)
    point.chosen = ChosenConstant(found, integers)
    return model, integers


def stored_integers(model: GraphModule) -> torch.Tensor:
    """The integers of the only weight of a converted model."""
    (found,) = (tensor for name, tensor in model.named_buffers() if name.endswith("int8"))
    return found


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_convert_takes_chosen_integers(spec: tq.QuantizationSpec) -> None:
    """They are stored as they are, and in float what they stand for is stored, which gives the same bits."""
    model, integers = with_integers(spec)
    folded, unfolded = tq.convert_pt2e(model), tq.convert_pt2e(model, fold_quantize=False)
    assert torch.equal(stored_integers(folded), integers)
    assert torch.equal(folded(X), unfolded(X))
    assert not torch.equal(folded(X), tq.convert_pt2e(calibrated(spec))(X))
    assert len(calls(unfolded, ".quantize_")) == len(calls(folded, ".quantize_")) + 1


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_where_the_scale_is_another_the_nearest_integers_are_stored(spec: tq.QuantizationSpec) -> None:
    """Convert may raise a scale. Integers that were chosen for another one would be wrong by its factor."""
    _, integers = with_integers(spec)
    shape = {"per_axis": (integers.shape[spec.ch_axis or 0],), "per_group": (6, 2)}.get(spec.granularity, ())
    scale, zero_point = torch.ones(shape), torch.zeros(shape, dtype=torch.int64)
    raised = scale.clone()
    raised.view(-1)[0] = 2.0
    chosen = ChosenConstant(QParams(scale, zero_point), integers)
    nearest = torch.full_like(integers, 3)
    found = chosen.instead_of(nearest, QParams(raised, zero_point), spec)
    is_raised = torch.zeros(6, 8, dtype=torch.bool)
    first = {"per_axis": ((slice(None), 0) if spec.ch_axis == 1 else (0,)), "per_group": (0, slice(4))}
    is_raised[first.get(spec.granularity, ...)] = True
    assert torch.equal(found, torch.where(is_raised, nearest, integers))
    assert chosen.instead_of(nearest, QParams(scale, zero_point), spec).equal(integers)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy_model])
def test_choices_go_with_copies(copied: Any) -> None:
    """A copy has the integers and the range, and changing those of the copy leaves the original as it was."""
    model, integers = with_integers(SPECS["per group"])
    points = [point for point in model.modules() if isinstance(point, ObservedPoint)]
    points[0].chosen = ChosenRange(torch.tensor(-1.0), torch.tensor(0.5))
    other = copied(model)
    assert torch.equal(tq.convert_pt2e(other)(X), tq.convert_pt2e(model)(X))
    constant_point(other).chosen = None
    assert torch.equal(stored_integers(tq.convert_pt2e(model)), integers)


def test_choices_go_with_the_state_dict() -> None:
    """Written to a file as plain data and read back; the state of a model without choices takes them away."""
    model, _ = with_integers(SPECS["per axis"])
    points = [point for point in model.modules() if isinstance(point, ObservedPoint)]
    points[0].chosen = ChosenRange(torch.tensor(-1.0), torch.tensor(0.5))
    plain, file = calibrated(), io.BytesIO()
    before = tq.convert_pt2e(plain)(X)
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = calibrated()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(tq.convert_pt2e(other)(X), tq.convert_pt2e(model)(X))
    assert not torch.equal(tq.convert_pt2e(other)(X), before)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(tq.convert_pt2e(other)(X), before)


def test_a_chosen_range_is_that_of_the_converted_model() -> None:
    """Its scale and zero point, the ranges that training begins with, and the report of the calibration."""
    model = calibrated()
    point = next(point for point in model.modules() if isinstance(point, ObservedPoint))
    point.chosen = ChosenRange(torch.tensor(-1.0), torch.tensor(0.5))
    first = calls(tq.convert_pt2e(model), ".quantize_per_tensor")[0]
    assert first.args[1] == pytest.approx(1.5 / 255)
    assert first.args[2] == -128 + 170
    tensor = next(one for one in tq.calibration_of(model).tensors if one.edges == point.names)
    assert (tensor.low, tensor.high) == (-1.0, 0.5)
    torch.manual_seed(0)
    trained = tq.prepare_qat_pt2e(
        export(nn.Linear(8, 6), X), linears(SPECS["per axis"]), ranges_from=model
    ).eval()
    assert calls(tq.convert_pt2e(trained), ".quantize_per_tensor")[0].args[1:3] == first.args[1:3]


def test_a_choice_for_one_of_two_layers_that_share_a_weight_is_its_own() -> None:
    """Each layer has its integers; where both have the same choice they are stored once."""
    torch.manual_seed(0)
    model = Fn(lambda m, x: (m.a(x), m.a(x * 2)), a=nn.Linear(8, 6))
    prepared = tq.prepare_pt2e(export(model, X), own_points())
    first, second = (point for point in prepared.modules() if isinstance(point, ConstantPoint))
    qparams = first.qparams_for([dict(prepared.named_parameters())["a.weight"]])
    first.chosen = ChosenConstant(qparams, torch.full((6, 8), 5, dtype=torch.int8))
    both = {name: tensor for name, tensor in tq.convert_pt2e(prepared).named_buffers() if "int8" in name}
    integers = [tensor for tensor in both.values() if tensor.dtype is torch.int8]
    assert len(integers) == 2
    assert sum(bool((tensor == 5).all()) for tensor in integers) == 1
    second.chosen = ChosenConstant(QParams(*qparams), torch.full((6, 8), 5, dtype=torch.int8))
    once = [tensor for tensor in tq.convert_pt2e(prepared).buffers() if tensor.dtype is torch.int8]
    assert len(once) == 1


def own_points() -> ByFunction:
    """Quantizes the weight of each linear by itself, though they are one tensor."""

    def decide(node: Any) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        return tq.QuantizationAnnotation(
            {node.args[1]: SPECS["per axis"]}, quantizer="own", allow_implicit_sharing=False
        )

    return ByFunction(decide)


def test_a_rounded_constant_keeps_the_dtype_of_its_layer() -> None:
    """In half precision, too, both ways of storing it compute the same bits."""
    model = nn.Linear(8, 6).half()
    prepared = tq.prepare_pt2e(export(model, X.half()), linears(SPECS["per axis"], None))
    point = constant_point(prepared)
    found = point.qparams_for([model.weight.detach()])
    point.chosen = ChosenConstant(found, torch.arange(48, dtype=torch.int8).reshape(6, 8) % 16 - 8)
    folded, unfolded = tq.convert_pt2e(prepared), tq.convert_pt2e(prepared, fold_quantize=False)
    assert torch.equal(folded(X.half()), unfolded(X.half()))
    assert one_call(folded, "linear").meta["val"].dtype is torch.float16
