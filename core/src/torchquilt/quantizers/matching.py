"""Matching: the claims that a quantizer makes on a graph, from its support table and its intent.

No other module brings table, intent and graph together, and this one never writes to the graph. A quantizer
looks at a graph once. The core writes annotations from its claims, and the ledger takes the reasons for all
other nodes from the same matcher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import attrs

from torchquilt.graph.aliasing import Memory
from torchquilt.graph.function_transforms import UNDER_A_TRANSFORM, transformed_nodes
from torchquilt.graph.node_values import (
    KEPT_IN_FLOAT,
    constant_nodes,
    is_empty,
    is_float_tensor,
    overload_name,
)
from torchquilt.graph.training_mode import is_random
from torchquilt.intent.intent import Intent
from torchquilt.intent.rules import Rule
from torchquilt.quantizers.claim import Claim
from torchquilt.quantizers.float_outputs import float_outputs
from torchquilt.quantizers.profitability import not_profitable
from torchquilt.reasons import reason_of
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.config import QuantizationConfig
from torchquilt.spec.qspec import (
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from torchquilt.support.pattern import Match, Reject
from torchquilt.support.table import Sharing, SupportRow, SupportTable

if TYPE_CHECKING:
    from torch.fx import Graph, Node


#: Overload of an operator → the rows whose pattern starts with it, the longest pattern first.
Rows: TypeAlias = Mapping[str, tuple[SupportRow, ...]]


@attrs.frozen(eq=False)
class GraphFacts:
    """Facts about a graph that all quantizers share, so that each is found once."""

    graph: Graph
    constants: frozenset[Node]
    memory: Memory
    transformed: frozenset[Node]

    @classmethod
    def of(cls, graph: Graph) -> GraphFacts:
        """The facts about a graph."""
        return cls(graph, constant_nodes(graph), Memory(graph), transformed_nodes(graph))


class Matcher:
    """Matches the rows of one quantizer on one graph: its claims, and its reasons not to claim other nodes.

    The first call of :meth:`settle` goes over the whole graph. Further calls ask again about operators whose
    answer depends on their neighbours: cheap ones, and those that share their input's parameters. Between
    calls other quantizers annotate; a node that they annotated is never claimed. The cost is linear in the
    nodes of the graph.

    Args:
        table: the quantizer's support table.
        intent: the quantizer's rules.
        facts: facts about the graph.
    """

    def __init__(self, table: SupportTable, intent: Intent, facts: GraphFacts) -> None:
        self.table = table
        self.intent = intent
        self.facts = facts
        #: Rows by the overload of their first operator.
        self.rows: Rows = table.rows_starting_with()
        #: First node of a match → the claim.
        self.claims: dict[Node, Claim] = {}
        #: Node at which rows could start, but no claim does → the reason against each row.
        self.rejected: dict[Node, tuple[Reject, ...]] = {}
        self._open: Iterable[Node] = facts.graph.nodes
        self._claimed: set[Node] = set()
        self._outputs: dict[Node, QuantizationSpec | None] = {}
        # Answers that several rows need. Keys are ids of objects that ``table`` and ``intent`` hold.
        self._troubles: dict[Node, tuple[str, str] | None] = {}
        self._differences: dict[tuple[int, int], tuple[str, ...]] = {}
        self._roles: dict[int, frozenset[str]] = {}

    def settle(self) -> tuple[Claim, ...]:
        """Claim every match that can be claimed so far. Returns the new claims, in graph order."""
        self._claimed, self._outputs = set(), {}
        found: dict[Node, Claim] = {}
        rejected: dict[Node, tuple[Reject, ...]] = {}
        for node in self._open:
            decision = self._decide(node)
            if isinstance(decision, Claim):
                found[node] = decision
                self._keep(decision)
            elif decision:
                rejected[node] = decision
        _leave(found, rejected, not_profitable(found.values()))
        in_float = float_outputs(found.values())
        _leave(found, rejected, in_float.left)
        for node, claim in found.items():
            if claim.match.output in in_float.returned:
                found[node] = attrs.evolve(claim, returns_float=True)
        self._record(found, rejected)
        return tuple(found.values())

    def _record(self, found: Mapping[Node, Claim], rejected: Mapping[Node, tuple[Reject, ...]]) -> None:
        """Record claims and rejections, and the nodes to ask about again."""
        taken = {node for claim in found.values() for node in claim.match.nodes}
        self.claims.update(found)
        for node in found:
            self.rejected.pop(node, None)
        self.rejected.update(rejected)
        self._open = [
            node
            for node, reasons in rejected.items()
            if node not in taken and any(self._may_change(reason, taken) for reason in reasons)
        ]

    def _may_change(self, reason: Reject, taken: set[Node]) -> bool:
        if reason.code == "claimed_by:self":  # by a match that proved not to be profitable
            return reason.nodes[0] not in taken
        known = reason_of(reason.code)
        return known is not None and known.depends_on_neighbours

    def _decide(self, node: Node) -> Claim | tuple[Reject, ...]:
        """The claim of the first row that takes a match from a node, or the reason against each row."""
        rejected: list[Reject] = []
        for row in self.rows.get(overload_name(node), ()):
            found = self.consider(row, node)
            if isinstance(found, Claim):
                return found
            rejected.append(found)
        return tuple(rejected)

    def _keep(self, claim: Claim) -> None:
        self._claimed.update(claim.match.nodes)
        self._outputs[claim.match.output] = self._spec_of_output(claim)

    def _spec_of_output(self, claim: Claim) -> QuantizationSpec | None:
        if claim.row.sharing is Sharing.NONE:
            return claim.config.output_activation
        if claim.row.sharing is Sharing.FOLLOWS_INPUT:
            return self._resolved_spec(claim.match.inputs("input_activation")[0])
        return claim.config.input_activation

    def consider(self, row: SupportRow, node: Node) -> Claim | Reject:
        """Try one row at one node. Checks with the most useful reasons come first."""
        match = row.pattern.match(node, self.facts.constants)
        if isinstance(match, Reject):
            return match
        return (
            self._check_claimed(match)
            or self._check_constant(match)
            or self._check_transform(match)
            or self._check_random(match)
            or self._check_kept_in_float(match)
            or self._check_types(row, match)
            or self._claim_or_refuse(row, match, self._find_rule(match))
        )

    def _claim_or_refuse(
        self, row: SupportRow, match: Match, asked: tuple[Rule, QuantizationConfig] | Reject
    ) -> Claim | Reject:
        if isinstance(asked, Reject):
            return asked
        rule, config = asked
        differences = self._differences_of(row, config)
        if differences:
            return Reject(
                "config_not_supported", match.nodes, f"{row.pattern.name}: {'; '.join(differences)}"
            )
        return (
            self._check_writes(row, match)
            or self._check_constraints(row, match)
            or self._check_neighbour(row, match)
            or Claim(match, row, rule, config)
        )

    def _check_claimed(self, match: Match) -> Reject | None:
        """Reject a match with a node that this quantizer or another one has claimed."""
        for node in match.nodes:
            if node in self._claimed:
                return Reject("claimed_by:self", (node,), f"{node.name} belongs to another match already")
            annotation = annotation_of(node)
            if annotation is not None:
                owner = annotation.quantizer or "another quantizer"
                return Reject(f"claimed_by:{owner}", (node,), f"{node.name} is annotated by {owner}")
        return None

    def _check_writes(self, row: SupportRow, match: Match) -> Reject | None:
        """Reject a match if the model writes into its tensors: prepare left only writes that others see."""
        # A later write into a float output changes nothing here.
        if not self.facts.memory.is_written:
            return None
        written = match.nodes if "output_activation" in dict(row.specs) else match.nodes[:-1]
        spoilt = [
            producer
            for producer, user, _ in match.operands
            if not self.facts.memory.edge_can_be_copied(producer, user)
        ]
        spoilt += [node for node in written if not self.facts.memory.output_can_be_copied(node)]
        if spoilt:
            return Reject("writes_in_place", (spoilt[0],), f"the model writes into {spoilt[0].name}")
        return None

    def _check_constant(self, match: Match) -> Reject | None:
        """Reject a match that computes a constant."""
        if match.output in self.facts.constants:
            text = f"{match.output.name} is computed from constants alone, so it is a constant itself"
            return Reject("constant", match.nodes, text)
        return None

    def _check_transform(self, match: Match) -> Reject | None:
        """Reject a match within a function transform, such as ``torch.vmap``."""
        inside = next((node for node in match.nodes if node in self.facts.transformed), None)
        if inside is None:
            return None
        return Reject("function_transform", (inside,), f"{inside.name} {UNDER_A_TRANSFORM}")

    def _check_random(self, match: Match) -> Reject | None:
        """Reject an operator that draws random numbers: it returns other values each time."""
        drawing = next((node for node in match.nodes if is_random(node)), None)
        if drawing is None:
            return None
        return Reject("random", (drawing,), f"{drawing.name} draws random numbers")

    def _check_kept_in_float(self, match: Match) -> Reject | None:
        """Reject an operator that a recovery pass keeps in float, as the float model says."""
        kept = next((node for node in match.nodes if KEPT_IN_FLOAT in node.meta), None)
        return None if kept is None else Reject("kept_in_float", (kept,), kept.meta[KEPT_IN_FLOAT])

    def _find_rule(self, match: Match) -> tuple[Rule, QuantizationConfig] | Reject:
        """The rule and config that all nodes of the match share, or the reason why there are none."""
        found: tuple[Rule, QuantizationConfig] | None = None
        for node in match.nodes:
            rule = self.intent.rule_for(node)
            if rule is None:
                return Reject("not_asked", (node,), f"no rule asks for {node.name}")
            if rule.config is None:
                return Reject("excluded_by_intent", (node,), f"{node.name} is to stay in float ({rule})")
            if not self.intent.passes_filter(node):
                return Reject("excluded_by_filter", (node,), f"the filter function leaves out {node.name}")
            if found is not None and rule.config != found[1]:
                return Reject(
                    "different_intent", match.nodes, f"{node.name} is asked for with another config ({rule})"
                )
            found = found or (rule, rule.config)
        assert found is not None
        return found

    def _differences_of(self, row: SupportRow, config: QuantizationConfig) -> tuple[str, ...]:
        key = (id(row), id(config))
        if key not in self._differences:
            self._differences[key] = row.differences(config)
        return self._differences[key]

    def _quantized_roles(self, row: SupportRow) -> frozenset[str]:
        if id(row) not in self._roles:
            self._roles[id(row)] = frozenset(role for role, _ in row.specs)
        return self._roles[id(row)]

    def _check_types(self, row: SupportRow, match: Match) -> Reject | None:
        """Reject a match whose tensors to quantize are not floating point, or are empty."""
        quantized = self._quantized_roles(row)
        tensors = [node for node, _, role in match.operands if role in quantized]
        if "output_activation" in quantized or "input_activation" in quantized:
            tensors.append(match.output)
        if any(isinstance(value, complex) for _, _, value in match.scalars):
            return Reject("not_float", match.nodes, f"{match.anchor.name} has a complex operand")
        for node in tensors:
            if node not in self._troubles:
                self._troubles[node] = _trouble_of(node)
            trouble = self._troubles[node]
            if trouble is not None:
                return Reject(trouble[0], (node,), trouble[1])
        return None

    def _check_constraints(self, row: SupportRow, match: Match) -> Reject | None:
        """Reject a match that breaks a constraint of the row."""
        for constraint in row.constraints:
            if not constraint.holds(match):
                return Reject(f"constraint:{constraint.code}", match.nodes, constraint.rejection(match))
        return None

    def _check_neighbour(self, row: SupportRow, match: Match) -> Reject | None:
        """Reject a match that shares its input's parameters, if the input has none that the row takes."""
        if row.sharing is not Sharing.FOLLOWS_INPUT:
            return None
        (producer, *_) = match.inputs("input_activation")
        spec = self._resolved_spec(producer)
        if spec is None:
            return Reject(
                "no_quantized_neighbour",
                match.nodes,
                f"the output of {producer.name} is float, and {match.anchor.name} shares its parameters",
            )
        allowed = dict(row.specs)["input_activation"]
        gaps = [option.differences(spec) for option in allowed]
        if all(gaps):
            return Reject("neighbour_not_supported", match.nodes, f"{producer.name}: {'; '.join(gaps[0])}")
        return None

    def _resolved_spec(self, node: Node) -> QuantizationSpec | None:
        """The spec of a node's output; shared specs are followed to their source.

        A spec with fixed parameters counts as an affine spec with the same integers.
        """
        seen: set[object] = set()
        edge_or_node: object = node
        while edge_or_node not in seen:
            seen.add(edge_or_node)
            if edge_or_node in self._outputs:
                return self._outputs[edge_or_node]
            producer, user = edge_or_node if isinstance(edge_or_node, tuple) else (None, edge_or_node)
            annotation = annotation_of(user)
            if annotation is None:
                return None
            spec = annotation.input_qspec_map.get(producer) if producer else annotation.output_qspec
            if isinstance(spec, QuantizationSpec):
                return spec
            if isinstance(spec, FixedQParamsQuantizationSpec):
                return QuantizationSpec(spec.dtype, spec.quant_min, spec.quant_max)
            if not isinstance(spec, SharedQuantizationSpec):
                return None
            edge_or_node = spec.edge_or_node
        return None


def _leave(
    found: dict[Node, Claim], rejected: dict[Node, tuple[Reject, ...]], left: Mapping[Node, Reject]
) -> None:
    """Take the claims out whose anchors are left in float, and keep the reasons."""
    for node in [node for node, claim in found.items() if claim.match.anchor in left]:
        rejected[node] = (left[found.pop(node).match.anchor],)


def _trouble_of(node: Node) -> tuple[str, str] | None:
    """Code and text for a tensor that cannot be quantized, None for one that can."""
    if not is_float_tensor(node):
        return "not_float", f"{node.name} is not a float32, float16 or bfloat16 tensor"
    if is_empty(node):
        return "no_elements", f"{node.name} has no elements, and so no range"
    return None
