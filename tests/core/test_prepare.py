"""prepare_pt2e: what it leaves alone, what it puts in, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import (
    INT8,
    WEIGHT,
    ByFunction,
    Fn,
    Nothing,
    annotated,
    calls,
    decisions,
    export,
    normal,
    outputs_of,
    prepare,
    sqnr,
    weights_of,
)
from torchquilt.observers import HistogramObserver, MinMaxObserver
from torchquilt.pt2e.observer_points import ConstantPoint, ObservedPoint, QuantizationPoint
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from unharmed import unharmed


class Net(nn.Module):
    """Convolution, BatchNorm, pooling, a residual add and a linear: something of everything."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        y = torch.relu(self.norm(self.conv(x)))
        y = nn.functional.max_pool2d(y + self.again(y), 2)
        return self.fc(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


def points_of(model: GraphModule) -> list[QuantizationPoint]:
    """The points of a prepared model."""
    return [module for module in model.modules() if isinstance(module, QuantizationPoint)]


# ----------------------------------------------------------------------------------------------------------
# What is left alone
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"is_dynamic": True}], ids=["static", "dynamic"])
@pytest.mark.parametrize("form", ["program", "module"])
def test_the_float_model_is_left_as_it_was(asked: dict[str, bool], form: str) -> None:
    """Graph, metadata, tensors (the very objects) and modules of what is handed in are those of before."""
    x = normal(2, 3, 8, 8)
    exported = export(Net(), x)
    model = exported if form == "program" else exported.module()
    with unharmed(model):
        prepared = tq.prepare_pt2e(model, xnnpack(**asked))
        tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))


@pytest.mark.parametrize("quantizer", [Nothing(), tq.ComposableQuantizer([]), XNNPACKQuantizer()], ids=repr)
def test_without_annotations_the_prepared_model_is_the_float_model(quantizer: tq.Quantizer) -> None:
    """Nothing asked, nothing put in: the same bits come out."""
    x = normal(3, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    prepared = prepare(model, quantizer, x)
    assert not points_of(prepared)
    assert torch.equal(prepared(x), model(x))


def test_a_prepared_model_computes_what_the_float_model_does() -> None:
    """Observers look and change nothing: the same bits come out while calibrating."""
    x = normal(3, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    prepared = prepare(model, xnnpack(), x)
    assert points_of(prepared)
    assert torch.equal(prepared(x), model(x))


def test_weights_are_shared_with_the_float_model() -> None:
    """The prepared model's weights are the memory of the float model's."""
    x = normal(3, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)).eval()
    prepared = prepare(model, xnnpack(), x)
    tensors = (value for value in prepared.state_dict().values() if isinstance(value, torch.Tensor))
    held = {tensor.data_ptr() for tensor in tensors}  # beside the state of the observers
    assert held == {parameter.data_ptr() for parameter in model.parameters()}


def test_a_program_and_its_module_are_prepared_alike() -> None:
    """An ExportedProgram and its .module() end in the same annotations and the same graph."""
    x = normal(2, 3, 8, 8)
    exported = export(Net(), x)
    one, other = tq.prepare_pt2e(exported, xnnpack()), tq.prepare_pt2e(exported.module(), xnnpack())
    assert decisions(one) == decisions(other)
    assert one.code == other.code


# ----------------------------------------------------------------------------------------------------------
# What is put in
# ----------------------------------------------------------------------------------------------------------


def test_one_point_for_each_group_however_many_places_it_has() -> None:
    """A tensor that its producer and three users ask for alike is observed once."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y + self.fc(y) + y * y

    prepared = prepare(Fn(forward, fc=nn.Linear(6, 6)), xnnpack(), normal(3, 6))
    groups = [set(point.names) for point in points_of(prepared)]
    assert sum(len(group) for group in groups) == len(set().union(*groups))
    at_y = [group for group in groups if "linear" in group]
    assert at_y == [{"linear", "linear → linear_1", "linear → add", "linear → mul"}]
    modules = [node.target for node in prepared.graph.nodes if node.op == "call_module"]
    calls_of_y = [
        n for n in prepared.graph.nodes if n.op == "call_module" and n.args == (one(prepared, "linear"),)
    ]
    assert len(calls_of_y) == 1
    assert len(modules) == len(set(modules)) + sum(modules.count(name) - 1 for name in set(modules))


MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout": lambda y: nn.functional.dropout(y, training=False),
    "reshape": lambda y: y.reshape(2, 9).reshape(3, 6),
    "transpose": lambda y: y.t().contiguous().t(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_what_only_moves_numbers_is_not_observed_again(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Each element is looked at once, however often the tensor changes its form."""
    fn = Fn(lambda m, x: m.last(move(m.first(x))), first=nn.Linear(6, 6), last=nn.Linear(6, 6))
    prepared = prepare(fn, xnnpack(), normal(3, 6))
    tq.calibrate(prepared, [(normal(3, 6),)])
    (between,) = (point for point in points_of(prepared) if "linear" in point.names)
    assert len(between.names) > 2
    assert between.observer.count == 18


def one(model: GraphModule, name: str) -> Node:
    """A node by its name."""
    return next(node for node in model.graph.nodes if node.name == name)


def test_shared_parameters_have_one_observer() -> None:
    """One observer sees all that cat joins."""
    x, y = normal(2, 4), normal(2, 4, seed=1) * 7
    model = Fn(lambda self, x, y: torch.cat([self.fc(x), y]), fc=nn.Linear(4, 4))
    prepared = prepare(model, xnnpack(), x, y)
    tq.calibrate(prepared, [(x, y)])
    (point,) = [p for p in points_of(prepared) if "cat" in p.names]
    assert isinstance(point, ObservedPoint)
    assert float(point.observer.high) == float(y.max())
    assert float(point.observer.low) == float(y.min())


def test_weights_are_not_observed_during_calibration() -> None:
    """Only activations cost time: no observer is ever shown a constant, and constants have none."""
    seen: list[tuple[int, ...]] = []

    class Spy(MinMaxObserver):
        def update(self, tensor: torch.Tensor) -> None:
            seen.append(tuple(tensor.shape))
            super().update(tensor)

    x = normal(3, 6)
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5)).eval()
    prepared = prepare(model, xnnpack(), x, observer=Spy)
    tq.calibrate(prepared, [(x,), (x,)])
    assert seen == [(3, 6), (3, 7), (3, 5)] * 2
    assert sum(isinstance(point, ConstantPoint) for point in points_of(prepared)) == 2


