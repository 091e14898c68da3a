"""Making packages: the program in the form that Inductor has kernels for, compiled, and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchquilt.backend import Contribution, Kernel, Lowered, Operation, after_passes
from torchquilt_inductor_x86.compilation import check_compiler, compile_program
from torchquilt_inductor_x86.generated import Generated
from torchquilt_inductor_x86.operations import PRODUCTS, Joined
from torchquilt_inductor_x86.packages import with_facts
from torchquilt_inductor_x86.runner import InductorRunner
from torchquilt_inductor_x86.signature import example_leaves, stored_signature

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class InductorTarget:
    """Lowers to an AOTInductor package: torch's own passes fuse, and a C++ compiler makes the code."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a package; see :class:`torchquilt.backend.Target`."""
        return _lowered(_after_passes(program, contributions), {})

    def lower_what_runs(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a package that runs here; see :class:`torchquilt.backend.TryingTarget`."""
        program = _after_passes(program, contributions)
        refused: dict[str, str] = {}
        while True:
            lowered = _lowered(program, refused)
            failure = InductorRunner(lowered.buffer).failure(example_leaves(program))
            if failure is None:
                return lowered
            found = [
                one.source for one in lowered.operations if one.step == failure.step and _is_product(one)
            ]
            if not found:
                raise failure.error
            refused.update(dict.fromkeys(found, str(failure.error.got)))

    def open(self, buffer: bytes, libraries: Sequence[str]) -> InductorRunner:
        """Read a stored package; see :class:`torchquilt.backend.Target`."""
        return InductorRunner(buffer)


def _after_passes(program: ExportedProgram, contributions: Mapping[str, Contribution]) -> ExportedProgram:
    check_compiler()
    return after_passes(program, contributions, "Inductor")


def _lowered(program: ExportedProgram, refused: Mapping[str, str]) -> Lowered:
    """A package in which some operators are left to float, each for a reason."""
    signature = stored_signature(program)  # Inductor's guesses of sizes narrow those of the program
    made = compile_program(program, refused)
    joined = Joined(made.nodes, made.kernels, made.refused)
    operators = tuple(dict.fromkeys(one.kernel for one in made.kernels if one.is_called))
    facts = {**signature, "operators": operators, "served": joined.served()}
    return Lowered(
        buffer=with_facts(made.buffer, facts),
        operations=joined.operations(),
        conversions=joined.conversions(),
        delegates=(),
        # A kernel that computes in float is the runtime's own, as if the model had never been quantized.
        kernels=tuple(_kernel(one) for one in made.kernels if one.is_integer),
        operators=operators,
    )


def _is_product(operation: Operation) -> bool:
    return operation.arithmetic == "integer" and operation.op.startswith(PRODUCTS)


def _kernel(one: Generated) -> Kernel:
    return Kernel(one.kernel, one.reads, (one.writes,), "integer")
