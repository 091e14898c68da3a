"""A calibrated model that computes as the converted one will, with modules that look at what is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.edits import copy_model, free_name
from torchquilt.graph.qdq import choosing_call, operators_of
from torchquilt.graph.subgraphs import Region, regions
from torchquilt.observers import QParams
from torchquilt.pt2e.choices import ChosenConstant
from torchquilt.pt2e.model_record import restore_initial_state
from torchquilt.pt2e.observer_points import (
    ConstantPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.qat.fake_quantize import dequantized, operators_for


class Passing(torch.nn.Module):
    """Stands for a point: returns its input."""

    def forward(self, tensor: torch.Tensor, is_new: bool = True) -> torch.Tensor:
        """Return the tensor itself."""
        return tensor


class Rounding(Passing):
    """Stands for the point of an activation: rounds it as the converted model does."""

    def __init__(self, spec: Any, found: QParams | None) -> None:
        super().__init__()
        self.spec = spec
        #: None where each input has its own
        self.found = found

    def forward(self, tensor: torch.Tensor, is_new: bool = True) -> torch.Tensor:
        """The tensor, quantized and dequantized."""
        return rounded(tensor, self.spec, self.found)


class Replacing(Passing):
    """Stands for the point of a constant: returns it as it is, until its integers are known."""

    def __init__(self, spec: Any, chosen: ChosenConstant | None) -> None:
        super().__init__()
        self.spec = spec
        self.chosen = chosen

    def forward(self, tensor: torch.Tensor, is_new: bool = True) -> torch.Tensor:
        """The constant, or what its integers stand for."""
        if self.chosen is None or self.chosen.integers is None:
            return tensor
        return dequantized(self.chosen.integers, operators_for(self.chosen.qparams, self.spec), tensor.dtype)


def rounded(tensor: torch.Tensor, spec: Any, found: QParams | None) -> torch.Tensor:
    """A tensor, quantized and dequantized; without parameters with those that it chooses itself."""
    if found is None:
        choose, asked = choosing_call(spec)
        operators = operators_of(spec, choose(tensor.float(), *asked))
    else:
        operators = operators_for(found, spec)
    return dequantized(operators.quantize(tensor, *operators.arguments), operators, tensor.dtype)


def float_copy_of(prepared: GraphModule) -> GraphModule:
    """A copy of a prepared model that computes in float, and observes nothing."""
    return _without_points(prepared, lambda point: Passing())


def simulated_copy(prepared: GraphModule) -> GraphModule:
    """A copy of a calibrated model whose activations are rounded as in the converted model.

    Its constants are as they are, but for those whose integers were chosen.
    """
    return _without_points(prepared, _stand_in)


def _without_points(prepared: GraphModule, make: Any) -> GraphModule:
    points = [module for module in prepared.modules() if isinstance(module, QuantizationPoint)]
    copied = copy_model(prepared, kept=points)
    made: dict[QuantizationPoint[Any], torch.nn.Module] = {}
    for region in regions(copied):
        for name, point in list(region.module.named_children()):
            if isinstance(point, QuantizationPoint):
                region.module.add_module(name, made.setdefault(point, make(point)))
    restore_initial_state(copied)
    return copied


def _stand_in(point: QuantizationPoint[Any]) -> Passing:
    if isinstance(point, ConstantPoint):
        return Replacing(point.spec, point.chosen)
    if isinstance(point, DynamicPoint):
        return Rounding(point.spec, None)
    is_known = isinstance(point, FixedPoint) or (isinstance(point, ObservedPoint) and has_range(point))
    if is_known:
        assert isinstance(point, (FixedPoint, ObservedPoint))
        return Rounding(point.spec, point.qparams())
    return Passing()  # nothing is known of it, or it is derived: a bias of 32 bits


def has_range(point: ObservedPoint) -> bool:
    """Whether a point saw data, or was given a range."""
    return point.chosen is not None or point.observer.has_data


def look_at(region: Region, module: torch.nn.Module, before: Node, arguments: Iterable[Any]) -> None:
    """Call a module with what an operator reads, right before it; changes the region.

    Args:
        region: of the graph.
        module: is called, and returns nothing.
        before: the operator.
        arguments: of the call.
    """
    name = free_name(region.module, "looking")
    region.module.add_module(name, module)
    with before.graph.inserting_before(before):
        before.graph.call_module(name, tuple(arguments))
    outdate(region.module)


def finished(model: GraphModule) -> GraphModule:
    """A model with its code, once all has been put in."""
    generate_code(model)
    return model
