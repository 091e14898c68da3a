"""ExecuTorch's embedding kernels: which lookups they take, how they read a table, and how they are called.

A converted model dequantizes its tables and looks rows up in float. The kernels look rows up in integers of
8, 4 or 2 bits, several in a byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.backend import Granularity, dequantize_of, overload_name

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

# Integers of a dequantize: dtype, smallest, largest → bits.
_BITS = {
    ("torch.uint8", 0, 255): 8,
    ("torch.int8", -128, 127): 8,
    ("torch.int8", -8, 7): 4,
    ("torch.int8", -2, 1): 2,
}


def define_operators() -> None:
    """Let torch know the operators, which ExecuTorch defines."""
    import importlib

    importlib.import_module("executorch.exir.passes._quant_patterns_and_replacements")


@attrs.frozen(eq=False)
class Table:
    """A dequantize of a stored table: where its integers and parameters are read, and their bits.

    The kernels want parameters of the dtype of the rows that they return. Rounded to float16 a zero point
    near 128 would be off by up to 0.06 steps, so bytes that are looked up in float16 are stored from -128 on:
    the zero points of rows around 0 then lie near 0. What scales lose is what the rows in float16 lose, too.
    """

    integers: Node
    scale: Node
    zero_point: Node
    bits: int
    limits: tuple[int, int]
    dtype: torch.dtype

    @property
    def shift(self) -> int:
        """Offset that is subtracted from integers and zero points where they are stored for the kernel."""
        return 128 if self.limits == (0, 255) and self.dtype.itemsize == 2 else 0

    def packed(self, integers: torch.Tensor) -> torch.Tensor:
        """The integers as the kernel reads them; see :func:`pack`."""
        import torch

        if self.shift:
            integers = (integers.to(torch.int16) - self.shift).to(torch.int8)
        return pack(integers, self.bits)

    def scales(self, scale: torch.Tensor) -> torch.Tensor:
        """The scales as the kernel reads them."""
        return scale.to(self.dtype)

    def zero_points(self, zero_point: torch.Tensor) -> torch.Tensor:
        """The zero points as the kernel reads them."""
        return (zero_point - self.shift).to(self.dtype)


def table_of(node: Node) -> Table | None:
    """The table that a lookup in an exported program reads, if it is stored and a kernel takes it."""
    if overload_name(node) != "aten.embedding.default":
        return None
    weight: Any = node.args[0]
    told = dequantize_of(weight)
    if told is None or told.granularity not in (Granularity.PER_AXIS, Granularity.PER_GROUP):
        return None
    tensors = told.input, told.scale, told.zero_point
    limits = told.quant_min, told.quant_max
    bits = _BITS.get((str(told.dtype), *limits))
    is_by_row = told.axis in (0, None)
    if bits is None or not is_by_row or any(tensor.op != "placeholder" for tensor in tensors):
        return None
    return Table(*tensors, bits, limits, node.meta["val"].dtype)


def call_kernel(node: Node, table: Table, tensors: tuple[Node, ...]) -> Node:
    """Replace a lookup by the call of a kernel, with integers and parameters as it reads them."""
    import torch

    from torchquilt.backend import take_origin

    limits = (bound - table.shift for bound in table.limits)
    arguments = (*tensors, *limits, node.args[1])
    name = "embedding_byte" if table.bits == 8 else f"embedding_{table.bits}bit"
    operator = getattr(torch.ops.quantized_decomposed, name)
    value = node.meta["val"]
    with node.graph.inserting_before(node):
        if table.dtype is torch.float32:
            call = node.graph.call_function(operator.default, arguments)
        else:
            call = node.graph.call_function(operator.dtype, arguments, {"dtype": table.dtype})
    take_origin(call, node)
    call.meta["val"] = value
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)
    return call


def pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of 8, 4 or 2 bits as the kernels read them.

    Args:
        integers: (rows, width), uint8 or int8, those of fewer bits between ``-2**(bits - 1)`` and
            ``2**(bits - 1) - 1``; ``width`` is a multiple of ``8 // bits``.
        bits: how many of them a number has.

    Returns:
        (rows, width * bits / 8), of the same dtype where ``bits`` is 8, else uint8: the integers from 0 on,
        of 4 bits the first of two in the upper half of a byte, of 2 bits the first of four in the lowest.
    """
    import torch

    if bits == 8:
        return integers
    in_byte = 8 // bits
    shifted = (integers.to(torch.int16) + 2 ** (bits - 1)).unflatten(1, (-1, in_byte))
    positions = range(in_byte) if bits == 2 else reversed(range(in_byte))
    weights = torch.tensor([2 ** (bits * position) for position in positions], dtype=torch.int16)
    packed: torch.Tensor = (shifted * weights).sum(-1)
    return packed.to(torch.uint8)
