"""The rules: which operators are rewritten, on which conditions, and into what."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch.fx import GraphModule, Node

from torchquilt.graph.edits import erase_unused
from torchquilt.graph.node_values import writes
from torchquilt.pt2e.reference.elementwise import added, check_add, multiplied
from torchquilt.pt2e.reference.embedding import check_embedding, embedded
from torchquilt.pt2e.reference.movement import clipped, joined, moved
from torchquilt.pt2e.reference.pooling import averaged, check_mean
from torchquilt.pt2e.reference.sites import ACTIVATIONS, Site, check_sources, site_of
from torchquilt.pt2e.reference.tensors import ActivationQParams
from torchquilt.pt2e.reference.weighted import check_weighted, weighted, weighted_in_float
from torchquilt.pt2e.reference.writer import Writer
from torchquilt.support import operators as ops
from torchquilt.support.operators import Operand, Operator
from torchquilt.support.pattern import Match, OperatorPattern, Reject


@attrs.frozen
class Rule:
    """An operator, and what is written instead.

    Args:
        operator: the operator, alone or with an activation behind it that nothing else reads.
        check: says why a site is not rewritten, or None where it is.
        in_integers: writes the integers of an output, for operators whose output is quantized.
        in_float: writes the output in float, for operators that read integers and may give float.
    """

    operator: Operator
    check: Callable[[Site], Reject | None]
    in_integers: Callable[[Site, Writer, ActivationQParams], Node] | None = None
    in_float: Callable[[Site, Writer], Node] | None = None
    _patterns: tuple[OperatorPattern, ...] = attrs.field(init=False)

    @_patterns.default
    def _longest_first(self) -> tuple[OperatorPattern, ...]:
        fused = (OperatorPattern.of(self.operator, activation) for activation in ACTIVATIONS)
        return (*fused, OperatorPattern.of(self.operator))

    def find(self, model: GraphModule, anchor: Node) -> Site | Reject:
        """The site at an operator that can be rewritten, or why there is none. Changes nothing."""
        if writes(anchor):
            return Reject("writes_in_place", (anchor,), f"{anchor.name} writes into its input")
        answers = [pattern.match(anchor) for pattern in self._patterns]
        matches = [answer for answer in answers if isinstance(answer, Match)]
        site = self._site(model, matches)
        return site if isinstance(site, Reject) else self.check(site) or site

    def _site(self, model: GraphModule, matches: list[Match]) -> Site | Reject:
        """The longest match whose output is quantized, or else the operator alone, read in float."""
        answers = [site_of(model, match) for match in matches] if self.in_integers else []
        for answer in answers:
            if isinstance(answer, Site):
                return answer
        if self.in_float is not None:
            return Site(model, matches[-1], (matches[-1].output,))
        return answers[0]

    def rewrite(self, site: Site) -> None:
        """Replace each output by integer operators, and erase what has no readers any more."""
        for output in site.outputs:
            write = Writer(site.model, output, site.anchor)
            qparams = site.qparams(output)
            if qparams is None:
                assert self.in_float is not None
                written = self.in_float(site, write)
            else:
                assert self.in_integers is not None
                written = self.in_integers(site, write, qparams)
            output.replace_all_uses_with(written)
        _erase(site)


def _erase(site: Site) -> None:
    """Erase what a site was computed with in float, dropout too, which torch does not count as pure."""
    inputs = site.anchor.all_input_nodes
    for node in (*site.outputs, *reversed(site.match.nodes)):
        if not node._erased:  # an output may be the operator itself
            site.model.graph.erase_node(node)
    for node in inputs:
        if not node._erased:
            erase_unused(node)


_UNARY = (Operand("input_activation", 0, "input"),)
_WEIGHTED = (*_UNARY, Operand("weight", 1, "weight"), Operand("bias", 2, "bias"))
_CONV_TRANSPOSE1D = Operator("conv_transpose1d", ("aten.conv_transpose1d.default",), _WEIGHTED)
_CONV_TRANSPOSE2D = Operator("conv_transpose2d", ("aten.conv_transpose2d.input",), _WEIGHTED)
#: A tensor that is quantized already and is quantized anew.
_QUANTIZE = Operator("quantize", ("quantized_decomposed.quantize_per_tensor.default",), _UNARY)

_WEIGHTED_OPERATORS = (ops.LINEAR, ops.CONV1D, ops.CONV2D, _CONV_TRANSPOSE1D, _CONV_TRANSPOSE2D)
# torch has no kernel of integers for max_pool1d.
_NOT_ON_INTEGERS = (ops.DROPOUT, ops.MAX_POOL1D)
_MOVING_OPERATORS = tuple(
    op for op in ops.OPERATORS if op.moves_data and op not in _NOT_ON_INTEGERS and not op.operands[0].is_list
)
# Dropout does nothing in evaluation mode, and no other model is converted.
_PASSING_OPERATORS = (*ACTIVATIONS, ops.DROPOUT, _QUANTIZE)

RULES: tuple[Rule, ...] = (
    *(Rule(op, check_weighted, weighted, weighted_in_float) for op in _WEIGHTED_OPERATORS),
    Rule(ops.ADD, check_add, added),
    Rule(ops.MUL, check_sources, multiplied),
    Rule(ops.CAT, check_sources, joined),
    *(Rule(op, check_mean, averaged) for op in (ops.MEAN, ops.ADAPTIVE_AVG_POOL2D)),
    *(Rule(op, check_sources, moved) for op in _MOVING_OPERATORS),
    *(Rule(op, check_sources, clipped) for op in _PASSING_OPERATORS),
    Rule(ops.EMBEDDING, check_embedding, in_float=embedded),
)

#: Overload of an operator → its rule.
RULE_OF: dict[str, Rule] = {overload: rule for rule in RULES for overload in rule.operator.overloads}
