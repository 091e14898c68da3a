"""The report of a lowered program: all but the program itself, for people and as JSON.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import attrs

from torchquilt._internal.text_tables import counted
from torchquilt.errors import ModelError
from torchquilt.ledger.ledger import Ledger
from torchquilt.lowering.program import LoweredProgram, report_path
from torchquilt.lowering.program_facts import (
    Agreement,
    Dimension,
    Leftover,
    Placed,
    Port,
    Ports,
    Verification,
)
from torchquilt.lowering.target import Kernel

#: Version of the JSON of a report.
JSON_SCHEMA = 1
#: Saved models begin with it, lowered programs do not.
_ARCHIVE = b"PK"


def report(program: LoweredProgram) -> str:
    """The report as JSON text, with a schema version and the digest of the program."""
    checked = program.verification
    return json.dumps(
        {
            "schema": JSON_SCHEMA,
            "sha256": hashlib.sha256(program.buffer).hexdigest(),
            "nbytes": program.size,
            "target": program.target,
            "backends": [*program.backends],
            "io": attrs.asdict(program.io),
            "delegates": [*program.delegates],
            "operators": [*program.operators],
            "operations": [attrs.asdict(one) for one in program.operations],
            "kernels": [attrs.asdict(kernel) for kernel in program.kernels],
            "leftovers": [attrs.asdict(one) for one in program.leftovers],
            "float_islands": [[*island] for island in program.float_islands],
            "verification": None if checked is None else plain_verification(checked),
            "ledger": None if program.ledger is None else program.ledger.to_plain(),
        },
        indent=1,
        allow_nan=False,
    )


def plain_verification(verification: Verification) -> dict[str, Any]:
    """How a program compares, for JSON, which has no infinite numbers: a ratio without noise is null."""
    return {
        "least_sqnr": verification.least_sqnr,
        "skipped": verification.skipped,
        "outputs": [
            {**attrs.asdict(output), "sqnr": output.sqnr if math.isfinite(output.sqnr) else None}
            for output in verification.outputs
        ],
    }


def is_reported(path: Path) -> bool:
    """Whether there is a report beside a file that is no saved model."""
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    return not is_archive and report_path(path).is_file()


def read_report(path: Path) -> LoweredProgram:
    """Read the report beside a program into a program that cannot be run.

    Raises:
        ModelError: the report is none, or that of another program.
        OSError: a file cannot be read.
    """
    nothing = LoweredProgram("", (), path.read_bytes(), Ports((), ()), (), ())
    return with_report(nothing, report_path(path).read_text(encoding="utf-8"))


def with_report(program: LoweredProgram, text: str) -> LoweredProgram:
    """The program with what a report says of it.

    Raises:
        ModelError: the text is no report, or that of another program.
    """
    try:
        data = json.loads(text)
        if data["schema"] != JSON_SCHEMA:
            raise ModelError(
                "This report is of another schema version.",
                expected=JSON_SCHEMA,
                got=data["schema"],
                remedy="read it with the torchquilt that wrote it",
            )
        if data["sha256"] != (found := hashlib.sha256(program.buffer).hexdigest()):
            raise ModelError(
                "This report is about another program.",
                expected=f"sha256 {data['sha256']}",
                got=f"sha256 {found}",
                remedy="remove it, or get the program that it was written with",
            )
        return attrs.evolve(program, **_fields(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError("This is no report of a program.", got=f"{type(error).__name__}: {error}") from error


def summary(program: LoweredProgram) -> list[str]:
    """Summary of a program, in lines."""
    lines = [f"{program.target}: {program.size:,} bytes, from {', '.join(program.backends) or 'no backend'}"]
    lines.append(str(program.io))
    if program.operations:
        integers, islands = len(program.integer_operations), len(program.float_islands)
        lines.append(f"delegated as integers: {counted(integers, 'operator')}; islands of float: {islands}")
    if program.operators:
        lines.append(f"kernels of the runtime: {', '.join(program.operators)}")
    if program.leftovers:
        lines.append("left outside:")
    lines += [f"  {one}" for one in program.leftovers]
    if program.ledger is not None:
        lines.append(str(program.ledger))
    if program.verification is not None:
        told = str(program.verification).splitlines()
        lines += ["against the quantized model:", *(f"  {line}" for line in told)]
    return lines


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a program from the JSON of its report."""
    checked = data["verification"]
    return {
        "target": data["target"],
        "backends": tuple(data["backends"]),
        "delegates": tuple(data["delegates"]),
        "operators": tuple(data["operators"]),
        "io": _read_ports(data["io"]),
        "operations": tuple(Placed(**one) for one in data["operations"]),
        "kernels": tuple(
            Kernel(**{**one, "reads": tuple(one["reads"]), "writes": tuple(one["writes"])})
            for one in data["kernels"]
        ),
        "leftovers": tuple(Leftover(**one) for one in data["leftovers"]),
        "float_islands": tuple(map(tuple, data["float_islands"])),
        "verification": None
        if checked is None
        else Verification(
            tuple(map(_read_agreement, checked["outputs"])), checked["least_sqnr"], checked.get("skipped", "")
        ),
        "ledger": None if data["ledger"] is None else Ledger.from_json(json.dumps(data["ledger"])),
    }


def _read_ports(data: dict[str, Any]) -> Ports:
    inputs, outputs = (tuple(map(_read_port, data[name])) for name in ("inputs", "outputs"))
    return Ports(inputs, outputs, tuple(data["arguments"]))


def _read_port(data: dict[str, Any]) -> Port:
    shape = tuple(Dimension(**size) for size in data["shape"])
    return Port(**{**data, "shape": shape, "dim_order": tuple(data["dim_order"])})


def _read_agreement(data: dict[str, Any]) -> Agreement:
    return Agreement(**{**data, "sqnr": math.inf if data["sqnr"] is None else data["sqnr"]})
