"""Contribution for NPUs of Arm: Vela compiles what Arm's quantizer quantized, and its output is read.

Importing this module imports neither torch nor ExecuTorch.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator
from typing import Any

from torchquilt.backend import Contribution, Kernel
from torchquilt.errors import LoweringError

_DELEGATE = "EthosUBackend"
#: The header of a block of the payload: its name, its size without what fills it up, and whether its content
#: is outside of the program.
_BLOCK = struct.Struct("<16sI?11x")
_ALIGNMENT = 16
_COMMANDS = "cmd_data"

# The commands are behind a header for the driver: a mark, and actions, whose kind is in the lowest byte.
_KIND = 0xFF
_SET_UP, _RUN = 0x01, 0x02
_WORDS_OF_SET_UP = 3

# A command has its number in the lowest bits, its parameter in the upper half, and maybe a word behind it.
_NUMBER, _HAS_WORD = 0x03FF, 0xC000
_OPERATIONS = {
    0x02: "NPU_OP_CONV",
    0x03: "NPU_OP_DEPTHWISE",
    0x04: "NPU_OP_RESIZE",
    0x05: "NPU_OP_POOL",
    0x06: "NPU_OP_ELEMENTWISE",
}
# Registers that say in what an operation reads and writes: a sign in the lowest bit, and the width behind it.
_READS, _WRITES = 0x105, 0x114
_WIDTH_OF_READ, _WIDTH_OF_WRITTEN = 2, 1
_WIDTHS = ("int8", "int16", "int32")


def ethos_u(accelerator: Any) -> Contribution:
    """The contribution to lowering for an Ethos-U, which ``torchquilt.lower`` takes.

    ::

        spec = EthosUCompileSpec("ethos-u55-128")
        program = tq.lower(quantized, inputs, target="executorch", backends={"arm_ethosu": ethos_u(spec)})

    The ledger says of each operator what the NPU runs, and how large the delegate is.

    Args:
        accelerator: ExecuTorch's ``EthosUCompileSpec``, the one that the quantizer was made with; or the name
            of an accelerator, for one with Vela's defaults.
    """
    return Contribution(partitioners=lambda: [_partitioner(accelerator)], readers={_DELEGATE: kernels_of})


def _partitioner(accelerator: Any) -> Any:
    """Arm's partitioner.

    Raises:
        LoweringError: a package that it takes is not installed.
    """
    try:
        importlib.import_module("ethosu.vela")
        ethosu = importlib.import_module("executorch.backends.arm.ethosu")
    except ImportError as error:
        raise LoweringError(
            "What compiles for an Ethos-U is not installed.",
            expected="ExecuTorch with its backend for Arm, and Arm's packages tosa-tools and ethos-u-vela",
            got=f"{type(error).__name__}: {error}",
            remedy="pip install executorch tosa-tools ethos-u-vela",
        ) from error
    is_name = isinstance(accelerator, str)
    return ethosu.EthosUPartitioner(ethosu.EthosUCompileSpec(accelerator) if is_name else accelerator)


def kernels_of(payload: bytes) -> Iterator[Kernel]:
    """The operations that the NPU runs. They name no operator: Vela makes several of one.

    Args:
        payload: what Vela compiled, as the delegate has it.
    """
    registers: dict[int, int] = {}
    for number, parameter in _commands(_block(payload, _COMMANDS)):
        registers[number] = parameter
        if number in _OPERATIONS:
            reads = _type(registers.get(_READS, 0), _WIDTH_OF_READ)
            writes = _type(registers.get(_WRITES, 0), _WIDTH_OF_WRITTEN)
            yield Kernel(_OPERATIONS[number], (reads,), (writes,), "integer")


def _block(payload: bytes, wanted: str) -> bytes:
    """A block of the payload; empty where it has none of the name, or its content is outside."""
    start = 0
    while start + _BLOCK.size <= len(payload):
        name, size, is_outside = _BLOCK.unpack_from(payload, start)
        start += _BLOCK.size
        if name.rstrip(b"\0").decode("ascii", "replace") == wanted:
            return b"" if is_outside else payload[start : start + size]
        start += -(-size // _ALIGNMENT) * _ALIGNMENT
    return b""


def _commands(block: bytes) -> Iterator[tuple[int, int]]:
    """Commands without a word behind them: their number and parameter."""
    words = struct.unpack(f"<{len(block) // 4}I", block[: len(block) // 4 * 4])
    at = _first_command(words)
    while at < len(words):
        if words[at] & _HAS_WORD:
            at += 1
        else:
            yield words[at] & _NUMBER, words[at] >> 16
        at += 1


def _first_command(words: tuple[int, ...]) -> int:
    """Index of the first command, behind the header."""
    at = 1
    while at < len(words) and words[at] & _KIND != _RUN:
        at += _WORDS_OF_SET_UP if words[at] & _KIND == _SET_UP else 1
    return at + 1


def _type(parameter: int, width_at: int) -> str:
    """A type of integers, as a register has it."""
    name = _WIDTHS[min(parameter >> width_at & 0b11, len(_WIDTHS) - 1)]
    return name if parameter & 1 else f"u{name}"
