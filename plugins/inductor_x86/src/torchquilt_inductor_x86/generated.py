"""Kernels of a program, as Inductor generated them: what each computes, and from which operators it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import torch

from torchquilt_inductor_x86 import torch_private as inductor

#: Kernels that multiply integers, and the operators of a program that they compute.
INTEGER_PRODUCTS = ("onednn.qconv", "onednn.qconv2d", "onednn.qlinear")
#: Kernels of data movement on integers.
_INTEGER_MOVES = ("quantized.max_pool2d",)
#: Multiplies floats with weights of integers.
WEIGHT_ONLY = "_weight_int8pack_mm"


@attrs.frozen
class Generated:
    """A kernel of the program.

    Args:
        step: the name of the fused kernel that it is a part of.
        kernel: the kernel that is called, or ``cpp_fused`` for a generated loop.
        sink: the node of the program whose value it returns, empty where that is not known.
        sources: the nodes of the program that are computed in it, inlined ones as well.
        reads, writes: dtypes.
        buffers: what Inductor calls the tensors that it returns.
    """

    step: str
    kernel: str
    sink: str
    sources: frozenset[str]
    reads: tuple[str, ...]
    writes: str
    buffers: frozenset[str] = frozenset()

    @property
    def is_called(self) -> bool:
        """Whether it is a kernel of a library, and not a generated loop."""
        return self.kernel != LOOP

    @property
    def multiplies_integers(self) -> bool:
        """Whether it is a convolution or a product of integers."""
        return self.kernel.startswith(INTEGER_PRODUCTS)

    @property
    def is_integer(self) -> bool:
        """Whether a called kernel computes with integers."""
        return self.multiplies_integers or self.kernel.startswith(_INTEGER_MOVES)

    @property
    def adds(self) -> bool:
        """Whether another tensor is added in it."""
        return ".binary" in self.kernel

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(self.reads)}) -> {self.writes}"


LOOP = "cpp_fused"


def read(kernels: Sequence[Any]) -> list[Generated]:
    """The kernels that Inductor scheduled for a graph."""
    found: list[Generated] = []
    for step, operations in inductor.steps_of(kernels):
        for scheduled in operations:
            operation = inductor.operation_of(scheduled)
            if operation is None:
                continue
            if inductor.is_output_of_kernel(operation):
                found = _with_output(found, inductor.kernel_that_makes(operation), scheduled)
            else:
                found.append(_read_one(step, scheduled, operation))
    return found


def _with_output(found: Sequence[Generated], kernel: str, output: Any) -> list[Generated]:
    """The kernels, where one of them has an output more."""
    buffers = inductor.buffers_of(output)
    return [
        attrs.evolve(one, buffers=one.buffers.union(buffers)) if kernel in one.buffers else one
        for one in found
    ]


def _read_one(step: str, scheduled: Any, operation: Any) -> Generated:
    names = [inductor.source_name(node) for node in inductor.origins_of(operation)]
    return Generated(
        step,
        inductor.called_kernel(operation) or LOOP,
        names[0] if names else "",
        frozenset(filter(None, names)),
        tuple(map(_name, inductor.read_dtypes(scheduled))),
        _name(inductor.written_dtype(operation)),
        frozenset(inductor.buffers_of(scheduled)),
    )


def in_steps(
    kernels: Sequence[Generated], calls: Iterable[tuple[str, Sequence[str]]]
) -> tuple[Generated, ...]:
    """Kernels with the calls that they became as their steps: several loops may be one call.

    Args:
        kernels: what was scheduled.
        calls: in order, each with the buffers that it writes.
    """
    called, written = zip(*calls, strict=True) if (calls := tuple(calls)) else ((), ())
    owner = {buffer: one.step for one in kernels for buffer in one.buffers}
    step_of: dict[str, str] = {}
    for step, buffers in zip(numbered(called), written, strict=True):
        for buffer in buffers:
            if buffer in owner:
                step_of.setdefault(owner[buffer], step)
    return tuple(attrs.evolve(one, step=step_of.get(one.step, one.step)) for one in kernels)


def numbered(calls: Iterable[str]) -> Iterator[str]:
    """Names of the calls of kernels in order; the second call of one has a 2 behind it."""
    seen: Counter[str] = Counter()
    for name in calls:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} {seen[name]}"


def _name(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")
