"""Units: groups of operators about which is decided together, and the rules that decide so.

A unit is a module of the model: the innermost one of the operator that does the work of a match, so
``conv → relu`` belongs to the module of the convolution. A decision about it is a rule for its name, which a
recipe can say.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import attrs
from torch.fx import GraphModule, Node

from torchquilt._internal.connected import connected
from torchquilt.graph.cost import multiply_adds
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import overload_name, tensor_of
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.intent.rules import GlobalRule
from torchquilt.pt2e.annotate import Annotated
from torchquilt.quantizers.base import Quantizer, as_quantizer
from torchquilt.quantizers.composable import ComposableQuantizer, leaves_of
from torchquilt.quantizers.pattern_quantizer import PatternQuantizer
from torchquilt.spec.annotation import ANNOTATION_KEY, annotation_of
from torchquilt.spec.config import QuantizationConfig
from torchquilt.spec.qspec import EdgeOrNode, QuantizationSpec

if TYPE_CHECKING:
    from torchquilt.pt2e.sharing_groups import Group

#: Stands in a rule for the operators that come from no module: it names every module, with the least weight.
_EVERYWHERE = "**"


@attrs.frozen
class Choice:
    """A decision about a unit.

    Args:
        name: in words: ``given``, ``float``, or backend and preset as in ``xnnpack:dynamic_int8``.
        leaf: the number of the quantizer that is asked; None where all of them leave the unit in float.
        config: what it is asked for.
    """

    name: str
    leaf: int | None = None
    config: QuantizationConfig | None = None

    def __str__(self) -> str:
        return self.name


#: What the user's own rules say.
GIVEN = Choice("given")
FLOAT = Choice("float")


def unit_name(path: str) -> str:
    """The name of a unit as it is shown."""
    return path or "(root)"


def matches_of(annotated: Annotated) -> list[tuple[Node, ...]]:
    """The nodes that were annotated together: what a match reads and returns is quantized, not what is
    within.
    """
    found: list[tuple[Node, ...]] = []
    for region, groups in annotated.groups:
        quantized = {member for group in groups for member in group.members}
        nodes = [node for node in region.module.graph.nodes if annotation_of(node) is not None]
        found += _matches_among(nodes, quantized)
    return found


def _matches_among(nodes: Iterable[Node], quantized: Container[EdgeOrNode]) -> list[tuple[Node, ...]]:
    nodes = list(nodes)
    links = [
        (node, user)
        for node in nodes
        for user in node.users
        if _is_within(node, user) and node not in quantized and (node, user) not in quantized
    ]
    return connected(nodes, links)


def _is_within(node: Node, user: Node) -> bool:
    one, other = annotation_of(node), annotation_of(user)
    if one is None or other is None or one.pattern != other.pattern:
        return False
    # Weights alone leave both sides of a match in float, so two layers of one kind look like one match.
    return overload_name(node) != overload_name(user)


def units_of(annotated: Annotated) -> dict[Node, str]:
    """Annotated node → the unit that it belongs to."""
    return {node: _unit_of(match) for match in matches_of(annotated) for node in match}


def _unit_of(match: tuple[Node, ...]) -> str:
    return module_path(max(match, key=multiply_adds))


class Composition:
    """A user's quantizer, and what it becomes under other decisions about some units.

    Args:
        quantizer: the user's.
        model: the exported model, as annotated nodes see it.
    """

    def __init__(self, quantizer: object, model: GraphModule) -> None:
        self.quantizer = as_quantizer(quantizer)
        self.leaves = leaves_of(self.quantizer)
        self._nodes = [node for node in nodes_of(model) if node.op == "call_function"]

    def choices(self, *, fewer_bits: bool = True) -> tuple[Choice, ...]:
        """Every preset of every backend that the composition has, in order of precedence.

        Args:
            fewer_bits: also those that only have fewer bits for weights than another preset.
        """
        tables = {
            number: leaf for number, leaf in enumerate(self.leaves) if isinstance(leaf, PatternQuantizer)
        }
        backends = Counter(leaf.table.backend for leaf in tables.values())

        def name_of(number: int) -> str:
            backend = tables[number].table.backend
            return backend if backends[backend] == 1 else f"{backend} {number + 1}"

        return tuple(
            Choice(f"{name_of(number)}:{preset}", number, config)
            for number, leaf in tables.items()
            for preset, config in _presets(leaf, fewer_bits=fewer_bits).items()
        )

    def searchable(self) -> tuple[tuple[str, ...], ...]:
        """For each quantizer the modules about which may be decided otherwise.

        A rule that leaves a module in float, and a quantizer whose rules are about other things, are wishes.
        A module within which rules tell operators apart is none of them: a rule for its name would not.
        """
        return tuple(
            tuple(
                path
                for path, nodes in self._by_path.items()
                if isinstance(leaf, PatternQuantizer)
                and all(_may_differ(leaf, node) for node in nodes)
                and self._can_be_named(leaf, path)
            )
            for leaf in self.leaves
        )

    def with_choices(self, choices: Mapping[str, Choice]) -> Quantizer:
        """The quantizer that decides so; where nothing is chosen, as the user's does.

        Args:
            choices: unit → what is decided about it.
        """
        chosen = {unit: choice for unit, choice in choices.items() if choice != GIVEN}
        if not chosen:
            return self.quantizer
        leaves = [self._leaf(number, leaf, chosen) for number, leaf in enumerate(self.leaves)]
        return leaves[0] if len(leaves) == 1 else ComposableQuantizer(leaves)

    def _leaf(self, number: int, leaf: Quantizer, chosen: Mapping[str, Choice]) -> Quantizer:
        if not isinstance(leaf, PatternQuantizer):
            left = [unit for unit, choice in chosen.items() if choice.leaf != number]
            return Leaving(leaf, left)
        rules: dict[str, QuantizationConfig | None] = {}
        for unit, choice in chosen.items():
            if choice.leaf is None or number < choice.leaf:
                rules[unit] = None
            elif number == choice.leaf:
                rules[unit] = choice.config
        return self._with_rules(leaf, rules)

    def _with_rules(
        self, leaf: PatternQuantizer, rules: Mapping[str, QuantizationConfig | None]
    ) -> PatternQuantizer:
        """A copy of a quantizer with rules for some modules alone, and not for the modules within them."""
        made = copy.copy(leaf)
        unnamed = frozenset(path for path in rules if not self._can_be_named(leaf, path))
        if unnamed:  # in float: no other choice is offered there
            made.intent = made.intent.with_filter(_Without(unnamed, leaf.intent.filter_function))
            rules = {path: config for path, config in rules.items() if path not in unnamed}
        for path in sorted(rules, key=lambda path: path.count(".")):
            for inner in self._below(path):
                if inner not in rules:
                    made.intent = made.intent.with_name(inner, self._given(leaf, inner))
        for path, config in rules.items():
            made.intent = made.intent.with_name(path or _EVERYWHERE, config)
        return made

    @cached_property
    def _by_path(self) -> dict[str, list[Node]]:
        """Module path → its operators."""
        found: dict[str, list[Node]] = {}
        for node in self._nodes:
            found.setdefault(module_path(node), []).append(node)
        return found

    def _can_be_named(self, leaf: PatternQuantizer, path: str) -> bool:
        """Whether rules for the modules within one can say what the user's rules say there."""
        return all(len(self._configs(leaf, inner)) == 1 for inner in self._below(path))

    def _configs(self, leaf: PatternQuantizer, path: str) -> frozenset[QuantizationConfig | None]:
        rules = map(leaf.intent.rule_for, self._by_path[path])
        return frozenset(None if rule is None else rule.config for rule in rules)

    def _below(self, path: str) -> list[str]:
        prefix = f"{path}." if path else ""
        return [one for one in self._by_path if one != path and one.startswith(prefix)]

    def _given(self, leaf: PatternQuantizer, path: str) -> QuantizationConfig | None:
        (found,) = self._configs(leaf, path)
        return found


