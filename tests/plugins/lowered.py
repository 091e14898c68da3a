"""Lowering a converted model for ExecuTorch, with what the tests of the rows look at."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import torchquilt as tq


@attrs.frozen(eq=False)
class Lowered:
    """A converted model as a program for ExecuTorch.

    Args:
        program: the program.
    """

    program: tq.LoweredProgram

    @property
    def outside(self) -> tuple[str, ...]:
        """The operators that the delegate did not take (``aten.squeeze_copy.dims``)."""
        operations = (one.op for one in self.program.operations if not one.delegate)
        return (*operations, *(one.op for one in self.program.leftovers))

    @property
    def kernels(self) -> tuple[str, ...]:
        """Kernels that the delegate runs: name, and the types of inputs and output.

        ``FullyConnected(qint8, qcint8) -> qint8``, for example, in order.
        """
        return tuple(map(str, self.program.kernels))

    @property
    def computing(self) -> tuple[str, ...]:
        """The kernels, without conversions between float and integers."""
        return tuple(kernel for kernel in self.kernels if not kernel.startswith("Convert("))

    @property
    def operators(self) -> tuple[str, ...]:
        """The kernels outside of the delegate that the program calls."""
        return self.program.operators

    @property
    def buffer(self) -> bytes:
        """The program."""
        return self.program.buffer

    def run(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of the program, run by ExecuTorch's runtime."""
        return pytree.tree_leaves(self.program.run(*inputs))


def lower(model: GraphModule, *inputs: torch.Tensor, dynamic_shapes: Any = None) -> Lowered:
    """Lower with both backends, whichever quantized the model: what one of them takes, it takes."""
    backends = ["executorch_embedding", "xnnpack"]
    return Lowered(tq.lower(model, inputs, dynamic_shapes=dynamic_shapes, backends=backends))
