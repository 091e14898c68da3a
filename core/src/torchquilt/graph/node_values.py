"""Facts about the value of a node: its fake tensor, the inputs that it writes to, whether it is constant.

The conditions of support tables are made of these functions, and tables are read without torch; so
importing this module does not import torch. It tells operators and tensors by what they have.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.graph.subgraphs import handed_in

if TYPE_CHECKING:
    import torch
    from torch.fx import Graph, Node


def operator_of(node: Node) -> Any:
    """The ``OpOverload`` that a node calls, or None.

    Of an operator in a runtime's dialect that wraps one of torch, that is the one of torch.
    """
    facts = _facts_of(node)
    return None if facts is None else facts.operator


def overload_name(node: Node) -> str:
    """``"aten.linear.default"`` for a call of an operator, ``""`` for anything else."""
    facts = _facts_of(node)
    return "" if facts is None else facts.name


#: ``node.meta`` of a node that a backend wrote in another form has the overload that the model had here.
WRITTEN_FOR = "torchquilt_written_for"


#: ``node.meta`` of a node that helps to write another one in another form has the name of that one here.
HELPS = "torchquilt_helps"


def call_name(node: Node) -> str:
    """The overload that a node calls; for what is no operator of torch the name of the function."""
    name = overload_name(node) or str(getattr(node.target, "_name", ""))
    if name or not callable(node.target):
        return name or str(node.target)
    module = getattr(node.target, "__module__", None) or "torch"
    return f"{module.lstrip('_')}.{getattr(node.target, '__name__', str(node.target))}"


#: ``node.meta`` of a node that reads a stored copy of another constant has the node of that here.
STORED_FOR = "torchquilt_stored_for"


#: ``node.meta`` of an operator into which BatchNorms were folded has the nodes here that they were.
FOLDED = "torchquilt_folded"


#: ``node.meta`` of a node that a recovery pass keeps in float has the reason here, a sentence.
KEPT_IN_FLOAT = "torchquilt_kept_in_float"


def asked_name(node: Node) -> str:
    """The overload that a rule about this node names: what the model had before a backend rewrote it."""
    written_for: str = node.meta.get(WRITTEN_FOR, "")
    return written_for or overload_name(node)


@attrs.frozen(eq=False)
class _Facts:
    """Facts about an operator. They never change and are needed at every node: torch is asked once."""

    target: Any
    operator: Any
    name: str
    is_mutable: bool
    is_pure: bool
    returns_view: bool

    @classmethod
    def of(cls, target: Any) -> _Facts:
        wrapped: Any = getattr(target, "_op", None)
        operator: Any = wrapped if _is_overload(wrapped) else target
        name, is_mutable = str(operator), bool(operator._schema.is_mutable)
        is_random = any(tag.name == "nondeterministic_seeded" for tag in operator.tags)
        returned = [value.alias_info for value in operator._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        return cls(
            target,
            operator,
            name,
            is_mutable,
            not is_mutable and not is_random,
            is_view or name in UNDECLARED_VIEWS,
        )


def _is_overload(target: Any) -> bool:
    return hasattr(target, "_schema") and hasattr(target, "_overloadname")


#: By ``id``, since torch hashes operators in Python. A target in here is held, so no other gets its id.
_FACTS: dict[int, _Facts] = {}


def _facts_of(node: Node) -> _Facts | None:
    """The facts of the operator that a node calls, or None where it calls none."""
    if node.op != "call_function":
        return None
    target: Any = node.target
    facts = _FACTS.get(id(target))
    if facts is None and _is_overload(target):
        facts = _FACTS[id(target)] = _Facts.of(target)
    return facts


def arguments_of(node: Node) -> dict[str, Any]:
    """The arguments of the call of an operator by their names, in the order of its schema, with defaults."""
    schema = operator_of(node)._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return {**{argument.name: argument.default_value for argument in schema}, **given, **node.kwargs}


def tensor_of(node: Node) -> torch.Tensor | None:
    """The fake tensor of a node (its shape and dtype), or None where it does not return one tensor."""
    value = node.meta.get("val")
    return value if type(value) in _TENSOR_TYPES or _is_like_a_tensor(value) else None


#: Types of tensors that were met so far: a look here costs less than to ask a tensor for what it has.
_TENSOR_TYPES: set[type] = set()


def _is_like_a_tensor(value: object) -> bool:
    kind = type(value)
    if hasattr(kind, "dtype") and hasattr(kind, "dim"):
        _TENSOR_TYPES.add(kind)
    return hasattr(value, "dtype") and hasattr(value, "dim")


def is_float_tensor(node: Node) -> bool:
    """Whether the node returns one tensor that can be quantized: float32, float16 or bfloat16.

    The ``quantized_decomposed`` operators take no float64.
    """
    value = tensor_of(node)
    return value is not None and value.dtype.is_floating_point and value.dtype.itemsize in (2, 4)


def is_empty(node: Node) -> bool:
    """Whether the node returns a tensor that never has an element."""
    value = tensor_of(node)
    return value is not None and any(isinstance(size, int) and size == 0 for size in value.shape)


def rank(node: Node) -> int | None:
    """Number of dimensions, or None where it is not one tensor."""
    value = tensor_of(node)
    return None if value is None else value.dim()


def attribute(model: torch.nn.Module, target: str) -> Any:
    """The attribute that a ``get_attr`` node names by its dotted path.

    Args:
        model: the module that has it.
        target: the dotted path.
    """
    found: Any = model
    for name in target.split("."):
        found = getattr(found, name)
    return found


def argument_of(node: Node, name: str) -> Any:
    """Argument of this name in the call of an operator, or its default."""
    return arguments_of(node)[name]


def writes_to(user: Node, node: Node) -> bool:
    """Whether ``user`` is an operator that changes the tensor of ``node`` in place."""
    facts = _facts_of(user)
    if facts is None or not facts.is_mutable:
        return False
    return any(
        argument.alias_info is not None
        and argument.alias_info.is_write
        and argument_of(user, argument.name) is node
        for argument in facts.operator._schema.arguments
    )


#: In evaluation mode these return their input itself, though their schema does not say so.
UNDECLARED_VIEWS = tuple(
    f"aten.{name}.default"
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
)


def writes(node: Node) -> bool:
    """Whether a node is an operator that writes into one of its inputs, and so returns that input."""
    facts = _facts_of(node)
    return facts is not None and facts.is_mutable


def has_no_effect(node: Node) -> bool:
    """Whether nothing but its own value depends on a node, also once it is erased: it only reads or computes.

    Higher-order operators are not looked into.
    """
    if node.op != "call_function":
        return node.op == "get_attr"
    facts = _facts_of(node)
    if facts is not None:
        return facts.is_pure and not node.is_impure()
    # What export writes for sizes: arithmetic of Python, and getitem.
    return getattr(node.target, "__module__", "") in _ARITHMETIC


_ARITHMETIC = ("_operator", "operator", "math", "builtins")


def returns_view(node: Node) -> bool:
    """Whether the result of a node may share memory with one of its inputs."""
    facts = _facts_of(node)
    if facts is None:
        return node.op == "call_function"  # getitem and other Python functions: not known
    return facts.returns_view


def is_overwritten(node: Node) -> bool:
    """Whether the graph writes into the tensor of a node, directly, through a view of it or in a subgraph."""
    pending = [node]
    while pending:
        tensor = pending.pop()
        for user in tensor.users:
            facts = _facts_of(user)
            if facts is None:
                pending.extend(handed_in(user, tensor))
            elif facts.is_mutable and writes_to(user, tensor):
                return True
            if returns_view(user):
                pending.append(user)
    return False


def is_constant(node: Node) -> bool:
    """Whether the value is the same for every input: computed from stored tensors alone.

    A buffer that the graph writes to is not constant, and neither is anything that draws random
    numbers. Answers for one node by walking what it is computed from.
    """
    seen: set[Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "get_attr":
            if not _is_constant_tensor(current):
                return False
        elif current.all_input_nodes and _is_pure(current) and not is_overwritten(current):
            pending.extend(current.all_input_nodes)
        else:
            return False
    return True


def constant_nodes(graph: Graph, identities: Container[str] = ()) -> frozenset[Node]:
    """All nodes of a graph for which :func:`is_constant` holds, found in one pass.

    Args:
        graph: the graph.
        identities: names of submodules that return their only input, and so a constant for a constant.
    """
    constant: set[Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            holds = _is_constant_tensor(node)
        elif node.op == "call_module":
            holds = node.target in identities and constant.issuperset(node.all_input_nodes)
        else:
            inputs = node.all_input_nodes
            holds = bool(inputs) and _is_pure(node) and constant.issuperset(inputs)
            holds = holds and not is_overwritten(node)
        if holds:
            constant.add(node)
    return frozenset(constant)


def _is_constant_tensor(node: Node) -> bool:
    return tensor_of(node) is not None and not is_overwritten(node)


def _is_pure(node: Node) -> bool:
    if node.target is python_operator.getitem:  # one of several tensors: a weight that is split, or chunked
        return True
    facts = _facts_of(node)
    return facts is not None and facts.is_pure
