"""What the user asked for, and where: rules, and the one that decides for a node.

The most specific rule wins: a module name over an object type over the global config. Among module
names the one with the most parts, among types an operator over a module class, among module classes the
innermost. A config of None means "leave it in float". A filter function narrows all of it.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING

import attrs

from torchquilt.config import QuantizationConfig
from torchquilt.errors import IntentError
from torchquilt.graph.bodies import nodes_of
from torchquilt.graph.decomposition import decomposed_from, explanation
from torchquilt.graph.scope import Scope, is_inside, module_path, module_paths, scopes_of
from torchquilt.graph.values import overload_name
from torchquilt.operators import OPERATORS, ObjectType

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


@attrs.frozen(cache_hash=True)
class ModuleNameRule:
    """A config for the modules of this name or pattern and all that is inside them."""

    name: str
    config: QuantizationConfig | None

    def matches(self, node: Node) -> bool:
        """Whether the rule is about a node, also where a more specific one decides."""
        return is_inside(module_path(node), self.name)

    @property
    def is_pattern(self) -> bool:
        """Whether the name stands for several modules."""
        return any(letter in self.name for letter in "*?[")

    @property
    def specificity(self) -> tuple[int, int]:
        """More parts are more specific; among as many, more letters that stand for themselves."""
        return self.name.count("."), len(self.name) - sum(map(self.name.count, "*?[]"))

    def __str__(self) -> str:
        return f"module {self.name}"


@attrs.frozen(cache_hash=True)
class ObjectTypeRule:
    """A config for every node that comes from a type of module or of operator."""

    type: ObjectType
    config: QuantizationConfig | None

    def matches(self, node: Node) -> bool:
        """Whether the rule is about a node, also where a more specific one decides."""
        if self.type.kind == "module":
            return any(_is_instance(scope, node, self.type.name) for scope in scopes_of(node))
        return overload_name(node) in self.type.overloads

    def __str__(self) -> str:
        return f"type {self.type.name}"


@attrs.frozen(cache_hash=True)
class GlobalRule:
    """A config for everything that no other rule is about."""

    config: QuantizationConfig | None

    def matches(self, node: Node) -> bool:
        """Every node."""
        return True

    def __str__(self) -> str:
        return "everywhere"


Rule = ModuleNameRule | ObjectTypeRule | GlobalRule


@attrs.frozen
class Intent:
    """All rules of one quantizer. A value: every change makes a new one.

    Args:
        global_rule: for what no other rule is about; None: nothing is asked there.
        type_rules: in the order in which they were given.
        name_rules: in the order in which they were given.
        filter_function: only nodes for which it returns true are asked for.
    """

    global_rule: GlobalRule | None = None
    type_rules: tuple[ObjectTypeRule, ...] = ()
    name_rules: tuple[ModuleNameRule, ...] = ()
    filter_function: Callable[[Node], bool] | None = None

    def with_global(self, config: QuantizationConfig | None) -> Intent:
        """The same with another global rule."""
        return attrs.evolve(self, global_rule=GlobalRule(config))

    def with_type(self, kind: ObjectType, config: QuantizationConfig | None) -> Intent:
        """The same with a rule for a type; one for the same type is replaced."""
        kept = tuple(rule for rule in self.type_rules if rule.type != kind)
        return attrs.evolve(self, type_rules=(*kept, ObjectTypeRule(kind, config)))

    def with_name(self, name: str, config: QuantizationConfig | None) -> Intent:
        """The same with a rule for a module; one for the same name is replaced."""
        kept = self.name_rules
        if name in map(attrgetter("name"), kept):  # so that many rules are added fast
            kept = tuple(rule for rule in kept if rule.name != name)
        return attrs.evolve(self, name_rules=(*kept, ModuleNameRule(name, config)))

    def with_filter(self, function: Callable[[Node], bool] | None) -> Intent:
        """The same with another filter."""
        return attrs.evolve(self, filter_function=function)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule, the most general first."""
        return (*((self.global_rule,) if self.global_rule else ()), *self.type_rules, *self.name_rules)

    def rule_for(self, node: Node) -> Rule | None:
        """The rule that decides for a node, or None where nothing was asked. Ignores the filter."""
        named = self._named.about(node)
        if named:
            return max(named, key=lambda rule: rule.specificity)
        about = self._types_about(node)
        for rule in reversed(about):
            if rule.type.kind != "module":
                return rule
        for scope in reversed(scopes_of(node)):
            for rule in about:
                if _is_instance(scope, node, rule.type.name):
                    return rule
        return self.global_rule

    def passes_filter(self, node: Node) -> bool:
        """Whether the filter lets the node through.

        Raises:
            IntentError: the filter function itself failed; its exception is the cause.
        """
        if self.filter_function is None:
            return True
        try:
            return bool(self.filter_function(node))
        except Exception as error:
            raise IntentError(
                "The filter function failed.",
                node=node,
                expected="a function that answers true or false for every node of the graph",
                got=f"{type(error).__name__}: {error}",
                remedy="let it return False for nodes that it is not about",
            ) from error

    def problems(self, model: GraphModule, quantizer: str) -> tuple[IntentError, ...]:
        """Rules that cannot take effect in this model: about nothing, or decided by others everywhere.

        Args:
            model: the model as it was exported, before anything in it was folded or rewritten.
            quantizer: who has the rules, for the errors.
        """
        deciders: dict[Rule, dict[Rule | None, None]] = {}
        for node in nodes_of(model):
            if node.op == "call_function":
                about: list[Rule] = [*self._named.about(node), *self._types_about(node)]
                for rule in about:
                    deciders.setdefault(rule, {})[self.rule_for(node)] = None
        names = {name for name, _ in model.named_modules()}
        found = []
        rules: tuple[Rule, ...] = (*self.name_rules, *self.type_rules)
        for rule in rules:
            others = deciders.get(rule)
            if others is None:
                if not _names_a_module(rule, names):
                    found.append(_about_nothing(rule, model, quantizer))
            elif rule not in others:
                found.append(
                    IntentError(
                        f"The rule for {rule} never decides: more specific rules cover all that it is about.",
                        quantizer=quantizer,
                        expected=f"a node for which {rule} is the most specific rule",
                        got=", ".join(dict.fromkeys(map(str, others))),
                        remedy="remove it, or narrow the other rules",
                    )
                )
        return tuple(found)

    @cached_property
    def _named(self) -> _NamedRules:
        return _NamedRules(self.name_rules)

    def _types_about(self, node: Node) -> list[ObjectTypeRule]:
        return [rule for rule in self.type_rules if rule.matches(node)]


