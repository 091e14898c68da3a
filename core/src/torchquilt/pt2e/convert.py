"""convert_pt2e: from a calibrated model to one with quantize and dequantize operators.

The operators are torch's own ``quantized_decomposed`` ones. A tensor is quantized once and dequantized
for each of its users, which is the form in which lowering recognises what runs as integers. Constants
are stored as integers; their float values do not stay.
"""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

import attrs
import torch
from torch._subclasses import FakeTensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantized_decomposed operators)
from torch.fx import GraphModule, Node

from torchquilt.annotation import ANNOTATION_KEY
from torchquilt.errors import ModelError
from torchquilt.graph.constants import constant_value
from torchquilt.graph.edits import (
    copy_model,
    drop_unused_tensors,
    erase_unused,
    fake_like,
    free_name,
    store_tensor,
    take_origin,
)
from torchquilt.graph.values import constant_nodes
from torchquilt.observers import QParams, quantize_with_float_zero_point
from torchquilt.pt2e.points import (
    ConstantPoint,
    DerivedPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.reference import to_reference
from torchquilt.pt2e.stage import restore_initial_state, set_stage, stage_of
from torchquilt.spec import Granularity, ZeroPointDomain, dtype_name

AnyPoint: TypeAlias = QuantizationPoint[Any]

_OPS = torch.ops.quantized_decomposed


@attrs.frozen(eq=False)
class _Operators:
    """A quantize operator, its dequantize operator, and what follows the tensor in the call of either."""

    quantize: Any
    dequantize: Any
    arguments: tuple[Any, ...]


def convert_pt2e(prepared: GraphModule, *, use_reference_representation: bool = False) -> GraphModule:
    """Replace each point of a calibrated model by quantize and dequantize operators.

    The prepared model is left as it was: it can be calibrated further and converted again.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned, after calibration.
        use_reference_representation: compute with the integers, as
            :func:`torchquilt.pt2e.reference.to_reference` describes, instead of with what they
            stand for.

    Returns:
        A GraphModule with the signature of the model. It can be run, exported and saved; a process
        that loads it needs ``torch.ao.quantization.fx._decomposed`` imported, and nothing of torchquilt.

    Raises:
        ModelError: the model is not a prepared one.
        CalibrationError: a tensor saw no data, or a constant cannot be quantized as asked.
    """
    _check_is_prepared(prepared)
    model = copy_model(prepared)
    restore_initial_state(model)
    points = {name: module for name, module in model.named_modules() if isinstance(module, QuantizationPoint)}
    conversion = _Conversion(model, points)
    for node in list(model.graph.nodes):
        if node.op == "call_module" and node.target in points:
            conversion.replace(node, points[str(node.target)])
        node.meta.pop(ANNOTATION_KEY, None)  # it names nodes of the prepared graph
    for name in points:
        model.delete_submodule(name)
    drop_unused_tensors(model)
    model.recompile()
    set_stage(model, "converted")
    return to_reference(model) if use_reference_representation else model


def _check_is_prepared(model: object) -> None:
    stage = stage_of(model)
    if stage != "prepared":
        raise ModelError(
            "Only a prepared model can be converted.",
            expected="what prepare_pt2e returned, calibrated",
            got=f"a {stage} model" if stage else f"{type(model).__module__}.{type(model).__qualname__}",
            remedy="prepare_pt2e, then calibrate, then convert_pt2e",
        )


class _Conversion:
    """One run of convert: what was computed for each point, and which constants are stored already."""

    def __init__(self, model: GraphModule, points: dict[str, AnyPoint]) -> None:
        self.model = model
        self.points = points
        self._constants = constant_nodes(model.graph, points)
        self._values: dict[AnyPoint, list[torch.Tensor]] = {}
        for node in model.graph.nodes:
            if node.op == "call_module" and isinstance(points.get(str(node.target)), ConstantPoint):
                self._values.setdefault(points[str(node.target)], []).append(self._value_at(node))
        self._qparams: dict[AnyPoint, QParams] = {}
        self._stored: dict[tuple[AnyPoint, str], str] = {}

    def qparams(self, point: AnyPoint) -> QParams:
        """The parameters of a point, computed once."""
        if point not in self._qparams:
            self._qparams[point] = self._find_qparams(point)
        return self._qparams[point]

    def _find_qparams(self, point: AnyPoint) -> QParams:
        if isinstance(point, ConstantPoint):
            return point.qparams_for(self._values[point])
        if isinstance(point, DerivedPoint):
            return point.qparams_from([self.qparams(self.points[name]) for name in point.sources])
        assert isinstance(point, (ObservedPoint, FixedPoint)), (
            "dynamic points have no parameters of their own"
        )
        return point.qparams()

    def _value_at(self, node: Node) -> torch.Tensor:
        return constant_value(self.model, _behind_points(node, self.points), self.points)

    def replace(self, node: Node, point: AnyPoint) -> None:
        """Put quantize and dequantize in the place of one call of a point."""
        (source,) = node.all_input_nodes
        assert source is not None
        before = node
        with self.model.graph.inserting_before(before):
            if isinstance(point, DynamicPoint):
                operators = self._choose_qparams(node, source, point)
            else:
                operators = self._static_operators(node, point)
            origin = _behind_points(node, self.points)
            if origin in self._constants:
                quantized = self._stored_constant(node, origin, point, operators)
            else:
                quantized = self._call(operators.quantize, (source, *operators.arguments), node)
                quantized.meta["val"] = _fake_cast(source, point.spec.dtype)
        for user in list(node.users):
            with self.model.graph.inserting_before(user):
                user.replace_input_with(node, self._dequantize(quantized, operators, node))
        self.model.graph.erase_node(node)
        erase_unused(source)

    def _dequantize(self, quantized: Node, operators: _Operators, served: Node) -> Node:
        value = served.meta.get("val")
        dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
        arguments: tuple[Any, ...] = (quantized, *operators.arguments)
        keywords: dict[str, Any] = {}
        if operators.dequantize in (
            _OPS.dequantize_per_token.default,
            _OPS.dequantize_per_channel_group.default,
        ):
            arguments = (*arguments, dtype)
        elif dtype is not torch.float32:
            keywords = {"out_dtype": dtype}
        node = self._call(operators.dequantize, arguments, served, keywords)
        node.meta["val"] = value
        return node

    def _call(
        self, target: Any, arguments: tuple[Any, ...], served: Node, keywords: dict[str, Any] | None = None
    ) -> Node:
        node = self.model.graph.call_function(target, arguments, keywords or {})
        take_origin(node, served)
        return node

    def _choose_qparams(self, node: Node, source: Node, point: DynamicPoint) -> _Operators:
        """Compute the parameters from the tensor itself: per token, or per tensor."""
        spec = point.spec
        grid = (spec.quant_min, spec.quant_max, spec.dtype)
        if spec.granularity is Granularity.PER_TOKEN:
            choose = self._call(_OPS.choose_qparams_per_token_asymmetric.default, (source, spec.dtype), node)
            pair = (_OPS.quantize_per_token.default, _OPS.dequantize_per_token.default)
        else:
            op = _OPS.choose_qparams_symmetric if spec.symmetric else _OPS.choose_qparams
            choose = self._call(
                op.tensor, (source, spec.quant_min, spec.quant_max, spec.eps, spec.dtype), node
            )
            pair = (_OPS.quantize_per_tensor.tensor, _OPS.dequantize_per_tensor.tensor)
        choose.meta["val"] = _fake_run(choose.target, choose.args)
        found = []
        for index in range(2):
            item = self._call(operator.getitem, (choose, index), node)
            value = choose.meta["val"]
            item.meta["val"] = value[index] if value is not None else None
            found.append(item)
        return _Operators(*pair, (*found, *grid))

    def _static_operators(self, node: Node, point: AnyPoint) -> _Operators:
        spec, found = point.spec, self.qparams(point)
        grid = (spec.quant_min, spec.quant_max, spec.dtype)
        if spec.granularity is Granularity.PER_TENSOR and not found.zero_point.is_floating_point():
            arguments = (float(found.scale), int(found.zero_point), *grid)
            return _Operators(_OPS.quantize_per_tensor.default, _OPS.dequantize_per_tensor.default, arguments)
        scale = self._read(point, node, "scale", found.scale)
        zero_point = self._read(point, node, "zero_point", found.zero_point)
        if spec.granularity is Granularity.PER_AXIS:
            pair = (_OPS.quantize_per_channel.default, _OPS.dequantize_per_channel.default)
            return _Operators(*pair, (scale, zero_point, spec.ch_axis, *grid))
        if spec.granularity is Granularity.PER_GROUP:
            pair = (_OPS.quantize_per_channel_group.default, _OPS.dequantize_per_channel_group.default)
            return _Operators(*pair, (scale, zero_point, *grid, spec.group_size))
        pair = (_OPS.quantize_per_tensor.tensor, _OPS.dequantize_per_tensor.tensor)
        return _Operators(*pair, (scale, zero_point, *grid))

    def _stored_constant(self, node: Node, origin: Node, point: AnyPoint, operators: _Operators) -> Node:
        """Quantize a constant now, store the integers, and read them."""
        values = [
            constant_value(self.model, argument) if isinstance(argument, Node) else argument
            for argument in operators.arguments
        ]
        value = constant_value(self.model, origin, self.points).float()
        with torch.no_grad():
            if point.spec.zero_point_domain is ZeroPointDomain.FLOAT:
                integers = quantize_with_float_zero_point(value, self.qparams(point), point.spec)
            else:
                integers = operators.quantize(value, *values)
        return self._read(point, node, "", integers.contiguous())

    def _read(self, point: AnyPoint, node: Node, what: str, value: torch.Tensor) -> Node:
        """A node that reads a tensor stored beside the constant or activation it belongs to."""
        origin = _behind_points(node, self.points)
        key = (point, f"{origin.name}.{what}")
        if key not in self._stored:
            base = str(origin.target) if origin.op == "get_attr" else origin.name
            base = f"{base}_{dtype_name(point.spec.dtype)}"
            name = free_name(self.model, f"{base}_{what}" if what else base)
            store_tensor(self.model, name, value)
            self._stored[key] = name
        read = self.model.graph.get_attr(self._stored[key])
        read.meta["val"] = fake_like(node, value)
        return read


def _behind_points(node: Node, points: dict[str, AnyPoint]) -> Node:
    """The node whose value a call of a point passes on."""
    while node.op == "call_module" and str(node.target) in points:
        (node,) = node.all_input_nodes
    return node


def _fake_cast(source: Node, dtype: torch.dtype) -> Any:
    """The fake tensor of ``source`` in another dtype."""
    value = source.meta.get("val")
    if not isinstance(value, FakeTensor):
        return value
    with value.fake_mode:
        return torch.empty_like(value, dtype=dtype)


def _fake_run(target: Any, args: tuple[Any, ...]) -> Any:
    """What an operator returns for the fake tensors of its arguments."""
    values = torch.fx.map_arg(args, lambda node: node.meta.get("val"))
    fake = next((value for value in values if isinstance(value, FakeTensor)), None)
    if fake is None:
        return None
    with fake.fake_mode:
        return target(*values)
