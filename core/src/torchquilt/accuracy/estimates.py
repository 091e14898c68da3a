"""Estimates of what quantizing each tensor costs at the outputs, from a forward and a backward pass a batch.

To first order an error ``e`` of a tensor moves the outputs by ``J e``, with the Jacobian ``J`` of the
outputs. For a random vector ``v`` of signs, the gradient ``g`` of ``v · y`` is ``v J``. Rounding errors are
as good as independent of each other. So the sum of ``g² e²`` over all elements is the expected square of
``v J e``: the noise that the tensor adds to the outputs. Outputs are divided by their norm, which makes it a
ratio of noise to signal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt._internal.terminal import progress_if
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt._internal.torch_private import pytree
from torchquilt.accuracy.running import batch_error, numbered
from torchquilt.accuracy.variants import Decided
from torchquilt.errors import CalibrationError
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import copy_model
from torchquilt.graph.function_transforms import leaving_transforms
from torchquilt.graph.node_values import constant_nodes, is_overwritten
from torchquilt.graph.qdq import choosing_call, operators_of
from torchquilt.graph.shared_storage import written_tensors
from torchquilt.graph.signature import call_arguments
from torchquilt.graph.subgraphs import Region, regions
from torchquilt.observers import QParams, qparams_together
from torchquilt.pt2e.calibration.calibrate import number_of
from torchquilt.pt2e.observer_points import (
    ConstantPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.qat.fake_quantize import dequantized, fake_quantize


@attrs.frozen
class Noise:
    """Estimated noise.

    Args:
        of_units: unit → the noise that it adds to the outputs, as a share of their signal.
        is_weighted: whether it is that of the outputs; else it is that of each tensor, as a share of its own.
    """

    of_units: Mapping[str, float]
    is_weighted: bool


def estimated_noise(
    prepared: GraphModule,
    decided: Decided,
    batches: Iterable[object],
    limit: int,
    *,
    progress: bool = False,
) -> Noise:
    """Estimate the noise that each unit adds to the outputs.

    Args:
        prepared: a calibrated model.
        decided: its decisions.
        batches: calibration data.
        limit: of so many batches.
        progress: show how far it is.
    """
    probing = copy_model(prepared)
    probes = _Probes(probing, decided)
    written = written_tensors(probing)
    count = 0
    with progress_if(progress, "estimating", number_of(batches, limit), "batches") as show:
        for number, batch in numbered(itertools.islice(batches, limit)):
            args, kwargs = call_arguments(probing, batch)
            if any(map(is_overwritten, probing.graph.find_nodes(op="placeholder"))):
                args, kwargs = pytree.tree_map(_own, (args, kwargs))
            _one_batch(probing, probes, args, kwargs, number)
            # A cache goes on with what was written to it, and not with how to differentiate that.
            for tensor in written:
                tensor.detach_()
            count += 1
            show(count)
    noise = {unit: noise / count for unit, noise in probes.noise.items()}
    return Noise(noise, probes.is_differentiable)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _one_batch(
    model: GraphModule, probes: _Probes, args: tuple[Any, ...], kwargs: dict[str, Any], number: int
) -> None:
    with default_global_state(), leaving_transforms(), torch.random.fork_rng([]):
        torch.manual_seed(number)
        try:
            if probes.is_differentiable:
                with torch.enable_grad():
                    outputs = pytree.tree_leaves(model(*args, **kwargs))
                    # Of what is chosen by argmax there is no gradient, and what is constant has no noise.
                    probes.is_differentiable = any(map(_has_gradient, outputs))
                    loss = _projected(outputs, number)
                    if loss is not None:
                        torch.autograd.backward(loss)
            if not probes.is_differentiable:
                with torch.no_grad():
                    model(*args, **kwargs)
        except CalibrationError:
            raise
        except Exception as error:
            raise batch_error(number, "model and back", error) from error


def _has_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _projected(outputs: list[Any], seed: int) -> torch.Tensor | None:
    """The outputs times random signs, each divided by its root mean square."""
    generator = torch.Generator().manual_seed(seed)
    total = None
    for value in outputs:
        if not _has_gradient(value):
            continue
        signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
        kept = torch.where(value.isfinite(), value, torch.zeros((), dtype=value.dtype))
        scale = float(kept.detach().float().norm())
        term = (kept * signs).sum() / scale if scale else None
        if term is not None:
            total = term if total is None else total + term
    return total


class _Probes:
    """Probes at the points of a model."""

    def __init__(self, model: GraphModule, decided: Decided) -> None:
        self.noise: dict[str, float] = dict.fromkeys(decided.units.values(), 0.0)
        #: a subgraph that is differentiated is traced instead of run, so nothing can be seen in it
        self.is_differentiable = len(regions(model)) == 1
        self._together: dict[Any, QParams] = {}
        found = [module for module in model.modules() if isinstance(module, ObservedPoint)]
        self._together = dict(qparams_together(point.observer for point in found))
        for region in regions(model):
            self._put_in(region, decided)
        generate_code(model)

    def _put_in(self, region: Region, decided: Decided) -> None:
        graph = region.module.graph
        points = {
            name: module
            for name, module in region.module.named_children()
            if isinstance(module, QuantizationPoint)
        }
        constants = constant_nodes(graph, points)
        for number, node in enumerate(list(graph.nodes)):
            if node.op != "call_module" or node.target not in points:
                continue
            point = points[str(node.target)]
            probe = self._probe(region, node, point, constants, points, decided)
            name = f"probe_{number}"
            region.module.add_submodule(name, probe or torch.nn.Identity())
            node.target, node.args = name, node.args[:1]
        for name in points:
            region.module.delete_submodule(name)
        outdate(region.module)

    def _probe(
        self,
        region: Region,
        node: Node,
        point: QuantizationPoint[Any],
        constants: frozenset[Node],
        points: dict[str, Any],
        decided: Decided,
    ) -> _Probe | None:
        if len(node.args) > 1:  # a data-movement operator, whose inputs are rounded: it adds no error
            return None
        unit = _unit_at(region, node, points, decided)
        found = None
        if isinstance(point, ConstantPoint):
            source = node.all_input_nodes[0]
            found = (
                point.qparams_for([constant_value(region.module, source, points)])
                if source in constants
                else None
            )
        elif isinstance(point, ObservedPoint):
            has_data = point.observer.has_data
            found = self._together.get(point.observer) or (point.qparams() if has_data else None)
        elif isinstance(point, FixedPoint):
            found = point.qparams()
        if unit is None or (found is None and not isinstance(point, DynamicPoint)):
            return None
        return _Probe(self, unit, point.spec, found, is_constant=isinstance(point, ConstantPoint))

    def add(self, unit: str, noise: float) -> None:
        """Take in noise at one tensor."""
        if math.isfinite(noise):
            self.noise[unit] = self.noise.get(unit, 0.0) + noise


def _unit_at(region: Region, node: Node, points: dict[str, Any], decided: Decided) -> str | None:
    """The unit that a point belongs to: that of the operator whose output it is, or of the first reader."""
    source = node.all_input_nodes[0]
    while source.op == "call_module" and source.target in points:
        source = source.all_input_nodes[0]
    point = points[str(node.target)]
    name = region.name_of(source)
    if source.op == "call_function" and name in point.names and name in decided.units:
        return decided.units[name]
    pending = list(node.users)
    for user in pending:  # grows while it is walked
        if user.op == "call_module" and user.target in points:
            pending += user.users
        elif region.name_of(user) in decided.units:
            return decided.units[region.name_of(user)]
    return decided.units.get(name)


class _Probe(torch.nn.Module):
    """Passes a tensor through, and measures what rounding it would do to the outputs."""

    def __init__(
        self, probes: _Probes, unit: str, spec: Any, found: QParams | None, *, is_constant: bool
    ) -> None:
        super().__init__()
        self._seen = (probes, unit, spec, found)
        self._is_constant = is_constant
        #: the error of a weight, which is that of every batch
        self._kept: torch.Tensor | None = None
        self._needed = torch.zeros((), requires_grad=True)

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        probes = self._seen[0]
        if probes.is_differentiable:
            result: torch.Tensor = _Through.apply(tensor, self._needed, self)  # type: ignore[no-untyped-call]
            return result
        signal = float(_finite(tensor.detach().float()).square().sum())
        if signal:
            self.measure(tensor, torch.full((), 1 / math.sqrt(signal), dtype=tensor.dtype))
        return tensor

    def measure(self, tensor: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add the square of the error times the gradient."""
        probes, unit, spec, found = self._seen
        error = self._kept
        if error is None:
            error = _rounded(tensor.detach(), spec, found).float().sub_(tensor.float())
            if self._is_constant:
                self._kept = error
        # A mask of -inf has no error, and no part in that of the others.
        moved = _finite(error.mul(gradient.float()).reshape(-1))
        probes.add(unit, float(torch.dot(moved, moved)))


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, _: torch.Tensor, probe: _Probe) -> torch.Tensor:
        context.probe = probe
        context.save_for_backward(tensor)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        (tensor,) = context.saved_tensors
        with torch.no_grad():
            context.probe.measure(tensor, gradients[0])
        return gradients[0] if context.needs_input_grad[0] else None, None, None


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0)


def _rounded(tensor: torch.Tensor, spec: Any, found: QParams | None) -> torch.Tensor:
    """The tensor as its integers stand for it."""
    if found is not None:
        return fake_quantize(tensor, found, spec)
    choose, asked = choosing_call(spec)
    operators = operators_of(spec, choose(tensor.float(), *asked))
    return dequantized(operators.quantize(tensor, *operators.arguments), operators, tensor.dtype)
