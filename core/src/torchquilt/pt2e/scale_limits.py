"""Scales that the integers of the kernels can compute with, raised at convert where they are too small.

Two things can leave the range of integers. A bias is an integer in steps of input scale times weight scale:
where these are small, as for a quiet signal or in a pruned channel, it does not fit into the accumulator.
One that is so large that the output is at an end of its range whatever the weights add is made smaller first,
which changes no integer of the output. Then the scale of the weight is raised, of that channel alone if it
has one for each: beside such a bias the weights add but a small part of a step of the output.

And scales of inputs that are much larger than that of the output cannot be requantized. Then the scale of the
output is raised: one step of the accumulator is more than all of the range that calibration saw.

A scale belongs to a group, so other operators read it, and theirs may have to be raised in turn. Scales are
only raised, and each no further than a limit asks, so what is found is the same in whatever order operators
are looked at.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt.errors import CalibrationError
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import fake_like, free_name, store_tensor, take_origin
from torchquilt.ledger.rows import Caution
from torchquilt.observers import QParams
from torchquilt.observers.qparams import raised_to
from torchquilt.pt2e.observer_points import ConstantPoint, DynamicPoint, ObservedPoint, QuantizationPoint
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.arithmetic_limits import ArithmeticLimits
from torchquilt.spec.qspec import OwnSpec, QuantizationSpec, ZeroPointDomain

AnyPoint: TypeAlias = QuantizationPoint[Any]

#: Key of ``Node.meta`` in a prepared graph: the :class:`BoundedOperator` whose output the node is.
BOUNDED_KEY = "torchquilt_bounded"

# A bias has half of the range of an accumulator, and so have the products: 33,000 of the largest of 8 bits.
# Kernels have the accumulator in steps of the output as an integer, too; there a bias has the same share.
_SHARE_OF_BIAS = 0.5
# The kernels check their limits in float32, whose rounding must not decide.
_MARGIN = 1 - 2.0**-10
# So many steps of the output, or fewer, are not seen of a bias that is rounded.
_SMALL_STEP = 1 / 8
# A scale that is raised so often belongs to a circle of operators, each of which asks for more than the last.
_MOST_RAISES = 64
_LARGEST = torch.finfo(torch.float32).max


@attrs.frozen
class BoundedOperator:
    """An operator whose kernel has limits, by names in the region of the graph that it is in.

    Args:
        limits: the limits.
        inputs: points of the activations that it reads.
        weight: the point of its weight, None where there is none.
        bias: the constant that is its bias and the node that reads it, None where there is none.
        fan_in: how many products are summed up for an element of the output.
        output: the point of its output.
    """

    limits: ArithmeticLimits
    inputs: tuple[str, ...]
    weight: str | None
    bias: tuple[str, str] | None
    fan_in: int
    output: str


@attrs.frozen(eq=False)
class Bounded:
    """The same with the points themselves.

    Args:
        node: name of the operator, for errors and warnings.
        limits: the limits.
        inputs: points of activations.
        weight: the point of the weight.
        output: the point of the output.
        bias: the value of the bias, one element for each output channel or one in all.
        reader: the node of the bias, and the node that reads it.
        fan_in: how many products are summed up for an element of the output.
    """

    node: str
    limits: ArithmeticLimits
    inputs: tuple[AnyPoint, ...]
    weight: AnyPoint | None
    output: AnyPoint
    bias: torch.Tensor | None
    reader: tuple[Node, Node] | None
    fan_in: int

    @property
    def points(self) -> tuple[AnyPoint, ...]:
        """The points whose scales it reads."""
        return (*self.inputs, *(() if self.weight is None else (self.weight,)), self.output)

    def step(self, qparams: Mapping[AnyPoint, QParams]) -> torch.Tensor:
        """Step of the accumulator, in float64: one number, or one for each output channel."""
        step = torch.ones((), dtype=torch.float64)
        for point in self.points[:-1]:
            step = step * qparams[point].scale.double().cpu()
        return step

    @property
    def most_steps(self) -> float:
        """Number of steps of the accumulator, or of the output, that a bias may have."""
        assert self.limits.accumulator_bits is not None
        return _SHARE_OF_BIAS * 2.0 ** (self.limits.accumulator_bits - 1)

    @property
    def _share_of_products(self) -> float:
        """Largest sum of all products, in :attr:`most_steps`; no more than half."""
        assert self.weight is not None
        of_input = math.prod(_span(point.spec) for point in self.inputs)
        return min(self.fan_in * of_input * _span(self.weight.spec) / self.most_steps, 0.5)

    def largest_bias(self, qparams: Mapping[AnyPoint, QParams]) -> torch.Tensor:
        """The bias, for each channel, from which on the output is at an end of its range."""
        output = qparams[self.output].scale.double().cpu()
        products = self._share_of_products * self.most_steps * self.step(qparams)
        return torch.minimum(output * _span(self.output.spec) + products, output * self.most_steps)

    def _least_step(self, qparams: Mapping[AnyPoint, QParams]) -> torch.Tensor:
        """The smallest step of the accumulator for which the bias fits, as large as it has to be."""
        assert self.bias is not None
        output = qparams[self.output].scale.double().cpu()
        largest = output * min(_span(self.output.spec) / (1 - self._share_of_products), self.most_steps)
        return torch.minimum(self.bias.abs(), largest) / self.most_steps

    def demands(self, qparams: Mapping[AnyPoint, QParams]) -> Iterable[tuple[AnyPoint, torch.Tensor, str]]:
        """The smallest scale that each point may have as the others are, and what for."""
        limits = self.limits
        if self.bias is not None and self.weight is not None and limits.accumulator_bits is not None:
            weight = qparams[self.weight].scale
            least = self._least_step(qparams) / self.step(qparams) * weight.double().cpu()
            least = least.amax() if weight.dim() == 0 else least.expand(weight.shape)
            yield self.weight, least, f"the bias of {self.node} fits into {limits.accumulator_bits} bits"
        text = f"the integers of {self.node} can be computed from those of its inputs"
        if limits.product_ratio is not None:
            yield self.output, self.step(qparams).amax() / (limits.product_ratio * _MARGIN), text
        if limits.input_ratio is not None:
            largest = max(float(qparams[point].scale.amax()) for point in self.inputs)
            least = torch.tensor(largest, dtype=torch.float64) / (limits.input_ratio * _MARGIN)
            yield self.output, least, text


def _span(spec: OwnSpec) -> int:
    """Largest distance of the integers of a spec, zero among them."""
    return max(spec.quant_max, 0) - min(spec.quant_min, 0)


def bounded_operators(
    model: GraphModule,
    points: Mapping[str, AnyPoint],
    same: Mapping[AnyPoint, AnyPoint],
    constants: Container[Node],
) -> Iterator[Bounded]:
    """The operators of one region of a prepared graph that have limits.

    Args:
        model: the region.
        points: name → point.
        same: point → the one whose parameters it takes.
        constants: the nodes that are computed from stored tensors alone.

    Raises:
        CalibrationError: a bias has elements that are no numbers, or infinite.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    for node in nodes.values():
        found: BoundedOperator | None = node.meta.get(BOUNDED_KEY)
        if found is None or annotation_of(node) is None:  # it was left in float
            continue
        names = (*found.inputs, *(() if found.weight is None else (found.weight,)), found.output)
        own = [points.get(name) for name in names]
        if any(point is None or isinstance(point, DynamicPoint) for point in own):
            continue  # its parameters are found when it runs
        *inputs, output = (same.get(point, point) for point in own if point is not None)
        weight = None if found.weight is None else inputs.pop()
        reader = None if found.bias is None else (nodes[found.bias[0]], nodes[found.bias[1]])
        bias = None
        if reader is not None and reader[0] in constants:
            bias = constant_value(model, reader[0], points).double().cpu().reshape(-1)
        name = node.name if found.bias is None else found.bias[1]
        yield Bounded(name, found.limits, tuple(inputs), weight, output, bias, reader, found.fan_in)


