"""Quantize and dequantize operators instead of points, for one region of a prepared model.

The operators are torch's own ``quantized_decomposed`` ones. A tensor is quantized once and dequantized
for each of its users, which is the form in which lowering recognises what runs as integers. Constants
are stored as integers; their float values do not stay.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, TypeAlias, TypeGuard

import torch
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_private import FakeTensor
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import (
    erase_unused,
    fake_cast,
    fake_like,
    free_name,
    store_tensor,
    take_origin,
)
from torchquilt.graph.node_values import constant_nodes
from torchquilt.graph.qdq import QDQOperators, choosing_call, operators_of
from torchquilt.ledger.rows import Caution
from torchquilt.observers import QParams, qparams_together
from torchquilt.pt2e.choices import ChosenConstant
from torchquilt.pt2e.finite_constants import check_is_finite
from torchquilt.pt2e.integer_constants import integers_of, steps_of_quantizing
from torchquilt.pt2e.observer_points import (
    ConstantPoint,
    DerivedPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.scale_limits import Settlement, bounded_operators
from torchquilt.pt2e.symmetric_clipping import cut_off, is_lopsided
from torchquilt.spec.dtypes import dtype_name
from torchquilt.spec.qspec import Granularity

AnyPoint: TypeAlias = QuantizationPoint[Any]


class Conversion:
    """One run of convert: what was computed for each point, and which constants are stored already."""

    def __init__(self, model: GraphModule, points: dict[str, AnyPoint], fold_quantize: bool) -> None:
        self.model = model
        self.points = points
        self.fold_quantize = fold_quantize
        #: constant → the name that what is stored for it begins with
        self._constants = {node: _name_of(node) for node in constant_nodes(model.graph, points)}
        origins: dict[AnyPoint, dict[Node, torch.Tensor]] = {}
        for node in model.graph.nodes:
            if node.op == "call_module" and isinstance(points.get(str(node.target)), ConstantPoint):
                origin = _behind_points(node, points)
                values = origins.setdefault(points[str(node.target)], {})
                values[origin] = constant_value(model, origin, points)
        self._values = {point: list(values.values()) for point, values in origins.items()}
        self._check_constants(origins)
        # Observer points of one constant with equal specs are one, so that its integers are stored once.
        first: dict[Any, AnyPoint] = {}
        self._same = {
            point: first.setdefault((point.spec, frozenset(values), _key_of_choice(point)), point)
            for point, values in origins.items()
        }
        observed = [point for point in points.values() if _is_searched(point)]
        together = qparams_together(point.observer for point in observed)
        #: what is known beforehand; that of the others is found where it is needed
        self._qparams: dict[AnyPoint, QParams] = {
            point: together[point.observer] for point in observed if point.observer in together
        }
        self._stored: dict[tuple[AnyPoint, Node | str], str] = {}
        bounded = bounded_operators(model, points, self._same, self._constants)
        self._settlement = settlement = Settlement(bounded, self.qparams)
        #: the biases that are stored as others, by the names of the nodes that read them
        self.biases = settlement.write_biases(model)
        # What is derived is derived from what was settled.
        derived = [point for point in self._qparams if isinstance(point, DerivedPoint)]
        for point in derived:
            del self._qparams[point]
        self._qparams.update(settlement.qparams)
        #: what to tell of the scales that were raised
        self.cautions = (*settlement.cautions(self._is_zero), *self._cut_off())

    def raised(self) -> dict[str, QParams]:
        """The parameters of the points whose scales were raised, and of derived ones then, by their names."""
        raised = self._settlement.raised
        return {
            name: self.qparams(self._same.get(point, point))
            for name, point in self.points.items()
            if self._same.get(point, point) in raised or (raised and isinstance(point, DerivedPoint))
        }

    def values_of(self, point: AnyPoint) -> list[torch.Tensor]:
        """The constants at a point."""
        return self._values.get(point, [])

    def qparams(self, point: AnyPoint) -> QParams:
        """The parameters of a point, computed once, and those that they are derived from before them."""
        pending = [point]
        while pending:
            current = pending.pop()
            if current in self._qparams:
                continue
            sources = current.sources if isinstance(current, DerivedPoint) else ()
            missing = [self.points[name] for name in sources if self.points[name] not in self._qparams]
            if missing:
                pending += [current, *missing]
            else:
                self._qparams[current] = self._find_qparams(current)
        return self._qparams[point]

    def _cut_off(self) -> Iterator[Caution]:
        """A warning for each symmetric range that has too few integers on the side of many values."""
        for point in self.points.values():
            values = self._values.get(point, [])
            is_other = self._same.get(point) not in (None, point)
            is_idle = isinstance(point, ConstantPoint) and not values
            if is_other or is_idle or not isinstance(point, (ConstantPoint, ObservedPoint)):
                continue
            caution = cut_off(point, self.qparams(point), values) if is_lopsided(point.spec) else None
            if caution is not None:
                yield caution

    def _check_constants(self, origins: dict[AnyPoint, dict[Node, torch.Tensor]]) -> None:
        """Refuse weights, and what stands beside them in float, with elements that are no numbers."""
        for values in origins.values():
            for origin, value in values.items():
                check_is_finite(value, _name_of(origin))
        for node in self.model.graph.nodes:
            sources = node.all_input_nodes
            if node.op != "call_function" or not any(map(self._is_constant_point, sources)):
                continue
            for source in sources:
                if source in self._constants and source.op != "call_module":
                    check_is_finite(constant_value(self.model, source, self.points), _name_of(source))

    def _is_constant_point(self, node: Node) -> bool:
        return isinstance(self.points.get(str(node.target)), ConstantPoint)

    def _is_zero(self, point: AnyPoint, channels: torch.Tensor) -> bool:
        """Whether a point stands at constants that are all zeros in these channels."""
        axis = point.spec.ch_axis
        values = self._values.get(point, [])
        if axis is not None:
            values = [value.movedim(axis, 0)[channels.to(value.device)] for value in values]
        return bool(values) and not any(bool(value.any()) for value in values)

    def _find_qparams(self, point: AnyPoint) -> QParams:
        if isinstance(point, ConstantPoint):
            return point.qparams_for(self._values[point])
        if isinstance(point, DerivedPoint):
            return point.qparams_from([self._qparams[self.points[name]] for name in point.sources])
        assert isinstance(point, (ObservedPoint, FixedPoint)), (
            "dynamic observer points have no parameters of their own"
        )
        return point.qparams()

    def replace(self, node: Node, point: AnyPoint) -> None:
        """Put quantize and dequantize instead of one call of a point."""
        (source,) = node.all_input_nodes
        assert source is not None
        point = self._same.get(point, point)
        before = node
        with self.model.graph.inserting_before(before):
            if isinstance(point, DynamicPoint):
                operators = self._choose_qparams(node, source, point)
            else:
                operators = self._static_operators(node, point)
            origin = _behind_points(node, self.points)
            if origin in self._constants:
                quantized = self._quantize_constant(node, origin, point, operators)
            else:
                quantized = self._call(operators.quantize, (source, *operators.arguments), node)
                quantized.meta["val"] = fake_cast(source, point.spec.dtype)
        for user in list(node.users):
            with self.model.graph.inserting_before(user):
                dequantized = self._dequantize(quantized, operators, node)
            user.replace_input_with(node, dequantized)
            if origin in self._constants:  # and so is what is quantized once more, in another way
                self._constants[dequantized] = self._constants[origin]
        self.model.graph.erase_node(node)
        erase_unused(source)

    def _dequantize(self, quantized: Node, operators: QDQOperators, served: Node) -> Node:
        value = served.meta.get("val")
        dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
        arguments, keywords = operators.dequantizing_to(dtype)
        node = self._call(operators.dequantize, (quantized, *arguments), served, keywords)
        node.meta["val"] = value
        if dtype is not torch.float32 and not operators.is_exact_in_half:
            node.meta["val"] = fake_cast(served, torch.float32)
            node = self._call(torch.ops.aten.to.dtype, (node, dtype), served)
            node.meta["val"] = value
        return node

    def _call(
        self, target: Any, arguments: tuple[Any, ...], served: Node, keywords: dict[str, Any] | None = None
    ) -> Node:
        node = self.model.graph.call_function(target, arguments, keywords or {})
        take_origin(node, served)
        return node

    def _choose_qparams(self, node: Node, source: Node, point: DynamicPoint) -> QDQOperators:
        """Compute the parameters from the tensor itself, in float32: per token, or per tensor.

        Half precision would round the scale to 8 or 11 bits, and overflow where a range is twice the largest
        number.
        """
        spec = point.spec
        seen = self._in_float32(source, node)
        target, asked = choosing_call(spec)
        choose = self._call(target, (seen, *asked), node)
        choose.meta["val"] = _fake_run(choose.target, choose.args)
        found = []
        for index in range(2):
            item = self._call(operator.getitem, (choose, index), node)
            value = choose.meta["val"]
            item.meta["val"] = value[index] if value is not None else None
            found.append(item)
        return operators_of(spec, found)

    def _in_float32(self, source: Node, served: Node) -> Node:
        """A tensor, cast where it is of half precision."""
        value = source.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype is torch.float32:
            return source
        cast = self._call(torch.ops.aten.to.dtype, (source, torch.float32), served)
        cast.meta["val"] = fake_cast(source, torch.float32)
        return cast

    def _static_operators(self, node: Node, point: AnyPoint) -> QDQOperators:
        spec, found = point.spec, self.qparams(point)
        if spec.granularity is Granularity.PER_TENSOR and not found.zero_point.is_floating_point():
            qparams = float(found.scale), int(found.zero_point)
            return operators_of(spec, qparams)
        if isinstance(point, DerivedPoint):
            point.check_fits(found, node.meta.get("val"))
        tensors = (self._read(point, node, name, getattr(found, name)) for name in ("scale", "zero_point"))
        return operators_of(spec, tensors)

    def _quantize_constant(self, node: Node, origin: Node, point: AnyPoint, operators: QDQOperators) -> Node:
        """Quantize a constant: in the graph, or right now, and then read the integers that are stored."""
        value = constant_value(self.model, origin, self.points)
        if self.fold_quantize:
            return self._read(point, node, "", self._integers(value, point, operators))
        quantized = origin
        if _choice_of(point) is not None:  # of what its integers stand for, they are the nearest ones
            following, keywords = operators.dequantizing_to(torch.float32)
            arguments = map(self._number, following)
            value = operators.dequantize(self._integers(value, point, operators), *arguments, **keywords)
            quantized = self._read(point, node, "rounded", value)
        for target, following in steps_of_quantizing(
            value, point.spec, operators.quantize, operators.arguments
        ):
            quantized = self._call(target, (quantized, *following), node)
            quantized.meta["val"] = _fake_run(target, quantized.args)
        return quantized

    def _integers(self, value: torch.Tensor, point: AnyPoint, operators: QDQOperators) -> torch.Tensor:
        """The integers of a constant: the nearest ones, or those that were chosen."""
        arguments = tuple(map(self._number, operators.arguments))
        nearest = integers_of(value, point.spec, operators.quantize, arguments)
        chosen = _choice_of(point)
        return nearest if chosen is None else chosen.instead_of(nearest, self.qparams(point), point.spec)

    def _number(self, argument: Any) -> Any:
        return constant_value(self.model, argument) if isinstance(argument, Node) else argument

    def _read(self, point: AnyPoint, node: Node, what: str, value: torch.Tensor) -> Node:
        """A node that reads a tensor stored beside the constant or activation it belongs to."""
        origin = _behind_points(node, self.points)
        key = (point, what or origin)  # a point with chosen integers stands at one constant
        if key not in self._stored:
            base = self._constants.get(origin, origin.name)
            base = f"{base}_{dtype_name(point.spec.dtype)}"
            name = free_name(self.model, f"{base}_{what}" if what else base)
            store_tensor(self.model, name, value)
            self._stored[key] = name
        read = self.model.graph.get_attr(self._stored[key])
        take_origin(read, node)
        read.meta["val"] = fake_like(node, value)
        return read


def _choice_of(point: AnyPoint) -> ChosenConstant | None:
    return point.chosen if isinstance(point, ConstantPoint) else None


def _key_of_choice(point: AnyPoint) -> tuple[str, ...] | None:
    """Key that is equal for constants that are quantized alike."""
    chosen = _choice_of(point)
    return None if chosen is None else chosen.key


def _is_searched(point: AnyPoint) -> TypeGuard[ObservedPoint]:
    """Whether the range of a point is one that its observer finds."""
    return isinstance(point, ObservedPoint) and point.chosen is None


def _name_of(node: Node) -> str:
    return str(node.target) if node.op == "get_attr" else node.name


def _behind_points(node: Node, points: dict[str, AnyPoint]) -> Node:
    """The node whose value a call of a point returns."""
    while node.op == "call_module" and str(node.target) in points:
        (node,) = node.all_input_nodes
    return node


def _fake_run(target: Any, args: tuple[Any, ...]) -> Any:
    """Run an operator on the fake tensors of its arguments."""
    values = torch.fx.map_arg(args, lambda node: node.meta.get("val"))
    fake = next((value for value in values if isinstance(value, FakeTensor)), None)
    if fake is None:
        return None
    with fake.fake_mode:
        return target(*values)