def test_a_dynamic_model_is_not_observed_at_all() -> None:
    """Dynamic quantization needs no calibration: nothing is observed, and convert follows at once."""
    prepared = prepare(nn.Linear(6, 5), xnnpack(is_dynamic=True), normal(3, 6))
    assert not any(isinstance(point, ObservedPoint) for point in points_of(prepared))
    x = normal(3, 6, seed=3)
    assert tq.convert_pt2e(prepared)(x).shape == (3, 5)


@pytest.mark.parametrize(
    ("choice", "kind"), [("minmax", MinMaxObserver), ("histogram", HistogramObserver)], ids=str
)
def test_the_observer_can_be_chosen(choice: str, kind: type) -> None:
    """Ranges of activations are found by the observer that was asked for."""
    prepared = prepare(nn.Linear(6, 5), xnnpack(), normal(3, 6), observer=choice)
    kinds = {type(point.observer) for point in points_of(prepared) if isinstance(point, ObservedPoint)}
    assert kinds == {kind}


@pytest.mark.parametrize("choice", ["median", 3, lambda spec: spec], ids=["name", "number", "function"])
def test_an_unknown_observer_is_refused(choice: Any) -> None:
    """The error says which observers there are."""
    with pytest.raises(tq.CalibrationError) as caught:
        prepare(nn.Linear(6, 5), xnnpack(), normal(3, 6), observer=choice)
    assert "bserver" in str(caught.value.expected)


def test_every_node_of_a_prepared_graph_says_what_it_computes() -> None:
    """Points have the shape and dtype of what they return, and the module path of what they serve."""
    prepared = prepare(Net(), xnnpack(is_per_channel=True), normal(2, 3, 8, 8))
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.target.startswith("quantization_point"):
            source = node.all_input_nodes[0]
            assert node.meta["val"].shape == source.meta["val"].shape
            assert node.meta["val"].dtype == source.meta["val"].dtype
            if source.op == "call_function":
                assert node.meta["nn_module_stack"]
    prepared.graph.lint()


def test_strict_and_non_strict_exports_are_annotated_alike() -> None:
    """The same model exported in either way gets the same annotations."""
    x = normal(2, 3, 8, 8)
    model = Net().eval()
    lenient, strict = (
        tq.prepare_pt2e(export(model, x, strict=strict), xnnpack(is_per_channel=True))
        for strict in (False, True)
    )
    assert decisions(lenient) == decisions(strict)


