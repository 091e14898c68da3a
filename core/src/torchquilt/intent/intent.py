"""Intent of the user: the rules of one quantizer, and those that cannot take effect.

A config of None means "leave it in float". A filter function narrows all rules.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING

import attrs

from torchquilt.errors import IntentError
from torchquilt.graph.decomposition import decomposed_from, explanation
from torchquilt.graph.module_scope import module_paths, scopes_of
from torchquilt.graph.node_values import WRITTEN_FOR, overload_name
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.intent.rules import GlobalRule, ModuleNameRule, ObjectTypeRule, Rule, RuleIndex
from torchquilt.spec.config import QuantizationConfig
from torchquilt.support.object_type import ObjectType, class_called

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


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
        return self._index.deciding(node)

    def passes_filter(self, node: Node) -> bool:
        """Whether the filter lets the node through.

        A filter is asked of the model as its author wrote it. What a backend wrote in another form stands for
        what the filter let through before.

        Raises:
            IntentError: the filter function itself failed; its exception is the cause.
        """
        if self.filter_function is None or WRITTEN_FOR in node.meta:
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

        The global rule is for what no other rule is about, so it has its effect also where that is nothing.

        Args:
            model: the model as it was exported, before anything in it was folded or rewritten.
            quantizer: who has the rules, for the errors.
        """
        rules: tuple[ModuleNameRule | ObjectTypeRule, ...] = (*self.name_rules, *self.type_rules)
        if not rules:
            return ()
        nodes = [node for node in nodes_of(model) if node.op == "call_function"]
        deciders: dict[Rule, dict[Rule | None, Node]] = {}
        for node in nodes:
            for rule in self._index.about(node):
                deciders.setdefault(rule, {}).setdefault(self.rule_for(node), node)
        modules = {name for name, _ in model.named_modules() if name}
        # There may be no operator left of a module (dropout, an identity), and yet it is there.
        named = {rule for name in modules for rule in self._index.naming(name)}
        known = _Known(nodes, modules)
        found = []
        for rule in rules:
            others = deciders.get(rule)
            if others is None and rule not in named:
                found.append(known.without(rule))
            elif others is not None and rule not in others:
                found.append(_shadowed(rule, others))
        for problem in found:
            problem.quantizer = quantizer
        return tuple(found)

    @cached_property
    def _index(self) -> RuleIndex:
        return RuleIndex(self.global_rule, self.type_rules, self.name_rules)


def _shadowed(rule: Rule, others: dict[Rule | None, Node]) -> IntentError:
    """The error for a rule that never decides.

    Args:
        rule: it.
        others: the rules that decide in its place, each with a node.
    """
    deciding = "; ".join(f"{other} decides for {node.name}" for other, node in [*others.items()][:3])
    narrow = " and ".join(dict.fromkeys(map(str, others)))
    return IntentError(
        f"The rule for {rule} never decides: more specific rules cover all that it is about.",
        expected=f"a node for which {rule} is the most specific rule",
        got=deciding,
        remedy=f"remove it, or narrow the rules for {narrow}",
    )


class _Known:
    """Names in a model that rules could have meant.

    Args:
        nodes: its operators.
        modules: the names of the modules that it still has, besides those that the operators come from.
    """

    def __init__(self, nodes: Iterable[Node], modules: Iterable[str]) -> None:
        self._nodes = tuple(nodes)
        self._modules = frozenset(modules)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(self._modules | module_paths(self._nodes)))

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        found = {scope.type_name for node in self._nodes for scope in scopes_of(node)}
        return tuple(sorted(found - {""}))

    @cached_property
    def _operators(self) -> tuple[str, ...]:
        return tuple(sorted({overload_name(node) for node in self._nodes} - {""}))

    def without(self, rule: ModuleNameRule | ObjectTypeRule) -> IntentError:
        """The error for a rule that is about nothing."""
        return self._no_module(rule) if isinstance(rule, ModuleNameRule) else self._no_type(rule)

    def _no_module(self, rule: ModuleNameRule) -> IntentError:
        near = self._mended(rule.name) or difflib.get_close_matches(rule.name, self._names, n=3, cutoff=0.5)
        return IntentError(
            f"No module is called {rule.name!r}.",
            expected="the name of a module of the exported model",
            got=rule.name,
            remedy=_did_you_mean(near) or "model.named_modules() lists the names",
        )

    def _mended(self, name: str) -> list[str]:
        """A pattern with each part that no module has replaced by the nearest, if that names something."""
        rule = ModuleNameRule(name, None)
        if not rule.is_pattern:
            return []
        known = {part for path in self._names for part in path.split(".")}
        parts = (
            part if ModuleNameRule(part, None).is_pattern or part in known else _nearest(part, known)
            for part in name.split(".")
        )
        mended = ModuleNameRule(".".join(parts), None)
        index = RuleIndex(None, (), (mended,))
        return [mended.name] if any(index.naming(path) for path in self._names) else []

    def _no_type(self, rule: ObjectTypeRule) -> IntentError:
        name = rule.type.name
        near = difflib.get_close_matches(name, (*self._classes, *self._operators), n=3, cutoff=0.5)
        used = ", ".join(self._classes if rule.type.kind == "module" else self._operators)
        return IntentError(
            f"Nothing in this model comes from {name}.",
            expected="a module class or an operator that the model uses",
            got=name,
            remedy=self._decomposed(rule.type)
            or self._derived(name)
            or _did_you_mean(near)
            or f"remove the rule, or name what the model has: {used or 'it has no operators'}",
        )

    def _decomposed(self, kind: ObjectType) -> str:
        return next((explanation(node) for node in self._nodes if kind.is_of(decomposed_from(node))), "")

    def _derived(self, name: str) -> str:
        """Remedy where the model has classes that derive from the one that is meant; None where it has
        none.
        """
        base = class_called(name)
        classes = filter(None, map(class_called, self._classes))
        derived = [cls.__name__ for cls in classes if base is not None and issubclass(cls, base)]
        if not derived:
            return ""
        return (
            f"a rule is about exactly one class, and the model has {' and '.join(derived)}, derived from it: "
            f"give a rule for {derived[0]}, or for the operator, wherever it comes from"
        )


def _nearest(part: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(part, known, n=1)), part)


def _did_you_mean(near: list[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else ""
