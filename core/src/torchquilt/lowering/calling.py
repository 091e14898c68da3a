"""Calling a lowered program: inputs as the model takes them, checked, and outputs as it returns them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from torchquilt.errors import ProgramInputError
from torchquilt.lowering.program_facts import Port, Ports


def flat_inputs(structure: str, ports: Ports, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call as the runtime takes them: one after the other.

    Positional arguments may be named if the names are known, and arguments that export made constants may be
    left out.

    Args:
        structure: that of ``(args, kwargs)`` as pytree writes it; empty where it is not known.
        ports: what the program takes.
        args: of the call, those by position.
        kwargs: likewise, those by name.

    Raises:
        ProgramInputError: they have another structure.
    """
    from torchquilt._internal.torch_private import pytree

    if not structure:
        return pytree.tree_leaves((args, dict(kwargs)))
    expected = pytree.treespec_loads(structure)
    arguments = _arguments(expected, ports)
    leaves = _leaves(arguments, args, kwargs)
    if leaves is None:
        _, found = pytree.tree_flatten((args, dict(kwargs)))
        raise ProgramInputError(
            "The inputs do not have the structure of those that the model was exported with.",
            expected=_structure_text(expected),
            got=_structure_text(found),
            remedy="pass what the model takes, in the same structure; constants may be left out",
        )
    return leaves


@attrs.frozen
class _Argument:
    """An argument of a call: its name (empty where it is not known), its structure, and what is in it."""

    name: str
    structure: Any
    ports: tuple[Port, ...]

    @property
    def may_be_left_out(self) -> bool:
        return all(port.is_constant for port in self.ports)


def _arguments(expected: Any, ports: Ports) -> list[_Argument]:
    """The arguments that a program takes, those by position first."""
    positional, named = expected.children()
    structures = [*positional.children(), *named.children()]
    names = [*[""] * positional.num_children, *named.context]
    if len(ports.arguments) == len(structures):
        names = [*ports.arguments]
    found, first = [], 0
    for name, structure in zip(names, structures, strict=True):
        end = first + structure.num_leaves
        found.append(_Argument(name, structure, ports.inputs[first:end]))
        first = end
    return found


def _leaves(
    arguments: Sequence[_Argument], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any] | None:
    """Flatten the arguments of a call; None where one does not fit."""
    from torchquilt._internal.torch_private import pytree

    rest = dict(kwargs)
    leaves: list[Any] = []
    for number, one in enumerate(arguments):
        if number < len(args):
            given = args[number]
        elif one.name in rest:
            given = rest.pop(one.name)
        elif one.may_be_left_out:
            leaves += [port.constant for port in one.ports]
            continue
        else:
            return None
        values, structure = pytree.tree_flatten(given)
        if structure != one.structure:
            return None
        leaves += values
    return None if rest or len(args) > len(arguments) else leaves


def _structure_text(structure: Any) -> str:
    from torchquilt._internal.torch_private import pytree

    shown = pytree.tree_unflatten([_Leaf()] * structure.num_leaves, structure)
    args, kwargs = shown if isinstance(shown, tuple) and len(shown) == 2 else (shown, {})
    parts = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"({', '.join(parts)})"


class _Leaf:
    def __repr__(self) -> str:
        return "·"


def arrange_outputs(outputs: list[Any], structure: str, ports: Ports) -> Any:
    """Arrange the outputs of a program in the structure that pytree wrote; as a list where it is not
    known.
    """
    from torchquilt._internal.torch_private import pytree

    if len(outputs) == len(ports.outputs):  # a text is not stored, and comes out as None
        pairs = zip(ports.outputs, outputs, strict=True)
        outputs = [port.constant if port.is_constant else value for port, value in pairs]
    if not structure:
        return outputs
    expected = pytree.treespec_loads(structure)
    return pytree.tree_unflatten(outputs, expected) if expected.num_leaves == len(outputs) else outputs


def check_inputs(ports: Sequence[Port], inputs: Sequence[Any]) -> None:
    """Refuse inputs that the program does not take.

    Raises:
        ProgramInputError: the number of inputs, a dtype or a shape does not fit.
    """
    if len(inputs) != len(ports):
        raise ProgramInputError(
            "The number of inputs is not that of the program.",
            expected=f"{len(ports)}: {', '.join(port.name for port in ports) or 'none'}",
            got=f"{len(inputs)}",
            remedy="pass what the model was exported with, in the same order",
        )
    sizes: dict[str, tuple[int, str]] = {}
    for port, value in zip(ports, inputs, strict=True):
        _check_input(port, value)
        for dimension, size in zip(port.shape, getattr(value, "shape", ()), strict=False):
            found, first = sizes.setdefault(dimension.symbol or f"{port.name} alone", (size, port.name))
            if dimension.symbol and found != size:
                raise ProgramInputError(
                    f"The inputs {first!r} and {port.name!r} do not fit together.",
                    expected=f"one size for {dimension.symbol}: {found} as in {first!r}",
                    got=f"{size} in {port.name!r}",
                    remedy="pass inputs with equal sizes there",
                )


def _check_input(port: Port, value: Any) -> None:
    """Refuse what is of another dtype or shape, or not in the memory of the CPU, and other constants."""
    import torch

    if port.is_constant:
        _check_constant(port, value)
        return
    fits = True
    if isinstance(value, torch.Tensor):
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        got = f"{dtype}{[*shape]}"
        if value.layout is not torch.strided or value.device.type != "cpu":
            got, fits = f"{got}, {value.layout}, {value.device}", False
        takes = (one.takes(size) for one, size in zip(port.shape, shape, strict=False))
        fits = fits and len(shape) == len(port.shape) and all(takes)
    else:
        dtype, got = type(value).__name__, repr(value)
    if port.dtype and not (fits and dtype == port.dtype):
        hint = "; quantize it with its scale and zero point" if port.is_quantized else ""
        raise ProgramInputError(
            f"The input {port.name!r} is not one that the program takes.",
            expected=str(port),
            got=got,
            remedy=f"pass a tensor of that dtype and shape, on the CPU{hint}",
        )


def _check_constant(port: Port, value: Any) -> None:
    """Refuse another value than that of the export, which is all that the program can compute with."""
    same = type(value) is type(port.constant) and (
        value == port.constant or (value != value and port.constant != port.constant)  # NaN
    )
    if not same:
        raise ProgramInputError(
            f"The input {port.name!r} was made a constant when the model was exported.",
            expected=f"{port.constant!r}, or nothing",
            got=repr(value) if not hasattr(value, "shape") else f"a tensor {[*value.shape]}",
            remedy=f"leave it out, or export the model with the {port.name} that is wanted, and lower that",
        )
