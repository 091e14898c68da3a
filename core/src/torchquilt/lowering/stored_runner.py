"""Base of the runners of targets: what a stored program states of itself, and copies of it."""

from __future__ import annotations

from typing import Any

import attrs

from torchquilt.lowering.target import Slot


@attrs.frozen
class StoredFacts:
    """Facts that a stored program states of itself.

    Args:
        inputs, outputs: in order.
        operators: the kernels of the runtime that it calls (``aten::mean.out``).
        delegates: the delegates that it calls, in order.
        structure: the structures of inputs and outputs as pytree writes them, empty where they are not
            stored.
    """

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    operators: tuple[str, ...]
    delegates: tuple[str, ...] = ()
    structure: tuple[str, str] = ("", "")


class StoredRunner:
    """Base of a :class:`torchquilt.backend.Runner`: all of it but ``run``.

    A copy, or one that was pickled, is the same program in its first state: the class is called again with
    the same arguments.

    Args:
        facts: what the program states of itself.
        *arguments: those that make another runner of the same program, the buffer first.
    """

    def __init__(self, facts: StoredFacts, *arguments: Any) -> None:
        self._facts = facts
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return type(self), self._arguments

    @property
    def inputs(self) -> tuple[Slot, ...]:
        """Inputs, in order."""
        return self._facts.inputs

    @property
    def outputs(self) -> tuple[Slot, ...]:
        """Outputs, in order."""
        return self._facts.outputs

    @property
    def operators(self) -> tuple[str, ...]:
        """The kernels of the runtime that it calls."""
        return self._facts.operators

    @property
    def delegates(self) -> tuple[str, ...]:
        """The delegates that it calls, in order."""
        return self._facts.delegates

    @property
    def structure(self) -> tuple[str, str]:
        """The structures of inputs and outputs as pytree writes them, empty where they are not stored."""
        return self._facts.structure
