"""The sizes that a lowered program takes, and what took some of the model's away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from torchquilt.backend import FakeTensorMode, OpOverload, Origins, bound_sympy, node_in_words, pytree
from torchquilt_executorch.signature import inputs_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from torchquilt_executorch.stored import StoredProgram

#: torch traces a size that may be 1 as one of 2 and more, and takes the graph for both.
_SMALLEST_TRACED = 2


#: Held by the thread that traces.
_TRACING = threading.RLock()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Trace without torch's choice of a convolution's kernel, which depends on the size of the batch.

    A graph that is traced with the choice is one for less than 16 samples only, or for 16 and more. It is
    about kernels of torch, which a program for ExecuTorch never runs.

    The choice is that of the process, so one thread traces at a time: the second to enter would take what the
    first has set for the program's own choice, and set that in the end.
    """
    with _TRACING, torch.backends.nnpack.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
        yield


def smallest_sizes(program: ExportedProgram) -> tuple[tuple[int, ...], ...]:
    """Of each input, the smallest size of each dimension for which the graph was traced."""
    values = (node.meta.get("val") for node in inputs_of(program))
    return tuple(
        tuple(map(_smallest, value.shape)) if isinstance(value, torch.Tensor) else () for value in values
    )


def _smallest(size: Any) -> int:
    if isinstance(size, int):
        return size
    low = int(size.node.shape_env.bound_sympy(size.node.expr).lower)
    return low if low > _SMALLEST_TRACED else 0


def narrowed_by(
    program: ExportedProgram, stored: StoredProgram, lows: tuple[tuple[int, ...], ...]
) -> tuple[str, ...]:
    """Say what took sizes of a model's inputs away: operators, or that there was no largest size.

    Args:
        program: the model.
        stored: the same input in the program.
        lows: the smallest sizes that it takes.
    """
    reasons: list[str] = []
    is_traced = False
    for node, slot, low in zip(inputs_of(program), stored.inputs, lows, strict=True):
        value = node.meta.get("val")
        for number, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, int):
                continue
            taken = bound_sympy(size.node.expr, program.range_constraints)
            if not taken.upper.is_Integer:
                reasons.append(
                    f"The model was exported without a largest size of {node.name}, for which that of the "
                    f"example is taken (torch.export.Dim('size', max=64) at dimension {number} gives one)"
                )
            is_traced |= low[number] > int(taken.lower) or (
                taken.upper.is_Integer and slot.shape[number] < int(taken.upper)
            )
    return (*reasons, *(_tracing_operators(program) if is_traced else []))


def _tracing_operators(program: ExportedProgram) -> list[str]:
    """Sentences about the operators of a model that are traced for some sizes only."""
    nodes = {node.name: node for node in program.graph.nodes}
    origins = Origins.of_program(program)
    try:
        with kept():
            decomposed = program.run_decompositions()
    except Exception:  # then it cannot be said; the program is made all the same
        return []
    found = [origins.of(node) for node in decomposed.graph.nodes if _is_traced_for_some(node)]
    named = [node_in_words(nodes[name], name) for name in dict.fromkeys(found) if name in nodes]
    return [f"ExecuTorch fixes sizes in {one}" for one in named]


def _is_traced_for_some(node: Node) -> bool:
    """Whether a node's operator, traced by itself with sizes that may be any, takes only some of them."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    from torch.fx import Node

    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    arguments = pytree.tree_map_only(Node, lambda one: one.meta.get("val"), (node.args, node.kwargs))
    symbols: dict[int, Any] = {}
    made = pytree.tree_map_only(torch.Tensor, lambda one: _anew(one, mode, symbols), arguments)
    args, kwargs = pytree.tree_map_only(torch.SymInt, lambda one: symbols.get(_hint(one), _hint(one)), made)
    try:
        with mode, kept():
            node.target(*args, **kwargs)
    except Exception:  # torch raises what it likes; then the operator is not known to be one
        return False
    return bool(environment.guards)


def _anew(value: torch.Tensor, mode: FakeTensorMode, symbols: dict[int, Any]) -> torch.Tensor:
    """A tensor like a recorded one, whose dynamic sizes may be any."""
    real = torch.empty([_hint(size) for size in value.shape], dtype=value.dtype)  # never read
    sizes = [DimDynamic.STATIC if isinstance(size, int) else DimDynamic.DYNAMIC for size in value.shape]
    made = mode.from_tensor(real, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
    for size in made.shape:
        if isinstance(size, torch.SymInt):
            symbols.setdefault(_hint(size), size)
    return made


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)