@attrs.frozen
class _Without:
    """A filter that lets through what another one does, but for some modules."""

    units: Collection[str]
    other: Callable[[Node], bool] | None

    def __call__(self, node: Node) -> bool:
        return module_path(node) not in self.units and (self.other is None or bool(self.other(node)))


def _presets(leaf: PatternQuantizer, *, fewer_bits: bool) -> dict[str, QuantizationConfig]:
    """Name → config of the presets of a quantizer; the widest weights of those with the same activations."""
    presets = {name: make() for name, make in leaf.PRESETS.items()}
    if fewer_bits:
        return presets

    def alike(config: QuantizationConfig) -> object:
        return config.input_activation, config.output_activation

    widest: dict[object, int] = {}
    for config in presets.values():
        widest[alike(config)] = max(widest.get(alike(config), 0), _weight_bits(config))
    return {name: one for name, one in presets.items() if _weight_bits(one) == widest[alike(one)]}


def _weight_bits(config: QuantizationConfig) -> int:
    return 0 if config.weight is None else config.weight.bits


def _may_differ(leaf: PatternQuantizer, node: Node) -> bool:
    if not leaf.intent.rules:
        return True
    rule = leaf.intent.rule_for(node)
    return rule is not None and (rule.config is not None or isinstance(rule, GlobalRule))


class Leaving(Quantizer):
    """A quantizer without a table, whose annotations of some modules are left out."""

    def __init__(self, quantizer: Quantizer, units: Iterable[str]) -> None:
        self._quantizer = quantizer
        self._units = frozenset(units)

    @property
    def name(self) -> str:
        """Name of the quantizer."""
        return self._quantizer.name

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """As the quantizer does."""
        return self._quantizer.transform_for_annotation(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        """As the quantizer does, and then without these modules."""
        before = {node for node in model.graph.nodes if annotation_of(node) is not None}
        made = self._quantizer.annotate(model)
        made = model if made is None else made
        own = [n for n in made.graph.nodes if n not in before and annotation_of(n) is not None]
        quantized = frozenset(edge_or_node for node in own for edge_or_node in _quantized_at(node))
        for match in _matches_among(own, quantized):
            if _unit_of(match) in self._units:
                for node in match:
                    node.meta.pop(ANNOTATION_KEY, None)
        return made

    def folds(self, batch_norm: Node, operator: Node) -> bool | None:
        """As the quantizer says."""
        return self._quantizer.folds(batch_norm, operator)

    def validate(self, model: GraphModule) -> None:
        """As the quantizer does."""
        self._quantizer.validate(model)


def _quantized_at(node: Node) -> Iterator[EdgeOrNode]:
    annotation = annotation_of(node)
    if annotation is not None:
        yield from ((source, node) for source, spec in annotation.input_qspec_map.items() if spec is not None)
        if annotation.output_qspec is not None:
            yield node


def weight_shares(groups: Iterable[Group]) -> dict[str, Fraction]:
    """Name of each stored tensor that is quantized → the bits of its integers, as a share of its own."""
    found: dict[str, Fraction] = {}
    for group in groups:
        for member in group.members:
            producer = member[0] if isinstance(member, tuple) else member
            value = tensor_of(producer) if producer.op == "get_attr" else None
            if value is not None and isinstance(group.spec, QuantizationSpec):
                found[str(producer.target)] = Fraction(group.spec.bits, 8 * value.dtype.itemsize)
    return found