class Settlement:
    """Scales of one region that keep the limits of all its operators.

    The cost is linear in the operators: each is looked at once, and again where what it reads was raised.

    Args:
        operators: the operators that have limits.
        find: the parameters of a point, as calibrated.
    """

    def __init__(self, operators: Iterable[Bounded], find: Callable[[AnyPoint], QParams]) -> None:
        self._operators = tuple(operators)
        self._before = {point: find(point) for one in self._operators for point in one.points}
        #: the parameters of every point that an operator with limits reads
        self.qparams = dict(self._before)
        self._why: dict[AnyPoint, str] = {}
        self._settle()

    def _settle(self) -> None:
        readers: dict[AnyPoint, list[Bounded]] = {}
        for one in self._operators:
            for point in dict.fromkeys(one.points):
                readers.setdefault(point, []).append(one)
        raises: dict[AnyPoint, int] = {}
        pending = deque(self._operators)
        waiting = set(map(id, pending))
        while pending:
            operator = pending.popleft()
            waiting.discard(id(operator))
            for point, least, why in operator.demands(self.qparams):
                if not bool((least > self.qparams[point].scale.cpu()).any()):
                    continue
                raises[point] = raises.get(point, 0) + 1
                self._raise(
                    point,
                    least,
                    why,
                    operator,
                    is_last=raises[point] >= _MOST_RAISES or bool((least > _LARGEST).any()),
                )
                for reader in readers[point]:
                    if id(reader) not in waiting:
                        waiting.add(id(reader))
                        pending.append(reader)

    def _raise(
        self, point: AnyPoint, least: torch.Tensor, why: str, operator: Bounded, *, is_last: bool
    ) -> None:
        found, spec = self.qparams[point], point.spec
        can_be_raised = isinstance(point, (ConstantPoint, ObservedPoint))
        if is_last or not can_be_raised or spec.zero_point_domain is ZeroPointDomain.FLOAT:
            raise CalibrationError(
                "No scale lets the integers of this operator be computed.",
                node=operator.node,
                expected=f"a scale of at least {float(least.amax()):.4g} at {', '.join(point.names)}, "
                f"so that {why}",
                got=f"{float(found.scale.amax()):.4g}"
                + (", which its own readers have raised again and again" if is_last else f" ({spec})"),
                remedy="leave it in float, or calibrate with data of other magnitudes",
            )
        assert isinstance(spec, QuantizationSpec)
        self.qparams[point] = raised_to(found, least, spec)
        self._why.setdefault(point, why)

    @property
    def raised(self) -> frozenset[AnyPoint]:
        """The points whose scales were raised."""
        return frozenset(self._why)

    def cautions(self, loses_nothing: Callable[[AnyPoint, torch.Tensor], bool]) -> tuple[Caution, ...]:
        """Cautions about the scales that were raised.

        Args:
            loses_nothing: whether all numbers of these channels of a point are zeros anyway.
        """
        found = []
        for point, why in self._why.items():
            before, after = self._before[point].scale, self.qparams[point].scale
            raised = after > before
            if loses_nothing(point, raised):
                continue
            which = f" of {int(raised.sum())} of its {raised.numel()} channels" if raised.dim() else ""
            factor = float((after / before).amax())
            text = (
                f"its scale{which} is up to {factor:,.3g} times as large as calibration chose it, "
                f"so that {why}"
            )
            found.append(Caution(", ".join(point.names), "scale_raised", text))
        return tuple(found)

    def write_biases(self, model: GraphModule) -> dict[str, torch.Tensor]:
        """Store each bias as the integers of the runtime stand for it, where that can be seen.

        Q/DQ adds the bias in float, and the runtime as an integer. One that the runtime could not hold is
        made smaller. And where the step of the accumulator is not much smaller than that of the output, Q/DQ
        and runtime would differ by more than rounding.

        Returns:
            The biases that are stored as others, by the names of the nodes that read them.
        """
        written: dict[str, torch.Tensor] = {}
        for one in self._operators:
            if one.bias is None or one.reader is None or one.limits.accumulator_bits is None:
                continue
            step, output = one.step(self.qparams), self.qparams[one.output].scale.double().cpu()
            most = one.most_steps * torch.minimum(step, output)
            largest = one.largest_bias(self.qparams)
            settled = torch.where(one.bias.abs() > most, one.bias.clamp(-largest, largest), one.bias)
            if bool((step > _SMALL_STEP * output).any()):
                settled = torch.round(settled / step) * step
            if not torch.equal(settled, one.bias.expand_as(settled)):
                written[one.reader[1].name] = self._store_bias(model, *one.reader, settled)
        return written

    def _store_bias(self, model: GraphModule, bias: Node, user: Node, settled: torch.Tensor) -> torch.Tensor:
        value = bias.meta["val"]
        shape = value.shape if settled.numel() == value.numel() else settled.shape
        stored = settled.to(value.dtype).to(value.device).reshape(shape)
        name = free_name(model, f"{bias.target if bias.op == 'get_attr' else bias.name}_settled")
        store_tensor(model, name, stored)
        with model.graph.inserting_before(user):
            read = model.graph.get_attr(name)
        take_origin(read, user)
        read.meta["val"] = fake_like(bias, stored)
        user.replace_input_with(bias, read)
        return stored
