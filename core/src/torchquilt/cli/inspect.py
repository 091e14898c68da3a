"""``torchquilt inspect``: what is in a saved model, and what made it."""

from __future__ import annotations

import json
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


@click.command(cls=Command, short_help="Show what is in a saved model or a lowered program.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def inspect(file: Path, as_json: bool) -> int:
    """Show the lock of a saved model: versions, quantizer, sizes, what is quantized, tensors.

    FILE is what `quantize` or torchquilt.save wrote. Only the lock is read, without torch: whether the rest
    of the file is what it says is checked by torchquilt.load.

    Of what `lower` wrote, the report that lies beside it is shown: where each operator runs.
    """
    from torchquilt.lowering.report import is_reported, read_report

    if is_reported(file):
        program = read_report(file)
        if as_json:
            write_json(json.loads(program.to_json()))
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
                "ledger": None if ledger is None else json.loads(ledger.to_json()),
                "lock": json.loads(lock.to_json()),
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


def _quantized(tensor: QuantizedTensor | None) -> str:
    """The numbers of a quantized tensor in words."""
    if tensor is None:
        return ""
    scale = f", scale {tensor.scale:.6g}" if isinstance(tensor.scale, float) else ""
    zero = f", zero point {tensor.zero_point}" if isinstance(tensor.zero_point, (int, float)) else ""
    return f"{tensor.dtype} [{tensor.quant_min}, {tensor.quant_max}] {tensor.granularity}{scale}{zero}"
