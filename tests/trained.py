"""Quantization-aware training in tests: steps of it, and what has to hold of a model at any time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

import torchquilt as tq
from strategies import INT8, ByFunction, normal

_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_WEIGHTED = ("conv1d", "conv2d", "conv3d", *_TRANSPOSED, "linear")


def weight_spec(operator: str, *, bits: int = 8) -> tq.QuantizationSpec:
    """Symmetric, per output channel; of a transposed convolution per channel of its second dimension."""
    high = 2 ** (bits - 1) - 1
    axis = 1 if operator in _TRANSPOSED else 0
    return tq.QuantizationSpec("int8", -high, high, "per_axis", ch_axis=axis, symmetric=True)


def weighted(*, activations: bool = True, bits: int = 8, name: str = "weighted") -> ByFunction:
    """A quantizer of convolutions and linears: their weights and, if asked, what they read and return."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        operator = str(node.target).removeprefix("aten.").split(".")[0]
        if node.op != "call_function" or operator not in _WEIGHTED:
            return None
        data, weight = node.args[:2]
        read: dict[Any, Any] = {weight: weight_spec(operator, bits=bits)}
        if activations:
            read[data] = INT8
        return tq.QuantizationAnnotation(read, INT8 if activations else None, quantizer=name)

    return ByFunction(decide, name)


def trainable(
    model: nn.Module, inputs: tuple[Any, ...], quantizer: object, *, training: bool = True, **options: Any
) -> GraphModule:
    """Export a model in one of the two modes, and prepare it for training."""
    exported = torch.export.export(model.train(training), inputs)
    return tq.prepare_qat_pt2e(exported, quantizer, **options)


def step(model: nn.Module, inputs: tuple[Any, ...], optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step towards fixed outputs; answers the loss.

    Towards outputs that are small a weight before the last BatchNorm would have no gradient.
    """
    optimizer.zero_grad()
    loss = distance_to_target(model(*inputs))
    loss.backward()
    optimizer.step()
    return loss.detach()


def distance_to_target(outputs: Any) -> torch.Tensor:
    """A loss for whatever a model returns: how far its floats are from fixed numbers."""
    values = [value for value in pytree.tree_leaves(outputs) if isinstance(value, torch.Tensor)]
    floats = [value.float() for value in values if value.is_floating_point()]
    parts = [(value - normal(*value.shape, seed=11)).square().mean() for value in floats]
    return torch.stack(parts).sum()


def train(model: nn.Module, batches: Iterable[tuple[Any, ...]], rate: float = 0.01) -> nn.Module:
    """Train a model with plain gradient descent; changes and returns it."""
    optimizer = torch.optim.SGD(model.train().parameters(), rate)
    for inputs in batches:
        step(model, inputs, optimizer)
    return model


def values_of(model: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """The outputs of a model, as a flat list without gradients."""
    with torch.no_grad():
        return [value for value in pytree.tree_leaves(model(*inputs)) if isinstance(value, torch.Tensor)]


def differences(model: GraphModule, inputs: tuple[Any, ...]) -> list[float]:
    """Difference of each output of a trained model in evaluation mode from that of the converted one.

    Zero means the same bits, but for the sign of zero. Where the two have a NaN there is no difference.
    """
    expected = values_of(model.eval(), inputs)
    found = values_of(tq.convert_pt2e(model), inputs)
    return distances(expected, found)


def distances(expected: list[torch.Tensor], found: list[torch.Tensor]) -> list[float]:
    """The largest distance of each two tensors of one shape and dtype; 0 where they are the same."""
    pairs = [*zip(expected, found, strict=True)]
    assert [(one.shape, one.dtype) for one, _ in pairs] == [(other.shape, other.dtype) for _, other in pairs]
    return [
        0.0
        if torch.equal(one.nan_to_num(nan=7.5), other.nan_to_num(nan=7.5))
        else float((one.double() - other.double()).abs().max())
        for one, other in pairs
    ]
