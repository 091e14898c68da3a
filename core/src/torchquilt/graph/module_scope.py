"""Origin of a node: the module path and the module types that export wrote down.

``torch.export`` stores in ``node.meta["nn_module_stack"]`` the modules that were active, outermost
first, as ``key → (path, type)``. Only this is read; ``source_fn_stack`` never is (it differs between
strict and non-strict export, and is lost when a program is saved).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from torch.fx import Node


@attrs.frozen
class Scope:
    """One active module: ``path`` as in ``named_modules()``, ``type_name`` as ``package.module.Class``."""

    path: str
    type_name: str


def scopes_of(node: Node) -> tuple[Scope, ...]:
    """The modules a node belongs to, outermost first; empty where export kept none (weights, inputs)."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(Scope(path, _type_name(kind)) for path, kind in stack.values())


def module_path(node: Node) -> str:
    """Path of the innermost module of a node, ``""`` for the root or where nothing is known."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def module_paths(nodes: Iterable[Node]) -> frozenset[str]:
    """All module paths that any of the nodes comes from."""
    return frozenset(scope.path for node in nodes for scope in scopes_of(node))


def _type_name(kind: object) -> str:
    if isinstance(kind, type):
        return f"{kind.__module__}.{kind.__qualname__}"
    return str(kind)
