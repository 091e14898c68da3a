"""Making packages: the program in the form that Inductor has kernels for, compiled, and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchquilt.backend import Contribution, Kernel, Lowered
from torchquilt_inductor_x86.compilation import check_compiler, compile_program
from torchquilt_inductor_x86.generated import LOOP, Generated
from torchquilt_inductor_x86.operations import Joined
from torchquilt_inductor_x86.packages import with_facts
from torchquilt_inductor_x86.runner import InductorRunner
from torchquilt_inductor_x86.signature import stored_signature

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class InductorTarget:
    """Lowers to an AOTInductor package: torch's own passes fuse, and a C++ compiler makes the code."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a package; see :class:`torchquilt.backend.Target`."""
        check_compiler()
        for given in contributions.values():
            for transform in given.passes:
                program = transform(program)
        signature = stored_signature(program)  # Inductor's guesses of sizes narrow those of the program
        made = compile_program(program)
        joined = Joined(made.nodes, made.kernels, made.refused)
        operators = tuple(dict.fromkeys(one.kernel for one in made.kernels if one.is_called))
        return Lowered(
            buffer=with_facts(made.buffer, {**signature, "operators": operators}),
            operations=joined.operations(),
            conversions=joined.conversions(),
            delegates=(),
            kernels=tuple(map(_kernel, made.kernels)),
            operators=operators,
        )

    def open(self, buffer: bytes, libraries: Sequence[str]) -> InductorRunner:
        """Read a stored package; see :class:`torchquilt.backend.Target`."""
        return InductorRunner(buffer)


def _kernel(one: Generated) -> Kernel:
    arithmetic: Any = "integer" if one.is_integer else "float"
    name = one.kernel if one.is_called else f"{LOOP} ({one.step})"
    return Kernel(name, one.reads, (one.writes,), arithmetic)
