"""Kernels of a program, as Inductor generated them: what each computes, and from which operators it comes."""

from __future__ import annotations

from collections.abc import Sequence
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
    """

    step: str
    kernel: str
    sink: str
    sources: frozenset[str]
    reads: tuple[str, ...]
    writes: str

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
    found = []
    for step, operations in inductor.steps_of(kernels):
        for scheduled in operations:
            operation = inductor.operation_of(scheduled)
            if operation is None or inductor.is_output_of_kernel(operation):
                continue
            found.append(_read_one(step, scheduled, operation))
    return found


def _read_one(step: str, scheduled: Any, operation: Any) -> Generated:
    names = [inductor.source_name(node) for node in inductor.origins_of(operation)]
    return Generated(
        step,
        inductor.called_kernel(operation) or LOOP,
        names[0] if names else "",
        frozenset(filter(None, names)),
        tuple(map(_name, inductor.read_dtypes(scheduled))),
        _name(inductor.written_dtype(operation)),
    )


def _name(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")
