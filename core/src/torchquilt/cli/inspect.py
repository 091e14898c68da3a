"""``torchquilt inspect``: what is in a saved model, and what made it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from torchquilt.cli.exits import OK
from torchquilt.cli.ledgers import share_of, show_ledger
from torchquilt.cli.options import JSON_SCHEMA, Command, json_option
from torchquilt.cli.output import write, write_json, write_table
from torchquilt.cli.programs import show_program

if TYPE_CHECKING:
    from torchquilt.artifact.lock import Lock, QuantizedTensor

#: Bytes of a float32.
_FLOAT = 4


@click.command(cls=Command, short_help="Show what is in a saved model or a lowered program.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def inspect(file: Path, as_json: bool) -> int:
    """Show the lock of a saved model: versions, quantizer, sizes, what is quantized, tensors.

    FILE is a file of `quantize` or torchquilt.save. Only the lock is read, without torch;
    torchquilt.load checks the rest of the file against it.

    For a program of `lower`, the report beside it is shown: where each operator runs.
    """
    from torchquilt.lowering.program import read_report
    from torchquilt.lowering.report import is_reported

    if is_reported(file):
        program = read_report(file)
        if as_json:
            write_json(program.to_plain())
        else:
            show_program(file, program)
        return OK
    from torchquilt.artifact.archive import read_lock

    lock = read_lock(file)
    if as_json:
        ledger = lock.ledger
        write_json(
            {
                "schema": JSON_SCHEMA,
                "file": str(file),
                "nbytes": file.stat().st_size,
                "bytes_by_dtype": lock.bytes_by_dtype,
                "share": None if ledger is None else share_of(ledger),
                "ledger": None if ledger is None else ledger.to_plain(),
                "lock": lock.to_plain(),
            }
        )
    else:
        _show(file, lock)
    return OK


def _show(file: Path, lock: Lock) -> None:
    size = file.stat().st_size
    write(f"{file}: {size:,} bytes, written by torchquilt {lock.torchquilt} with torch {lock.torch}")
    write(f"lock: sha256 {lock.sha256}")
    for plugin in lock.plugins:
        write(f"backend: {plugin.backend} ({plugin.distribution or 'no package'} {plugin.version or ''})")
    write(f"quantizer: {lock.quantizer or 'not known'}")
    if why := _why_larger(size, lock):
        write(why)
    sizes = [*lock.bytes_by_dtype.items()]
    sizes.append(("program and lock", size - sum(lock.bytes_by_dtype.values())))
    write_table([("bytes of", "", ""), *((n, f"{b:,}", f"{b / size:.0%}") for n, b in sizes)])
    if lock.ledger is not None:
        show_ledger(lock.ledger)
    constants = {tensor.name: tensor for tensor in lock.quantized if tensor.kind == "constant"}
    tensors = [
        (t.name, t.role, f"{t.dtype}{[*t.shape]}", _quantized(constants.get(t.name))) for t in lock.tensors
    ]
    write_table([("tensor", "role", "stored as", "quantized"), *tensors], "tensors")
    computed = [(t.name, t.kind, _quantized(t)) for t in lock.quantized if t.kind != "constant"]
    if computed:
        write_table([("activation", "parameters", "quantized"), *computed], "activations")


def _why_larger(size: int, lock: Lock) -> str:
    """Explain why a file is larger than its tensors were in float; empty where it is smaller."""
    entries = {entry.name: entry.nbytes for entry in lock.entries}
    constants = {tensor.name: tensor for tensor in lock.quantized if tensor.kind == "constant"}
    parameters = {
        name for one in constants.values() for name in (one.scale, one.zero_point) if isinstance(name, str)
    }
    held: dict[str, tuple[int, int]] = {}  # entry → its bytes in float, and those of scales and zero points
    for tensor in lock.tensors:
        stored = entries.get(tensor.entry, 0)
        if tensor.name in parameters:
            held[tensor.entry] = (0, stored)
        else:
            in_float = _FLOAT * math.prod(tensor.shape) if tensor.name in constants else stored
            held[tensor.entry] = (in_float, 0)
    in_float = sum(one for one, _ in held.values())
    if not constants or size <= in_float:
        return ""
    parts = {
        "the program": entries.get("models/model.json", 0),
        "the lock with the ledger": size - sum(entries.values()),
        "example inputs": sum(n for name, n in entries.items() if name.startswith("data/sample_inputs/")),
        "scales and zero points": sum(one for _, one in held.values()),
    }
    largest = sorted(parts.items(), key=lambda part: -part[1])
    told = ", ".join(f"{what} {nbytes:,}" for what, nbytes in largest if nbytes)
    return (
        f"larger than the tensors were in float ({in_float:,} bytes), because of what is beside them: {told}"
    )


def _quantized(tensor: QuantizedTensor | None) -> str:
    """Integers and parameters of a quantized tensor, in words."""
    if tensor is None:
        return ""
    scale = f", scale {tensor.scale:.6g}" if isinstance(tensor.scale, float) else ""
    zero = f", zero point {tensor.zero_point}" if isinstance(tensor.zero_point, (int, float)) else ""
    return f"{tensor.dtype} [{tensor.quant_min}, {tensor.quant_max}] {tensor.granularity}{scale}{zero}"
