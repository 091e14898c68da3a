"""Facts about a lowered program: its inputs and outputs, what runs where, how it compares.

Importing this module does not import torch.
"""

from __future__ import annotations

import attrs

from torchquilt.lowering.target import Arithmetic, Constant

#: Orders of dimensions in memory that have a name.
_ORDERS: dict[tuple[int, ...], str] = {(0, 2, 3, 1): "channels_last"}
#: No dimension is larger: runtimes count in 32 bits.
LARGEST = 2**31 - 1


@attrs.frozen
class Dimension:
    """The sizes that a dimension takes.

    Args:
        low, high: the smallest and the largest; equal where it is fixed.
        symbol: what export calls its size; those of one symbol have one size. Empty where it is not known.
    """

    low: int
    high: int
    symbol: str = ""

    def takes(self, size: int) -> bool:
        """Whether a size is one of them."""
        return self.low <= size <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return str(self.high)
        return f"{self.symbol or 'size'}: {self.low}..{self.high}"


@attrs.frozen
class Port:
    """An input or output of a program.

    Args:
        name: of the input, or of the node that computes the output.
        dtype: ``"float32"``; ``"int"``, ``"float"`` or ``"bool"`` for a number; empty where it is anything.
        shape: each dimension.
        scale, zero_point: where it is quantized, ``x = (q - zero_point) * scale``; None where it is not.
        quant_min, quant_max: the integers that are used, likewise.
        dim_order: its dimensions from the one that lies farthest apart in memory to the one whose elements
            are neighbors, ``(0, 2, 3, 1)`` for channels_last; empty for a contiguous tensor.
            :meth:`LoweredProgram.run` arranges what it is given, on a device the application has to.
        is_constant: whether export made a constant of it: the program takes, or returns, this value alone.
        constant: that value.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]
    scale: float | None = None
    zero_point: int | None = None
    quant_min: int | None = None
    quant_max: int | None = None
    dim_order: tuple[int, ...] = ()
    is_constant: bool = False
    constant: Constant = None

    @property
    def is_quantized(self) -> bool:
        """Whether it is an integer that stands for a real number."""
        return self.scale is not None

    def __str__(self) -> str:
        if self.is_constant:
            return f"{self.name}: {self.constant!r}, a constant"
        sizes = ", ".join(map(str, self.shape))
        qparams = "" if self.scale is None else f", scale {self.scale:.6g}, zero point {self.zero_point}"
        return f"{self.name}: {self.dtype or 'any'}[{sizes}]{self._order}{qparams}"

    @property
    def _order(self) -> str:
        if not self.dim_order:
            return ""
        name = _ORDERS.get(self.dim_order)
        return f", {name}" if name else f", dimensions in memory: {', '.join(map(str, self.dim_order))}"


@attrs.frozen
class Ports:
    """Inputs and outputs of a program, in order. Prints a line for each.

    Args:
        inputs: with tensors in lists and dicts one after the other, as the runtime takes them.
        outputs: likewise.
        arguments: the names of the arguments of a call, those by position first; empty where they are not
            known.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            [*(f"in   {port}" for port in self.inputs), *(f"out  {port}" for port in self.outputs)]
        )


@attrs.frozen
class Leftover:
    """A quantize or dequantize operator that the program runs by itself, on whole tensors.

    Args:
        name: its name in the program of the runtime's dialect.
        op: its overload.
        stems_from: the node of the model that it was put there for, empty where that is not known.
        stems_from_op: the overload of that node.
        module: path of the innermost module that this node comes from.
        line: ``file:line`` of the code that it comes from, empty where export kept none.
    """

    name: str
    op: str
    stems_from: str
    stems_from_op: str
    module: str
    line: str

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.module and f"module {self.module}", self.line)))
        return f"{self.op} of {self.stems_from or 'nothing known'}" + (f" ({where})" if where else "")


@attrs.frozen
class LoweredOperation:
    """One operator of the program, and what runs it.

    Args:
        op: its overload in the runtime's dialect.
        node: the node of the model that it comes from, empty where that is not known.
        module: path of the innermost module of that node.
        delegate: the delegate that runs it and its number, empty where a kernel of the runtime itself does.
        arithmetic: in what it computes.
        line: ``file:line`` of the code that it comes from, empty where export kept none.
        step: the step of the program that runs it, as in :class:`torchquilt.backend.Operation`.
        output: which output of the step its value is; None where the value stays inside.
        is_quantized: whether the model has it quantized.
    """

    op: str
    node: str
    module: str
    delegate: str
    arithmetic: Arithmetic
    line: str = ""
    step: str = ""
    output: int | None = None
    is_quantized: bool = False

    @property
    def runs_as_integers(self) -> bool:
        """Whether it computes with integers that stand for real numbers, and not with indices or sizes."""
        return self.arithmetic == "integer" and (bool(self.delegate) or self.is_quantized)

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.module and f"module {self.module}", self.line)))
        return f"{self.node or 'a node that is not known'} ({', '.join(filter(None, (self.op, where)))})"


@attrs.frozen
class Agreement:
    """Comparison of one output with that of the quantized model.

    Args:
        output: its name.
        sqnr: signal to quantization noise ratio in dB; infinite where the two are equal, and minus infinite
            where they cannot be compared (another shape, numbers that are not finite).
        largest_difference: the largest absolute difference of an element.
        step: its quantization step, which is its scale; None where it is not quantized.
        note: what is to be known of the comparison, mostly empty.
        is_excused: whether the difference does not count, for the reason in ``note``.
    """

    output: str
    sqnr: float
    largest_difference: float
    step: float | None = None
    note: str = ""
    is_excused: bool = False

    def is_within(self, least_sqnr: float) -> bool:
        """Whether it is as good as asked, or differs by no more than one quantization step."""
        # Both sides compute dequantized values in float, hence the last bits.
        is_a_step = self.step is not None and self.largest_difference <= 1.001 * self.step
        return self.sqnr >= least_sqnr or is_a_step or self.is_excused

    def __str__(self) -> str:
        step = "" if self.step is None else f" ({self.largest_difference / self.step:.2f} steps)"
        note = f"; {self.note}" if self.note else ""
        told = f"{self.sqnr:.1f} dB, largest difference {self.largest_difference:.3g}"
        return f"{self.output}: {told}{step}{note}"


@attrs.frozen
class Verification:
    """Comparison of the program with the quantized model on the example inputs; false if an output disagrees.

    Args:
        outputs: what it returns, in order; empty where nothing was compared.
        least_sqnr: the least SQNR of each, in dB, unless it is within one quantization step.
        skipped: why nothing was compared, empty where it was.
    """

    outputs: tuple[Agreement, ...]
    least_sqnr: float
    skipped: str = ""

    @property
    def sqnr(self) -> float:
        """The smallest ratio of all outputs, in dB."""
        return min((output.sqnr for output in self.outputs), default=float("inf"))

    def __bool__(self) -> bool:
        return all(output.is_within(self.least_sqnr) for output in self.outputs)

    def __str__(self) -> str:
        return f"not compared: {self.skipped}" if self.skipped else "\n".join(map(str, self.outputs))
