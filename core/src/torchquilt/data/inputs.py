"""Inputs of an exported program: which of them are data, and how they make a call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from torchquilt._internal.torch_private import pytree
from torchquilt.spec.dtypes import dtype_name


@attrs.frozen
class ModelInput:
    """One tensor, or one whole number, that a call of the model needs.

    Args:
        name: as in the graph; a tensor within a list or dict has the path to it in its name.
        dtype: ``"float32"``; ``"int64"`` for a number.
        shape: its sizes, None for one that is dynamic; empty for a number.
        is_number: whether the model takes a Python number and no tensor.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    is_number: bool = False

    def describe(self, is_stacked: bool) -> str:
        """The array that holds it, in words; N stands for the number of batches, ``?`` for a dynamic size."""
        sizes = [*(["N"] if is_stacked else []), *("?" if n is None else str(n) for n in self.shape)]
        return f"{self.dtype} [{', '.join(sizes)}]"


class ModelInputs:
    """The inputs of an exported program, flat and in order.

    Args:
        program: it is only read.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._leaves = tuple(_leaves(program))

    @property
    def data(self) -> tuple[ModelInput, ...]:
        """The inputs that change from call to call, in order; not those that export made constants of."""
        return tuple(leaf for leaf in self._leaves if isinstance(leaf, ModelInput))

    def batch(self, values: Mapping[str, torch.Tensor]) -> object:
        """A batch as :func:`torchquilt.calibrate` takes it.

        Args:
            values: name → tensor for each of :attr:`data`; a number is a tensor of one element.
        """
        flat = [
            (int(values[leaf.name]) if leaf.is_number else values[leaf.name])
            if isinstance(leaf, ModelInput)
            else leaf
            for leaf in self._leaves
        ]
        structure = self._program.call_spec.in_spec
        assert structure is not None
        return self._as_batch(*pytree.tree_unflatten(flat, structure))

    def example(self) -> object | None:
        """The inputs that the program was exported with, as a batch; None where it does not have them."""
        found = self._program.example_inputs
        return None if found is None else self._as_batch(*found)

    def _as_batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if not kwargs:
            return tuple(args)
        names = inspect.signature(self._program.module().forward).parameters if args else ()
        return {**dict(zip(names, args, strict=False)), **kwargs}


def _leaves(program: ExportedProgram) -> Any:
    """A :class:`ModelInput` for each input that is data, and the value of each that is not."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            continue
        value = values[spec.arg.name]
        if isinstance(value, torch.Tensor):
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            yield ModelInput(spec.arg.name, dtype_name(value.dtype), shape)
        elif isinstance(value, torch.SymInt):
            yield ModelInput(spec.arg.name, "int64", (), is_number=True)
        else:
            yield value
