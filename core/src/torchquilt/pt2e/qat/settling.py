"""Scales and biases that convert changes for the sake of kernels, found beforehand for evaluation.

Convert raises scales and rounds biases where a kernel could not compute with them otherwise (see
:mod:`torchquilt.pt2e.scale_limits`). It looks at all operators together, and so does evaluation: after
parameters or ranges have moved, the first pass finds the scales and biases of convert, and computes with
them. Compiled code does not look for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt.errors import CalibrationError
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.edits import free_name, take_origin
from torchquilt.graph.subgraphs import Region, regions
from torchquilt.pt2e.model_record import stage_of
from torchquilt.pt2e.observer_points import QuantizationPoint
from torchquilt.pt2e.qat.back import calibrated_copy
from torchquilt.pt2e.qat.followed_points import WeightPoint
from torchquilt.pt2e.qat.points import ParameterPoint, TrainingPoint
from torchquilt.pt2e.qat.stored_tensors import SettledBias
from torchquilt.pt2e.qdq_insertion import Conversion
from torchquilt.pt2e.scale_limits import BOUNDED_KEY, BoundedOperator

#: ``model.meta``: the state of parameters and ranges that was settled last.
_SETTLED_STATE = "torchquilt_settled_state"


def let_biases_settle(model: GraphModule) -> GraphModule:
    """Put a module behind each bias that convert may round, for evaluation; changes ``model``."""
    for region in regions(model):
        graph = region.module.graph
        nodes = {node.name: node for node in graph.nodes}
        for node in nodes.values():
            found: BoundedOperator | None = node.meta.get(BOUNDED_KEY)
            if found is None or found.bias is None:
                continue
            bias, reader = (nodes[name] for name in found.bias)
            name = free_name(region.module, f"settled_{reader.name}")
            region.module.add_module(name, SettledBias(reader.name))
            with graph.inserting_before(reader):
                new = graph.call_module(name, (bias,))
            take_origin(new, reader)
            new.meta["val"] = bias.meta.get("val")
            reader.replace_input_with(bias, new)
            outdate(region.module)
    return model


def settle_before_passes(model: GraphModule) -> None:
    """Settle a model with limited operators before each pass that needs it, and its copies likewise."""
    if any(BOUNDED_KEY in node.meta for region in regions(model) for node in region.module.graph.nodes):
        _settle_copy(model)


def _settle_copy(model: GraphModule) -> None:
    if stage_of(model) != "trainable":
        return  # a copy of the converted model
    model.register_forward_pre_hook(_before_pass)
    model._register_deepcopy_hook(_settle_copy)


def settle_once(model: GraphModule) -> None:
    """Settle a model now and not before passes, for which its graph has to be as it was prepared."""
    for key, hook in [*model._forward_pre_hooks.items()]:
        if hook is _before_pass:
            _before_pass(model, ())
            del model._forward_pre_hooks[key]


def _before_pass(model: torch.nn.Module, _: Any) -> None:
    # A copy of a model calls what is called before the passes of the model, also once it is converted.
    if model.training or torch.compiler.is_compiling() or stage_of(model) != "trainable":
        return
    assert isinstance(model, GraphModule)
    state = _state(model)
    if model.meta.get(_SETTLED_STATE) != state:
        _settle(model)
        model.meta[_SETTLED_STATE] = state


def _state(model: GraphModule) -> tuple[Any, ...]:
    """A value that changes when a parameter, a range or a switch does."""
    found: list[Any] = []
    for module in model.modules():
        if isinstance(module, TrainingPoint):
            found.append((module.observes, module.quantizes))
            if isinstance(module, WeightPoint) and module.observes:
                continue  # its buffers are computed from the weight
        tensors = (*module._parameters.values(), *module._buffers.values())
        found += [(tensor.data_ptr(), tensor._version) for tensor in tensors if tensor is not None]
    return tuple(found)


@torch.no_grad()
def _settle(model: GraphModule) -> None:
    """Give points and biases the values that convert would settle on."""
    calibrated = {region.path: region.module for region in regions(calibrated_copy(model))}
    for region in regions(model):
        _settle_region(region, calibrated[region.path])


def _settle_region(region: Region, calibrated: GraphModule) -> None:
    children = dict(region.module.named_children())
    points = {name: held for name, held in calibrated.named_children() if isinstance(held, QuantizationPoint)}
    try:
        conversion = Conversion(calibrated, points, True)
        raised, biases = conversion.raised(), conversion.biases
    except CalibrationError:  # convert will say why; evaluation goes on without
        raised, biases = {}, {}
    for name, held in children.items():
        if isinstance(held, ParameterPoint):
            held.settled = raised.get(name)
        elif isinstance(held, SettledBias):
            held.settled = biases.get(held.reader)
