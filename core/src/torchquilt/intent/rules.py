"""Rules: a config for a part of a model; and finding those that are about a node.

The most specific rule decides: a module name over a module class over an operator over the global config, as
in PyTorch's own quantizers. Among module names it is the one with the most parts, among module classes the
innermost.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

import attrs

from torchquilt.graph.module_scope import module_path, scopes_of
from torchquilt.graph.node_values import asked_name
from torchquilt.spec.config import QuantizationConfig
from torchquilt.support.object_type import ObjectType
from torchquilt.support.operators import OPERATORS

if TYPE_CHECKING:
    from torch.fx import Node

#: The part of a name that stands for any number of parts.
_ANY_DEPTH = "**"


@attrs.frozen(cache_hash=True)
class ModuleNameRule:
    """A config for the modules of this name or pattern and all that is inside them.

    ``layer.1`` holds ``layer.1.fc`` and not ``layer.10``. In a pattern ``*``, ``?`` and ``[...]`` stand for
    letters of one part between dots (``layer.*.fc``), and ``**`` for any number of parts, also none.
    """

    name: str
    config: QuantizationConfig | None

    @property
    def is_pattern(self) -> bool:
        """Whether the name may stand for several modules."""
        return any(letter in self.name for letter in "*?[")

    @property
    def specificity(self) -> tuple[int, int]:
        """More parts are more specific; among as many, more letters that stand for themselves."""
        parts = [part for part in self.name.split(".") if part != _ANY_DEPTH]
        return len(parts), len(self.name) - sum(map(self.name.count, "*?[]"))

    def __str__(self) -> str:
        return f"module {self.name}"


@attrs.frozen(cache_hash=True)
class ObjectTypeRule:
    """A config for every node that comes from a type of module or of operator."""

    type: ObjectType
    config: QuantizationConfig | None

    def __str__(self) -> str:
        return f"type {self.type.name}"


@attrs.frozen(cache_hash=True)
class GlobalRule:
    """A config for everything that no other rule is about."""

    config: QuantizationConfig | None

    def __str__(self) -> str:
        return "everywhere"


Rule = ModuleNameRule | ObjectTypeRule | GlobalRule


class RuleIndex:
    """Finds the rules that are about a node, without holding it against each of them.

    Making one costs as much as there are rules; looking up as much as the module of the node is deep, and
    once for each module. Patterns that begin with the same parts are each held against the next part.
    """

    def __init__(
        self,
        global_rule: GlobalRule | None,
        type_rules: tuple[ObjectTypeRule, ...],
        name_rules: tuple[ModuleNameRule, ...],
    ) -> None:
        self._global = global_rule
        self._by_overload: dict[str, list[ObjectTypeRule]] = {}
        self._by_class: dict[str, ObjectTypeRule] = {}
        for about in type_rules:
            if about.type.kind == "module":
                self._by_class[about.type.name] = about
            # Whether it works in place is not asked: a graph has it in the other form once that is the same.
            overloads = (form for overload in about.type.overloads for form in _forms(overload))
            for overload in dict.fromkeys(overloads):
                self._by_overload.setdefault(overload, []).append(about)
        self._position = {rule: number for number, rule in enumerate(name_rules)}
        names = _Names()
        for rule in name_rules:
            names.below(rule.name).rules.append(rule)
        self._names = _closed([names])
        self._reached: dict[str, tuple[_Names, ...]] = {}
        self._naming: dict[str, tuple[ModuleNameRule, ...]] = {}

    def deciding(self, node: Node) -> Rule | None:
        """The rule that decides for a node, or None where nothing is asked."""
        named = self.naming(module_path(node))
        if named:
            return max(named, key=lambda rule: rule.specificity)
        if self._by_class:
            for name in reversed(_class_names(node)):
                if name in self._by_class:
                    return self._by_class[name]
        operators = self._by_overload.get(asked_name(node))
        return operators[-1] if operators else self._global

    def about(self, node: Node) -> tuple[ModuleNameRule | ObjectTypeRule, ...]:
        """Every rule that is about a node, also where another one decides, but for the global one."""
        classes = (self._by_class.get(name) for name in dict.fromkeys(_class_names(node)))
        types = (*(rule for rule in classes if rule), *self._by_overload.get(asked_name(node), ()))
        return (*self.naming(module_path(node)), *types)

    def naming(self, path: str) -> tuple[ModuleNameRule, ...]:
        """The rules about a module of this path or one around it, in the order in which they were given."""
        found = self._naming.get(path)
        if found is None:
            around = self.naming(path.rpartition(".")[0]) if path else ()
            here = (rule for names in self._reach(path) for rule in names.rules)
            found = tuple(sorted({*around, *here}, key=self._position.__getitem__))
            self._naming[path] = found
        return found

    def _reach(self, path: str) -> tuple[_Names, ...]:
        if not path:
            return self._names
        if path not in self._reached:
            parent, _, part = path.rpartition(".")
            inner = (names for outer in self._reach(parent) for names in outer.following(part))
            self._reached[path] = _closed(inner)
        return self._reached[path]


class _Names:
    """Names by their parts, as a tree: what may follow after some parts, and the rules that end there."""

    def __init__(self, repeats: bool = False) -> None:
        self.rules: list[ModuleNameRule] = []
        self.any_depth: _Names | None = None
        self._repeats = repeats
        self._plain: dict[str, _Names] = {}
        self._patterns: dict[str, _Names] = {}

    def below(self, name: str) -> _Names:
        """The node of a name in the tree, made where it is not there yet."""
        here = self
        for part in name.split(".") if name else ():
            here = here._child(part)
        return here

    def _child(self, part: str) -> _Names:
        if part == _ANY_DEPTH:
            self.any_depth = self.any_depth or _Names(repeats=True)
            return self.any_depth
        children = self._patterns if any(letter in part for letter in "*?[") else self._plain
        return children.setdefault(part, _Names())

    def following(self, part: str) -> Iterable[_Names]:
        """Follow one more part of a path."""
        if self._repeats:
            yield self
        if part in self._plain:
            yield self._plain[part]
        for pattern, names in self._patterns.items():
            if fnmatchcase(part, pattern):
                yield names


def _forms(overload: str) -> tuple[str, str]:
    """An overload as it computes a new tensor, and as it works in place."""
    packet, _, name = overload.rpartition(".")
    plain = packet.removesuffix("_")
    return f"{plain}.{name}", f"{plain}_.{name}"


def _closed(entries: Iterable[_Names]) -> tuple[_Names, ...]:
    """The nodes of the tree, and those that are reached from them without a further part."""
    found = dict.fromkeys(entries)
    pending = list(found)
    for entry in pending:  # grows while it is walked
        if entry.any_depth is not None and entry.any_depth not in found:
            found[entry.any_depth] = None
            pending.append(entry.any_depth)
    return tuple(found)


def _class_names(node: Node) -> tuple[str, ...]:
    """The classes of the modules around a node, outermost first.

    In subgraphs of control flow non-strict export does not say the class. There it is the one that the
    operator comes from, if it comes from one.
    """
    found: list[str] = []
    for scope in scopes_of(node):
        found += (
            (scope.type_name,)
            if scope.type_name
            else _classes_of_operator(asked_name(node) or str(node.target))
        )
    return tuple(found)


@lru_cache(maxsize=1024)
def _classes_of_operator(overload: str) -> tuple[str, ...]:
    return tuple(name for known in OPERATORS if overload in known.overloads for name in known.modules)
