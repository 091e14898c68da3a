"""Calling a lowered program: inputs as the model takes them, checked, and outputs as it returns them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchquilt.errors import ProgramInputError
from torchquilt.lowering.values import Port


def flat_inputs(structure: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call as the runtime takes them: one after the other.

    Args:
        structure: that of ``(args, kwargs)`` as pytree writes it; empty where it is not known.
        args: of the call, those by position.
        kwargs: likewise, those by name.

    Raises:
        ProgramInputError: they have another structure.
    """
    from torch.utils import _pytree as pytree

    if not structure:
        return pytree.tree_leaves((args, dict(kwargs)))
    expected = pytree.treespec_loads(structure)
    names = expected.child(1).context if expected.num_children == 2 else None
    # Keyword arguments count in the order in which the model was exported.
    ordered = dict(kwargs)
    if names is not None and set(names) == set(kwargs):
        ordered = {name: kwargs[name] for name in names}
    leaves, found = pytree.tree_flatten((args, ordered))
    if found != expected:
        raise ProgramInputError(
            "The inputs do not have the structure of those that the model was exported with.",
            expected=_structure_text(expected),
            got=_structure_text(found),
            remedy="pass what the model takes, in the same structure",
        )
    return leaves


def _structure_text(structure: Any) -> str:
    from torch.utils import _pytree as pytree

    shown = pytree.tree_unflatten([_Leaf()] * structure.num_leaves, structure)
    args, kwargs = shown if isinstance(shown, tuple) and len(shown) == 2 else (shown, {})
    parts = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"({', '.join(parts)})"


class _Leaf:
    def __repr__(self) -> str:
        return "·"


def arrange_outputs(outputs: list[Any], structure: str) -> Any:
    """What a program returned, in the structure that pytree wrote; as a list where it is not known."""
    from torch.utils import _pytree as pytree

    if not structure:
        return outputs
    expected = pytree.treespec_loads(structure)
    return pytree.tree_unflatten(outputs, expected) if expected.num_leaves == len(outputs) else outputs


def check_inputs(ports: Sequence[Port], inputs: Sequence[Any]) -> None:
    """Refuse what the program does not take.

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
    """Refuse what is of another dtype or shape, or not in the memory of the CPU."""
    import torch

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
