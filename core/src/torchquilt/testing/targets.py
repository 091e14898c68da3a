"""Lowering rows where a plugin for their target is installed: with ``torchquilt.lower``, as users do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import GraphModule

from torchquilt.lowering import LoweredProgram, lower
from torchquilt.plugins.registry import targets
from torchquilt.reasons import INTEGER_STATUSES
from torchquilt.support.operators import OPERATORS
from torchquilt.testing.lowering import Lowering
from torchquilt.testing.subject import Subject

#: What has to become of a quantized operator: the target runs it as integers, or it is not there any more.
AS_CLAIMED = INTEGER_STATUSES | {"removed"}


def installed_lowerings(subject: Subject) -> dict[str, Lowering]:
    """Target → how to lower to it, for those targets of the subject's rows that a plugin is installed for.

    A backend that is not installed, or that says in no manifest what it gives to a target, has none.
    """
    manifest = subject.backend.manifest if subject.backend is not None else None
    claimed = {target for row in subject.rows for target in row.targets}
    given = claimed & set(manifest.contributions if manifest is not None else ())
    return {
        target.name: _lowering(target.name, subject)
        for target in targets()
        if target.status == "ok" and target.name in given
    }


def _lowering(target: str, subject: Subject) -> Lowering:
    def run(quantized: GraphModule, inputs: tuple[Any, ...]) -> Any:
        # The kit compares outputs itself, with the bound of the row.
        program = lower(quantized, inputs, target=target, backends=[subject.name], verify=False)
        _check_runs_as_integers(program, subject.cls.__name__)
        _check_ledger(program)
        return program.run(*inputs)

    return run


def _check_ledger(program: LoweredProgram) -> None:
    """Refuse a ledger that the kernels contradict."""
    if found := [*contradictions(program)]:
        raise AssertionError("; ".join(found))


def contradictions(program: LoweredProgram) -> Iterator[str]:
    """Contradictions between the ledger of a program and the payloads of its delegates.

    Payloads have what runs. The ledger is joined from them, and from the graph where they are silent.
    """
    rows = program.ledger.rows if program.ledger is not None else ()
    # Each operator with a weight is one kernel of its own. What is computed within the kernel of another
    # operator (a relu) counts for none.
    as_integers = [
        row.node
        for row in rows
        if row.lowered is not None and row.lowered.code == "delegated_as_integers" and _has_weight(row.op)
    ]
    kernels = [str(kernel) for kernel in program.kernels if kernel.arithmetic == "integer"]
    if len(as_integers) > len(kernels) and program.kernels:
        yield (
            f"The ledger says that {', '.join(as_integers)} run as integers, and of the kernels only "
            f"{', '.join(kernels) or 'none'} do: {', '.join(map(str, program.kernels))}"
        )
    # A kernel that reads one tensor may have been put there to move it.
    in_float = [str(one) for one in program.kernels if one.arithmetic == "float" and len(one.reads) > 1]
    told = [one.node for one in program.operations if one.delegate and one.arithmetic == "float"]
    if len(in_float) > len(told):
        yield (
            f"The ledger says that {', '.join(told) or 'none'} of what is delegated run in float, and these "
            f"kernels do: {', '.join(in_float)}"
        )


def _has_weight(overload: str) -> bool:
    return any(overload in known.overloads and "weight" in known.roles for known in OPERATORS)


def _check_runs_as_integers(program: LoweredProgram, quantizer: str) -> None:
    """Refuse a program in which an operator that the quantizer took runs in float; others are the kit's."""
    rows = program.ledger.rows if program.ledger is not None else ()
    strays = [
        f"{row.node}: {row.lowered.code} {row.lowered.text}".rstrip()
        for row in rows
        if row.quantizer == quantizer
        and row.is_quantized
        and row.lowered is not None
        and row.lowered.code not in AS_CLAIMED
    ]
    if strays:
        raise AssertionError(f"{program.target} does not run as integers: {'; '.join(strays)}")
