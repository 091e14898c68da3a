"""Sites in a converted graph that a rule can be about: an operator between dequantize and quantize.

Finding one reads the graph and writes nothing. Where there is none the answer is a
:class:`torchquilt.support.pattern.Reject` that says why.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs
from torch.fx import GraphModule, Node

from torchquilt.graph.node_values import arguments_of, overload_name
from torchquilt.pt2e.reference.tensors import ActivationQParams, PerTensor, Quantized, dequantized, qparams_of
from torchquilt.spec.config import Role
from torchquilt.support import operators as ops
from torchquilt.support.pattern import Match, Reject

#: Activations that only cut off: it costs nothing, since integers of an output are clamped anyway.
ACTIVATIONS = (ops.RELU, ops.RELU6, ops.HARDTANH, ops.CLAMP)

_Bounds: TypeAlias = tuple[float | None, float | None]


@attrs.frozen(eq=False)
class Site:
    """An operator, perhaps with an activation behind it, and what is quantized around it.

    Args:
        model: the model that it is in.
        match: the operators.
        outputs: the nodes that are going to be computed from integers: the quantize operators that read the
            match, or, where it is read in float, its last node itself.
    """

    model: GraphModule
    match: Match
    outputs: tuple[Node, ...]

    @property
    def anchor(self) -> Node:
        """The operator."""
        return self.match.anchor

    @property
    def arguments(self) -> dict[str, Any]:
        """Its arguments by name, in the order of its schema."""
        return arguments_of(self.anchor)

    def read(self, role: Role) -> tuple[Quantized | None, ...]:
        """The operands of a role; None for each that is not quantized."""
        return tuple(dequantized(node) for node in self.match.inputs(role))

    @property
    def sources(self) -> tuple[PerTensor, ...]:
        """The activations that are read, where :func:`check_sources` found that each has one scale."""
        return tuple(source for source in self.read("input_activation") if isinstance(source, PerTensor))

    def qparams(self, output: Node) -> ActivationQParams | None:
        """The parameters of an output, less what the activations cut off; None where it is read in float."""
        qparams = qparams_of(output)
        for bounds in map(_bounds, self.match.nodes):
            if qparams is not None and bounds is not None:
                qparams = qparams.clamped(*bounds)
        return qparams


def site_of(model: GraphModule, match: Match) -> Site | Reject:
    """The site of a match whose value is quantized by all that read it, or that quantizes itself."""
    last = match.output
    if not all(map(_has_plain_bounds, match.nodes)):
        return Reject("bounds", match.nodes, f"the bounds of {last.name} are not numbers")
    outputs = (last,) if qparams_of(last) else tuple(last.users)
    if not outputs or None in map(qparams_of, outputs):
        return Reject("output_not_quantized", (last,), f"{last.name} is read in float")
    return Site(model, match, outputs)


def check_sources(site: Site) -> Reject | None:
    """Reject an operator unless each activation that it reads is quantized with one fixed scale."""
    anchor = site.anchor
    if site.match.scalars:
        return Reject("scalar", (anchor,), f"{anchor.name} reads a number that is not quantized")
    if not all(isinstance(source, PerTensor) for source in site.read("input_activation")):
        text = f"an input of {anchor.name} is not quantized, or not with one fixed scale"
        return Reject("input_not_quantized", (anchor,), text)
    return None


def _bounds(node: Node) -> _Bounds | None:
    """Bounds of an activation; None for other operators."""
    name = overload_name(node)
    if name in ops.RELU.overloads:
        return (0.0, None)
    if name in ops.RELU6.overloads:
        return (0.0, 6.0)
    if name in ops.HARDTANH.overloads:
        arguments = arguments_of(node)
        return (arguments["min_val"], arguments["max_val"])
    if name in ops.CLAMP.overloads:
        arguments = arguments_of(node)
        return (arguments.get("min"), arguments.get("max"))  # clamp_min has no max
    return None


def _has_plain_bounds(node: Node) -> bool:
    return all(bound is None or isinstance(bound, (int, float)) for bound in _bounds(node) or ())
