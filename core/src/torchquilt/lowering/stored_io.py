"""Inputs and outputs as the stored program has them: sizes, order in memory, constants.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from torchquilt.lowering.program_facts import LARGEST, Dimension, Port, Ports
from torchquilt.lowering.target import Lowered, Runner, Slot


def ports_of(runner: Runner) -> Ports:
    """The inputs and outputs of a program that says nothing of their names, nor of the smallest sizes."""
    return Ports(_nameless("input", runner.inputs), _nameless("output", runner.outputs))


def as_stored(ports: Ports, runner: Runner, lowered: Lowered) -> Ports:
    """Inputs and outputs of a model, with the sizes and the dim order that the program has."""
    return attrs.evolve(
        ports,
        inputs=_as_stored(ports.inputs, runner.inputs, lowered.smallest_sizes),
        outputs=_as_stored(ports.outputs, runner.outputs, ()),
    )


def narrowed(before: Ports, after: Ports) -> list[str]:
    """The dimensions of inputs of which fewer sizes are taken, each in words."""
    return [
        f"dimension {number} of {port.name}: {_sizes(new)} of {_sizes(old)}"
        for port, stored in zip(before.inputs, after.inputs, strict=True)
        for number, (old, new) in enumerate(zip(port.shape, stored.shape, strict=True))
        if (new.low, new.high) != (old.low, old.high)
    ]


def _sizes(dimension: Dimension) -> str:
    if dimension.low == dimension.high:
        return f"{dimension.low} alone"
    return f"{dimension.low} and more" if dimension.high == LARGEST else f"{dimension.low}..{dimension.high}"


def _nameless(kind: str, slots: Iterable[Slot]) -> tuple[Port, ...]:
    return tuple(
        Port(
            f"{kind}_{number}",
            slot.dtype,
            tuple(Dimension(0 if slot.is_dynamic else size, size) for size in slot.shape),
            dim_order=_strange_order(slot),
            is_constant=slot.is_constant,
            constant=slot.constant,
        )
        for number, slot in enumerate(slots)
    )


def _as_stored(
    ports: tuple[Port, ...], slots: Sequence[Slot], smallest: Sequence[Sequence[int]]
) -> tuple[Port, ...]:
    if len(ports) != len(slots):
        return ports
    found = []
    for number, (port, slot) in enumerate(zip(ports, slots, strict=True)):
        lows = smallest[number] if number < len(smallest) else ()
        found.append(attrs.evolve(port, shape=_shape(port, slot, lows), dim_order=_strange_order(slot)))
    return tuple(found)


def _shape(port: Port, slot: Slot, lows: Sequence[int]) -> tuple[Dimension, ...]:
    if len(port.shape) != len(slot.shape):
        return port.shape
    return tuple(
        _dimension(known, size, slot.is_dynamic, lows[number] if number < len(lows) else known.low)
        for number, (known, size) in enumerate(zip(port.shape, slot.shape, strict=True))
    )


def _dimension(known: Dimension, size: int, is_dynamic: bool, low: int) -> Dimension:
    """The sizes that both the model and the program take."""
    if not is_dynamic:
        return Dimension(size, size)
    high = min(known.high, size)
    low = min(max(known.low, low), high)
    return Dimension(low, high, known.symbol if low < high else "")


def _strange_order(slot: Slot) -> tuple[int, ...]:
    return () if slot.dim_order == tuple(range(len(slot.dim_order))) else slot.dim_order
