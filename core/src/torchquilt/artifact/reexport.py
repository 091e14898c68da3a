"""Exporting a converted model again, with the sizes dynamic that were.

Importing this module does not import torch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torchquilt.errors import ArtifactError
from torchquilt.graph.signature import call_arguments

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node


def export_again(
    model: GraphModule, example_inputs: object, dynamic_shapes: Any, *, to_be: str, remedy: str
) -> ExportedProgram:
    """The program of a model that was made from an exported one.

    Args:
        model: what convert returned.
        example_inputs: one batch, as for :func:`torchquilt.calibrate`.
        dynamic_shapes: as for ``torch.export.export``; None keeps dynamic what was, with its range.
        to_be: what for, in the error for an example that is missing ("saved").
        remedy: how to pass one, for the same error.

    Raises:
        ArtifactError: the example is missing, does not fit, or would fix a size that was dynamic.
    """
    import torch

    if example_inputs is None:
        names = [str(node.target) for node in model.graph.nodes if node.op == "placeholder"]
        raise ArtifactError(
            f"A model has to be exported again to be {to_be}, and that needs example inputs.",
            expected=f"example_inputs for {', '.join(names) or 'no inputs'}",
            got=None,
            remedy=remedy,
        )
    args, kwargs = call_arguments(model, example_inputs)
    try:
        shapes = _kept_shapes(model, args, kwargs) if dynamic_shapes is None else dynamic_shapes
        # Where gradients are off already, export drops the regions under no_grad, which the ledger names.
        with torch.enable_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except ArtifactError:
        raise
    except Exception as error:  # torch raises what it likes for inputs that do not fit
        raise ArtifactError(
            "The model cannot be exported with these example inputs.",
            expected=f"inputs as in {inspect.signature(model.forward)}",
            got=f"{type(error).__name__}: {error}",
            remedy="pass a batch as calibrate takes it; see the cause above",
        ) from error
    if dynamic_shapes is None:
        _check_shapes_are_kept(model, program)
    return program


def _kept_shapes(model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """``dynamic_shapes`` that say: what was dynamic stays so.

    Raises:
        ArtifactError: the example has a size of 0 or 1 there, which torch takes for a fixed one.
    """
    from torchquilt._internal.torch_private import pytree

    inputs = model.graph.find_nodes(op="placeholder")
    values = [node.meta.get("val") for node in inputs]
    given = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    leaves, structure = pytree.tree_flatten(given)
    if len(leaves) != len(values) or not any(map(_dynamic_dimensions, values)):
        return None
    for node, value, leaf in zip(inputs, values, leaves, strict=True):
        shape = tuple(getattr(leaf, "shape", ()))
        lost = {number for number in _dynamic_dimensions(value) if number < len(shape) and shape[number] < 2}
        if lost:
            raise _fixed(node, lost, shape)
    sizes = _ranged_sizes(model, values)
    shapes = [_kept_shape(value, sizes) for value in values]
    found: dict[str, Any] = pytree.tree_unflatten(shapes, structure)
    return found


def _kept_shape(value: Any, sizes: dict[Any, Any]) -> Any:
    """Dynamic shape of one input: a size with its range where that is known, otherwise that it is dynamic."""
    import torch

    automatic = torch.export.Dim.AUTO
    if isinstance(value, torch.SymInt):
        return automatic
    shape: Any = getattr(value, "shape", ())
    found = {number: sizes.get(shape[number].node.expr, automatic) for number in _dynamic_dimensions(value)}
    return found or None


def _ranged_sizes(model: GraphModule, values: list[Any]) -> dict[Any, Any]:
    """Symbolic size → the same as a ``Dim`` with the range of the exported model.

    Empty where one of the sizes is not a multiple of one symbol plus a number, or is one of the inputs:
    ``Dim`` cannot say that, and sizes that depend on each other have to be said in one way.
    """
    import torch

    ranges: Any = vars(model).get("range_constraints") or {}
    tensors: list[Any] = [value for value in values if isinstance(value, torch.Tensor)]
    sizes = {value.shape[number].node.expr for value in tensors for number in _dynamic_dimensions(value)}
    numbers = {value.node.expr for value in values if isinstance(value, torch.SymInt)}
    found: dict[Any, Any] = {}
    for size in sizes:
        symbol, *others = size.free_symbols
        factor = size.coeff(symbol)
        offset = size - factor * symbol
        if (
            others
            or symbol in numbers
            or symbol not in ranges
            or not (factor.is_Integer and offset.is_Integer)
        ):
            return {}
        low, high = ranges[symbol].lower, ranges[symbol].upper
        dim: Any = torch.export.Dim(str(symbol), min=int(low), max=int(high) if high.is_Integer else None)
        dim = dim if factor == 1 else int(factor) * dim
        found[size] = dim if offset == 0 else dim + int(offset)
    return found


def _dynamic_dimensions(value: Any) -> tuple[int, ...]:
    """Dimensions of a recorded input without a fixed size; ``(0,)`` for a number that is not fixed."""
    import torch

    if isinstance(value, torch.SymInt):
        return (0,)
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(number for number, size in enumerate(value.shape) if isinstance(size, torch.SymInt))


def _check_shapes_are_kept(model: GraphModule, program: ExportedProgram) -> None:
    """Refuse a program in which a size is fixed that was dynamic."""
    names = set(program.graph_signature.user_inputs)
    found = [node for node in program.graph.find_nodes(op="placeholder") if node.name in names]
    for before, after in zip(model.graph.find_nodes(op="placeholder"), found, strict=False):
        lost = {*_dynamic_dimensions(before.meta.get("val"))} - {*_dynamic_dimensions(after.meta.get("val"))}
        if lost:
            raise _fixed(before, lost, tuple(getattr(after.meta.get("val"), "shape", ())))


def _fixed(node: Node, dimensions: set[int], shape: tuple[Any, ...]) -> ArtifactError:
    return ArtifactError(
        f"The example inputs would fix a size of {node.target} that was dynamic in the model.",
        expected=f"dimension {', '.join(map(str, sorted(dimensions)))} of {node.target} to stay dynamic",
        got=f"an example of shape {shape}",
        remedy="pass an example with a size of 2 or more there; to fix it on purpose, dynamic_shapes",
    )
