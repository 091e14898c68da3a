"""Lowering a converted model with ExecuTorch, running it, and seeing what of it runs where, in which type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import attrs
import executorch.kernels.quantized  # noqa: F401  (registers the quantized kernels with the runtime)
import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.dialects.edge._ops import EdgeOpOverload
from executorch.exir.passes import QuantFusionPass
from executorch.runtime import Runtime
from torch.fx import GraphModule


@attrs.frozen(eq=False)
class Lowered:
    """A converted model as a program for ExecuTorch.

    Args:
        outside: the operators that the delegate did not take, in order (``aten.squeeze_copy.dims``).
        kernels: what the delegate runs, in order: name, and the types of inputs and output
            (``FullyConnected(qint8, qcint8) -> qint8``).
        operators: the kernels outside of the delegate that the program calls.
        buffer: the program.
    """

    outside: tuple[str, ...]
    kernels: tuple[str, ...]
    operators: tuple[str, ...]
    buffer: bytes

    @property
    def computing(self) -> tuple[str, ...]:
        """The kernels, without conversions between float and integers."""
        return tuple(kernel for kernel in self.kernels if not kernel.startswith("Convert("))

    def run(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """What the program returns, run by ExecuTorch's runtime."""
        program = Runtime.get().load_program(self.buffer)
        return list(program.load_method("forward").execute(inputs))


def lower(model: GraphModule, *inputs: torch.Tensor, dynamic_shapes: Any = None) -> Lowered:
    """Export a converted model again, hand XNNPACK what it takes, and fuse what quantized kernels take.

    ``QuantFusionPass`` makes ``embedding_byte`` of a dequantized embedding. Without it the program aborts
    when it is run: the runtime has no dequantize with a float zero point.
    """
    with _watched_delegate() as graphs:
        edge = to_edge_transform_and_lower(
            torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes),
            partitioner=[XnnpackPartitioner()],
        )
    outside = tuple(_outside(edge.exported_program().graph))  # to_executorch writes to this graph
    program = edge.to_executorch(ExecutorchBackendConfig(passes=[QuantFusionPass()]))
    (plan,) = program.executorch_program.execution_plan
    return Lowered(
        outside=outside,
        kernels=tuple(_kernel(graph, node) for graph in graphs for node in graph.xnodes),
        operators=tuple(f"{operator.name}.{operator.overload}" for operator in plan.operators),
        buffer=program.buffer,
    )


@contextmanager
def _watched_delegate() -> Iterator[list[Any]]:
    """Collect the graphs that the delegate makes, right before they become bytes."""
    graphs: list[Any] = []
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def watched(graph: Any, constants: bytearray) -> bytes:
        graphs.append(graph)
        data: bytes = serialize(graph, constants)
        return data

    with mock.patch.object(xnnpack_preprocess, "serialize_xnnpack_binary", watched):
        yield graphs


def _outside(graph: torch.fx.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if isinstance(node.target, (EdgeOpOverload, torch._ops.OpOverload)):
            yield str(node.target._op if isinstance(node.target, EdgeOpOverload) else node.target)


def _kernel(graph: Any, node: Any) -> str:
    """One node of the delegate with its types, as the runtime is going to read them."""
    types = {}
    for value in graph.xvalues:
        tensor = value.xvalue_union
        tensor = getattr(tensor, "tensor_value", tensor)
        types[tensor.id_out] = tensor.datatype.name.removeprefix("xnn_datatype_")
    kernel = node.xnode_union
    sources = ("input_id", "input1_id", "input2_id", "input3_id", "input4_id", "input5_id", "filter_id")
    read = [types[getattr(kernel, name)] for name in sources if getattr(kernel, name, -1) in types]
    name = type(kernel).__name__.removeprefix("XNN")
    return f"{name}({', '.join(read)}) -> {types[kernel.output_id]}"
