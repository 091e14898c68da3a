"""What the user asked for, and where: rules, and the one that decides for a node.

The most specific rule wins: a module name over an object type over the global config. Among module
names the longest, among types an operator over a module class, among module classes the innermost.
A config of None means "leave it in float". A filter function narrows all of it.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from torchquilt.config import QuantizationConfig
from torchquilt.errors import IntentError
from torchquilt.graph.scope import is_inside, module_paths, scopes_of
from torchquilt.operators import ObjectType

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


@attrs.frozen
class ModuleNameRule:
    """A config for the module of this name and all that is inside it."""

    name: str
    config: QuantizationConfig | None

    def __str__(self) -> str:
        return f"module {self.name}"


@attrs.frozen
class ObjectTypeRule:
    """A config for every node that comes from a type of module or of operator."""

    type: ObjectType
    config: QuantizationConfig | None

    def __str__(self) -> str:
        return f"type {self.type.name}"


@attrs.frozen
class GlobalRule:
    """A config for everything that no other rule is about."""

    config: QuantizationConfig | None

    def __str__(self) -> str:
        return "everywhere"


Rule = ModuleNameRule | ObjectTypeRule | GlobalRule


@attrs.frozen
class Intent:
    """All rules of one quantizer. A value: every change makes a new one.

    Args:
        global_rule: for what no other rule is about; None: nothing is asked there.
        type_rules, name_rules: in the order in which they were given.
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
        kept = tuple(rule for rule in self.name_rules if rule.name != name)
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
        scopes = scopes_of(node)
        path = scopes[-1].path if scopes else ""
        named = [rule for rule in self.name_rules if is_inside(path, rule.name)]
        if named:
            return max(named, key=lambda rule: len(rule.name))
        overload = str(node.target) if node.op == "call_function" else ""
        for rule in reversed(self.type_rules):
            if overload in rule.type.overloads:
                return rule
        for scope in reversed(scopes):
            for rule in reversed(self.type_rules):
                if rule.type.kind == "module" and rule.type.name == scope.type_name:
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

    def check(self, model: GraphModule, quantizer: str) -> None:
        """Refuse rules that are about nothing in this model.

        Raises:
            IntentError: a module name or an object type that no node comes from.
        """
        paths = module_paths(model.graph) | {name for name, _ in model.named_modules()}
        for rule in self.name_rules:
            if not any(is_inside(path, rule.name) for path in paths):
                near = difflib.get_close_matches(rule.name, sorted(paths), n=3, cutoff=0.5)
                raise IntentError(
                    f"No module is called {rule.name!r}.",
                    quantizer=quantizer,
                    expected="the name of a module of the exported model",
                    got=rule.name,
                    remedy=f"did you mean {' or '.join(near)}?" if near else "see model.named_modules()",
                )
        types = {scope.type_name for node in model.graph.nodes for scope in scopes_of(node)}
        overloads = {str(node.target) for node in model.graph.nodes if node.op == "call_function"}
        for type_rule in self.type_rules:
            kind = type_rule.type
            if kind.name not in types if kind.kind == "module" else overloads.isdisjoint(kind.overloads):
                near = difflib.get_close_matches(kind.name, sorted(types | overloads), n=3)
                raise IntentError(
                    f"Nothing in this model comes from {kind.name}.",
                    quantizer=quantizer,
                    expected="a module class or an operator that the model uses",
                    got=kind.name,
                    remedy=f"did you mean {' or '.join(near)}?" if near else "remove the rule",
                )
