"""Reading a program that is stored, before the runtime sees it.

The runtime reports what is wrong with a file as a number, and some of it not before it ends the process. So
the file is read here with ExecuTorch's own Python code: that it is whole, what it takes, and what it needs.
"""

from __future__ import annotations

import math
from typing import Any

import attrs

from torchquilt import LoweringError, ProgramError
from torchquilt.backend import Slot
from torchquilt_executorch.steps import kernel_name

_MAGIC = slice(4, 8)
_HEADER = slice(8, 8 + 64)
METHOD = "forward"
_GET_AGAIN = "get the file again from where it was saved"


@attrs.frozen(eq=False)
class StoredProgram:
    """Facts that a stored program states about itself.

    Args:
        inputs, outputs: of its method ``forward``.
        operators: the kernels that it calls, each once (``aten::mean.out``).
        delegates: the ids of those that it calls, in order.
        structure: the structures of inputs and outputs as pytree writes them.
        float_zero_points: the dequantize kernels that it calls with zero points that are no integers.
        nbytes: of all its tensors together, at their largest sizes.
        plan: as the file has it.
    """

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    operators: tuple[str, ...]
    delegates: tuple[str, ...]
    structure: tuple[str, str]
    float_zero_points: tuple[str, ...]
    nbytes: int
    plan: Any

    @classmethod
    def of(cls, buffer: bytes) -> StoredProgram:
        """Read a program.

        Raises:
            ProgramError: it is cut off, damaged, or something else.
        """
        from executorch.exir._serialize._program import deserialize_pte_binary

        _check_is_whole(buffer)
        try:
            program = deserialize_pte_binary(buffer).program
            plan = next(plan for plan in program.execution_plan if plan.name == METHOD)
            called = plan.container_meta_type
            return cls(
                inputs=tuple(_slot(plan.values[index].val, is_input=True) for index in plan.inputs),
                outputs=tuple(_slot(plan.values[index].val, is_input=False) for index in plan.outputs),
                operators=tuple(dict.fromkeys(map(_operator, plan.operators))),
                delegates=tuple(delegate.id for delegate in plan.delegates),
                structure=(called.encoded_inp_str, called.encoded_out_str),
                float_zero_points=tuple(_with_float_zero_points(plan)),
                nbytes=sum(map(_nbytes, plan.values)),
                plan=plan,
            )
        except Exception as error:  # reading damaged bytes fails in any way
            raise ProgramError(
                "The program cannot be read: it is damaged, or was written by another ExecuTorch.",
                expected=f"a program with a method {METHOD!r}",
                got=f"{type(error).__name__}: {error}",
                remedy=_GET_AGAIN,
            ) from error

    def check_is_harmless(self) -> None:
        """Refuse a program that would end the process that runs it.

        Raises:
            LoweringError: it dequantizes with float zero points, which the kernel of the runtime cannot.
        """
        if self.float_zero_points:
            raise LoweringError(
                "The program would dequantize with zero points that are no integers, at which the runtime "
                "ends the process.",
                expected="a table of that kind in embedding_byte, which reads it as it is",
                got=", ".join(self.float_zero_points),
                remedy="lower with the backend that quantized the table (executorch_embedding)",
            )


def _check_is_whole(buffer: bytes) -> None:
    """Refuse a file that is shorter than it says.

    Raises:
        ProgramError: it is, or has not even said so.
    """
    from executorch.exir._serialize._program import _ExtendedHeader

    if len(buffer) < _HEADER.stop or not buffer[_MAGIC].startswith(b"ET"):
        raise ProgramError(
            "This is not a program of ExecuTorch, or only its beginning.",
            expected="a .pte file, which has ET12 at byte 4",
            got=f"{len(buffer):,} bytes, which begin with {buffer[:8]!r}",
            remedy=_GET_AGAIN,
        )
    header = _ExtendedHeader.from_bytes(buffer[_HEADER])
    if not header.is_valid():
        return  # an older one, all of which is one flatbuffer
    segments = header.segment_base_offset + header.segment_data_size if header.segment_base_offset else 0
    needed = max(header.program_size, segments)
    if len(buffer) < needed:
        raise ProgramError(
            "The program is cut off.",
            expected=f"{needed:,} bytes, as its header says",
            got=f"{len(buffer):,} bytes",
            remedy=_GET_AGAIN,
        )


def _operator(operator: Any) -> str:
    return kernel_name(operator.name, operator.overload)


#: Values that are no tensors → their dtype, and where the value is.
_NUMBERS = {"Int": ("int", "int_val"), "Double": ("float", "double_val"), "Bool": ("bool", "bool_val")}


def _slot(value: Any, *, is_input: bool) -> Slot:
    kind = type(value).__name__
    if kind == "Tensor":
        return Slot(
            dtype_of(value.scalar_type),
            tuple(value.sizes),
            value.shape_dynamism.name != "STATIC",
            tuple(value.dim_order),
        )
    # An output may be computed: a number is stored in its place all the same.
    dtype, field = _NUMBERS.get(kind, ("", ""))
    is_constant = kind == "Null" or (is_input and bool(field))
    constant = getattr(value, field) if is_constant and field else None
    return Slot(dtype, (), False, is_constant=is_constant, constant=_number(constant))


def _nbytes(value: Any) -> int:
    """Bytes of a tensor at its largest sizes."""
    from executorch.exir.tensor import get_scalar_type

    if type(value.val).__name__ != "Tensor":
        return 0
    return int(math.prod(value.val.sizes) * get_scalar_type(value.val.scalar_type).itemsize)


def _number(value: Any) -> Any:
    """A number of the file, in which those that JSON has no word for are texts."""
    return float(value) if isinstance(value, str) else value


def dtype_of(scalar_type: Any) -> str:
    """The name of torch for a type of ExecuTorch's."""
    from executorch.exir.tensor import get_scalar_type

    return str(get_scalar_type(scalar_type)).removeprefix("torch.")


def _with_float_zero_points(plan: Any) -> list[str]:
    """The dequantize kernels of a plan one of whose tensors of parameters beside the scales is float."""
    from executorch.exir.schema import KernelCall

    found = []
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if not isinstance(call, KernelCall):
                continue
            name = _operator(plan.operators[call.op_index])
            if not name.startswith("quantized_decomposed::dequantize_per_channel"):
                continue
            zero_point = plan.values[call.args[2]].val
            if type(zero_point).__name__ == "Tensor" and "float" in dtype_of(zero_point.scalar_type):
                found.append(name)
    return found