class _NamedRules:
    """Rules by the name that they are for, so that a node is not held against each of them."""

    def __init__(self, rules: tuple[ModuleNameRule, ...]) -> None:
        self._position = {rule: number for number, rule in enumerate(rules)}
        self._plain = {rule.name: rule for rule in reversed(rules) if not rule.is_pattern}
        self._patterns = tuple(rule for rule in rules if rule.is_pattern)

    def about(self, node: Node) -> list[ModuleNameRule]:
        """The rules that match a node, in the order in which they were given."""
        path = module_path(node)
        parts = path.split(".") if path else []
        around = (".".join(parts[:count]) for count in range(len(parts) + 1))
        found = [self._plain[name] for name in around if name in self._plain]
        found += [rule for rule in self._patterns if rule.matches(node)]
        return sorted(found, key=self._position.__getitem__)


def _is_instance(scope: Scope, node: Node, class_name: str) -> bool:
    """Whether the module of a scope is of a class.

    In bodies of control flow non-strict export does not say the class. There it is the one that the operator
    comes from, if it comes from one.
    """
    if scope.type_name:
        return scope.type_name == class_name
    target = str(node.target)
    return any(class_name in known.modules and target in known.overloads for known in OPERATORS)


def _names_a_module(rule: Rule, names: set[str]) -> bool:
    """Whether a rule names a module that exists though no operator is left of it (dropout, an identity)."""
    if not isinstance(rule, ModuleNameRule):
        return False
    if not rule.is_pattern:
        return rule.name in names
    return any(is_inside(name, rule.name) for name in names if name)


def _about_nothing(rule: Rule, model: GraphModule, quantizer: str) -> IntentError:
    if isinstance(rule, ModuleNameRule):
        wanted = rule.name
        known = module_paths(nodes_of(model)) | {name for name, _ in model.named_modules()}
        problem, otherwise = f"No module is called {wanted!r}.", "model.named_modules() lists the names"
        expected = "the name of a module of the exported model"
    else:
        assert isinstance(rule, ObjectTypeRule)
        wanted = rule.type.name
        known = frozenset(scope.type_name for node in nodes_of(model) for scope in scopes_of(node))
        known |= {str(node.target) for node in nodes_of(model) if node.op == "call_function"}
        problem, otherwise = f"Nothing in this model comes from {wanted}.", "remove the rule"
        expected = "a module class or an operator that the model uses"
    near = difflib.get_close_matches(wanted, sorted(known), n=3, cutoff=0.5)
    for node in model.graph.nodes:
        if isinstance(rule, ObjectTypeRule) and rule.type.is_of(decomposed_from(node)):
            near, otherwise = [], explanation(node)
    return IntentError(
        problem,
        quantizer=quantizer,
        expected=expected,
        got=wanted,
        remedy=f"did you mean {' or '.join(near)}?" if near else otherwise,
    )