@pytest.mark.parametrize("asked", [{}, {"is_dynamic": True}], ids=["static", "dynamic"])
def test_a_dynamic_batch_stays_dynamic(asked: dict[str, bool]) -> None:
    """A model that was exported for any batch size is calibrated and run with several."""
    model = Net().eval()
    exported = export(
        model, normal(2, 3, 8, 8), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    prepared = tq.prepare_pt2e(exported, xnnpack(**asked), activation_observer="minmax")
    tq.calibrate(prepared, [(normal(size, 3, 8, 8, seed=size),) for size in (1, 3, 32)])
    quantized = tq.convert_pt2e(prepared)
    for size in (1, 5, 32):
        x = normal(size, 3, 8, 8, seed=size + 1)
        assert sqnr(model(x), quantized(x)) > 15


# ----------------------------------------------------------------------------------------------------------
# Edges and outputs of every kind
# ----------------------------------------------------------------------------------------------------------


def test_the_input_of_the_model_can_be_quantized_as_an_output() -> None:
    """A placeholder with an output spec is observed once, behind all inputs, and all its users read that."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        return tq.QuantizationAnnotation({}, INT8) if node.op == "placeholder" else None

    x, y = normal(2, 3), normal(2, 3, seed=1)
    model = Fn(lambda _, x, y: x.neg() + y.abs() + x)
    prepared = prepare(model, ByFunction(decide), x, y)
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x, y)]))
    quantized.graph.lint()
    quantizes = calls(quantized, ".quantize_per_tensor")
    dequantizes = calls(quantized, "dequantize_per_tensor")
    assert len(quantizes) == 2
    assert [node.name for use in dequantizes for node in use.users] == ["neg", "abs_1", "add_1"]
    assert torch.allclose(quantized(x, y), model(x, y), atol=0.1)


def test_a_stored_tensor_can_be_quantized_as_an_output() -> None:
    """A weight with an output spec of its own is stored as integers, once for all that read it."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        return tq.QuantizationAnnotation({}, WEIGHT) if node.name == "fc_weight" else None

    x = normal(3, 6)
    model = Fn(lambda self, x: self.fc(self.fc(x)), fc=nn.Linear(6, 6)).eval()
    quantized = tq.convert_pt2e(prepare(model, ByFunction(decide), x))
    assert [t.dtype for t in quantized.state_dict().values() if t.dim() == 2] == [torch.int8]
    assert sqnr(model(x), quantized(x)) > 30


@pytest.mark.parametrize("strict", [False, True])
def test_an_input_that_is_only_returned_can_be_quantized(strict: bool) -> None:
    """No operator reads it, and the caller gets it back quantized."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        return tq.QuantizationAnnotation({}, INT8) if node.op == "placeholder" else None

    x = normal(3, 6)
    exported = export(Fn(lambda _, x: x), x, strict=strict)
    quantized = tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, ByFunction(decide)), [x]))
    assert 30 < sqnr(x, quantized(x)) < 60


def test_a_model_that_returns_several_values_in_a_dict_keeps_its_form() -> None:
    """Structure of inputs and outputs is that of the float model."""

    def forward(self: Any, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = self.fc(batch["a"]) + batch["b"]
        return {"y": y, "pair": (y.neg(), batch["b"])}

    batch = {"a": normal(2, 4), "b": normal(2, 4, seed=1)}
    model = Fn(forward, fc=nn.Linear(4, 4))
    prepared = prepare(model, xnnpack(), batch)
    got, want = tq.convert_pt2e(tq.calibrate(prepared, [(batch,)]))(batch), model(batch)
    assert set(got) == {"y", "pair"}
    assert torch.allclose(got["pair"][0], want["pair"][0], atol=0.1)
    assert torch.equal(got["pair"][1], want["pair"][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_float_types_go_through_the_flow(dtype: torch.dtype) -> None:
    """Half precision is quantized as well, and what comes out has its type."""
    x = normal(3, 6).to(dtype)
    model = nn.Linear(6, 5).eval().to(dtype)
    both = tq.ComposableQuantizer([weights_of("linear"), outputs_of("relu")])
    whole = nn.Sequential(model, nn.ReLU()).eval()
    prepared = prepare(whole, both, x)
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    got = quantized(x)
    assert got.dtype == dtype
    assert sqnr(whole(x).double(), got.double()) > 25


def test_an_operator_that_writes_in_place_is_still_right() -> None:
    """A view that sees what an in-place operator writes afterwards sees it in the quantized model, too."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        view = y.view(-1)
        y.relu_()
        return self.last(view.view(3, 6))

    x = normal(3, 6)
    model = Fn(forward, fc=nn.Linear(6, 6), last=nn.Linear(6, 6)).eval()
    prepared = prepare(model, xnnpack(), x)
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    assert sqnr(model(x), quantized(x)) > 25


@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.Hardtanh(inplace=True)]
)
def test_in_place_activations_are_quantized_like_the_others(activation: nn.Module) -> None:
    """A linear with an in-place activation is one pattern, and the outcome is near the float model."""
    x = normal(3, 6)
    model = nn.Sequential(nn.Linear(6, 6), activation, nn.Linear(6, 6)).eval()
    prepared = prepare(model, xnnpack(), x)
    patterns = [found.pattern for found in annotated(prepared).values()]
    assert len(patterns) == 3
    assert patterns[0] == patterns[1] != "linear"
    assert sqnr(model(x), tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))(x)) > 25


def test_a_prepared_model_can_be_deep_copied() -> None:
    """A copy calibrates and converts by itself, and the first one does not see what it saw."""
    x = normal(3, 6)
    prepared = prepare(nn.Linear(6, 5), xnnpack(), x)
    other = copy.deepcopy(prepared)
    tq.calibrate(other, [(x * 100,)])
    tq.calibrate(prepared, [(x,)])
    assert sqnr(prepared(x), tq.convert_pt2e(prepared)(x)) > 25
    assert sqnr(prepared(x), tq.convert_pt2e(other)(x)) < 15
