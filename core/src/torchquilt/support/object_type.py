"""Object types: the module class, function or operator that a user means, whichever of its names is given.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import importlib
import operator
import sys
from typing import Any

import attrs

from torchquilt.errors import IntentError
from torchquilt.support.operators import OPERATORS, Operator


@attrs.frozen
class ObjectType:
    """Object type that a user means, as text.

    Args:
        kind: ``module`` (a class), ``overload`` (one or more ATen overloads) or ``operator``
            (a functional or a short name: the overloads of that operator).
        name: the name as the user would recognise it.
        overloads: for the kinds that are about operators, the overloads that are meant; empty for a function
            of torch that is not one operator, of which only export can tell what it becomes.
    """

    kind: str
    name: str
    overloads: tuple[str, ...] = ()

    def is_of(self, packet: str) -> bool:
        """Whether an overload of this operator (``aten.linear``) is meant."""
        return any(overload.rpartition(".")[0] == packet for overload in self.overloads)


def object_type(subject: object, known: tuple[Operator, ...] = OPERATORS) -> ObjectType:
    """Understand a module class, a functional, an ATen overload or packet, or a name of one of these.

    What is not in the table is asked of torch, which a name that is not there imports.

    Raises:
        IntentError: it is none of these; the error names what comes nearest.
    """
    if isinstance(subject, type):
        return _class_type(subject)
    text = subject if isinstance(subject, str) else _full_name(subject)
    if _is_overload(subject, text):
        return ObjectType("overload", text, (text,))
    packets = tuple(o for op in known for o in op.overloads if o.rpartition(".")[0] == text)
    if packets or _is_packet(subject):
        return ObjectType("overload", text, packets or _overloads_of_packet(subject))
    for op in known:
        if text in (op.name, *op.functionals):
            return ObjectType("operator", text, op.overloads)
        if text in op.modules or (isinstance(subject, str) and text in _short_names(op)):
            return ObjectType("module", op.modules[0])
    found = _named_in_torch(text) if isinstance(subject, str) else _of_function(subject)
    if found is not None:
        return found
    names = [name for op in known for name in (op.name, *op.functionals, *op.overloads, *_short_names(op))]
    near = difflib.get_close_matches(text, names, n=3)
    raise IntentError(
        f"{text!r} is not a type that a rule can be about.",
        expected="a module class, a functional such as torch.nn.functional.linear, or an ATen operator "
        "such as torch.ops.aten.linear.default",
        got=repr(subject),
        remedy=f"did you mean {' or '.join(near)}?" if near else "name the ATen operator itself",
    )


def class_called(name: str) -> type | None:
    """The class of a full name, if it has been imported and stands in its module."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:end]))
        if module is not None:
            found = attribute_at(module, parts[end:])
            return found if isinstance(found, type) else None
    return None


def attribute_at(owner: object, path: list[str]) -> object:
    """Follow a path of attributes; None where it ends too early."""
    for name in path:
        owner = getattr(owner, name, None) if name and owner is not None else None
    return owner


def _class_type(cls: type) -> ObjectType:
    return ObjectType("module", f"{cls.__module__}.{cls.__qualname__}")


def _full_name(subject: object) -> str:
    """The name by which people import a function of torch.

    Many are builtins that live elsewhere than where they are imported from (``F.linear`` says that it
    is ``torch._C._nn.linear``, ``F.conv2d`` that it is ``torch.conv2d``), so the last part of the name
    decides, within the namespaces of torch.
    """
    if type(subject).__name__ in ("OpOverload", "OpOverloadPacket"):
        return str(subject)
    name = getattr(subject, "__name__", "")
    module = getattr(subject, "__module__", None) or "torch"
    if module in _FUNCTION_NAMESPACES:
        for known in OPERATORS:
            for functional in known.functionals:
                if functional.rpartition(".")[2] == name:
                    return functional
    return _public_name(subject) or f"{module}.{name}"


_FUNCTION_NAMESPACES = (
    "torch",
    "torch.functional",
    "torch.nn.functional",
    "torch._C._nn",
    "torch._C",
    "_operator",
    "operator",
)


def _public_name(function: object) -> str:
    """Name by which people import a function of torch; empty where that is not known."""
    name = getattr(function, "__name__", "")
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    owners = {path: sys.modules.get(path) for path in ("torch.nn.functional", "torch", "operator")}
    for path, owner in {**owners, "torch.Tensor": tensor}.items():
        if name and callable(function) and getattr(owner, name, None) is function:
            return f"{path}.{name}"
    return ""


def _named_in_torch(text: str) -> ObjectType | None:
    """Look a name that is in no table up in torch: a path, a class of ``nn``, an operator of ATen."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    first, _, rest = text.partition(".")
    roots = {"torch": torch, "nn": torch.nn, "aten": torch.ops.aten, "operator": operator}
    found = attribute_at(roots.get(first), rest.split(".")) if rest else getattr(torch.nn, text, None)
    if isinstance(found, type):
        return _class_type(found)
    overloads = () if rest else _overloads_called(text)
    if overloads:
        return ObjectType("operator", text, overloads)
    # ``torch.Tensor.relu`` is the operator that the table has as ``torch.relu``, by name as by the function.
    return object_type(found) if _of_function(found) is not None else None


def _of_function(subject: object) -> ObjectType | None:
    """A function of torch, or one of Python's operators; None for anything else."""
    if _is_packet(subject) or type(subject).__name__ == "OpOverload":
        return object_type(subject)
    public = _public_name(subject)
    module = getattr(subject, "__module__", None) or public
    if not callable(subject) or module.partition(".")[0] not in ("torch", "operator", "_operator"):
        return None
    name = getattr(subject, "__name__", "")
    return ObjectType("operator", public or f"{module}.{name}", _overloads_called(name)) if name else None


def _overloads_called(name: str) -> tuple[str, ...]:
    """The overloads of the ATen operator of this name, those that work in place among them."""
    aten = importlib.import_module("torch").ops.aten
    name = name.rstrip("_")
    packets = (getattr(aten, called, None) for called in (name, f"{name}_") if name)
    return tuple(o for packet in packets if packet is not None for o in _overloads_of_packet(packet))


def _is_overload(subject: object, text: str) -> bool:
    """An overload itself, or its name ``namespace.operator.overload``; modules of torch look alike."""
    if type(subject).__name__ == "OpOverload":
        return True
    return text.count(".") == 2 and text.split(".")[0] not in ("torch", "nn", "operator")


def _is_packet(subject: object) -> bool:
    return type(subject).__name__ == "OpOverloadPacket"


def _overloads_of_packet(subject: object) -> tuple[str, ...]:
    names: list[str] = subject.overloads()  # type: ignore[attr-defined]
    return tuple(f"{subject}.{name}" for name in names)


def _short_names(known: Operator) -> tuple[str, ...]:
    """``torch.nn.Linear`` and ``nn.Linear`` for the class whose full name is longer."""
    classes = [module.rpartition(".")[2] for module in known.modules]
    return tuple(prefix + name for name in classes for prefix in ("torch.nn.", "nn.", ""))
