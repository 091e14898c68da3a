"""A lowered program on a terminal, and in a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torchquilt._internal.terminal import is_terminal
from torchquilt._internal.text_tables import counted
from torchquilt.cli.ledgers import show_ledger
from torchquilt.cli.output import write, write_table

if TYPE_CHECKING:
    from torchquilt.lowering.program import LoweredProgram


def show_program(file: Path, program: LoweredProgram) -> None:
    """Print what a program takes, what runs where, what is left outside, and how it compares."""
    backends = ", ".join(program.backends) or "no backend"
    write(f"{file}: {program.size:,} bytes, for {program.target}, from {backends}")
    ports = [("input", port) for port in program.io.inputs] + [
        ("output", port) for port in program.io.outputs
    ]
    write_table([("", "takes and returns"), *((kind, str(port)) for kind, port in ports)])
    write(
        f"computed as integers: {counted(len(program.integer_operations), 'operator')}; "
        f"islands of float: {len(program.float_islands)}; "
        f"quantize and dequantize left outside: {len(program.leftovers)}"
    )
    if program.operators:
        write(f"kernels of the runtime: {', '.join(program.operators)}")
    if program.leftovers:
        left = [(one.op, one.stems_from, one.module, one.line) for one in program.leftovers]
        write_table([("operator", "stems from", "module", "line"), *left], "left outside")
    if program.ledger is not None:
        show_ledger(program.ledger)
        if is_terminal(sys.stdout):
            statuses = [
                (code, str(len(rows))) for code, rows in sorted(program.ledger.by_lowering_status.items())
            ]
            write_table([("lowered", "operators"), *statuses])
    if program.verification is not None:
        for line in str(program.verification).splitlines():
            write(f"against the quantized model: {line}")
