"""Making packages: the program in the form that Inductor has kernels for, compiled, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any


from torchquilt import LoweringError
from torchquilt.backend import Contribution, Kernel, Lowered
from torchquilt_inductor_x86 import torch_private as inductor
from torchquilt_inductor_x86.canonical import canonicalize, names_of
from torchquilt_inductor_x86.generated import LOOP, Generated, read
from torchquilt_inductor_x86.operations import Joined
from torchquilt_inductor_x86.packages import KEY
from torchquilt_inductor_x86.runner import InductorRunner
from torchquilt_inductor_x86.signature import example_arguments, stored_signature

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Settings of Inductor for every program.
OPTIONS: Mapping[str, Any] = {"freezing": True}


class InductorTarget:
    """Lowers to an AOTInductor package: torch's own passes fuse, and a C++ compiler makes the code."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a package; see :class:`torchquilt.backend.Target`."""
        check_compiler()
        for given in contributions.values():
            for transform in given.passes:
                program = transform(program)
        model: Any = program.module(check_guards=False)
        canonicalize(model)
        nodes = dict(names_of(model))
        signature = json.loads(stored_signature(program))
        kernels: list[Generated] = []
        facts = {**signature, "operators": [], "instructions": ""}
        options = {**OPTIONS, "aot_inductor.metadata": {KEY: json.dumps(facts)}}
        buffer = inductor.compile_package(
            model, example_arguments(program), options, lambda found: kernels.extend(read(found))
        )
        joined = Joined(nodes, kernels, {})
        return Lowered(
            buffer=buffer,
            operations=joined.operations(),
            conversions=joined.conversions(),
            delegates=(),
            kernels=tuple(map(_kernel, kernels)),
            operators=tuple(dict.fromkeys(one.kernel for one in kernels if one.is_called)),
        )

    def open(self, buffer: bytes, libraries: Sequence[str]) -> InductorRunner:
        """Read a stored package; see :class:`torchquilt.backend.Target`."""
        return InductorRunner(buffer)


def _kernel(one: Generated) -> Kernel:
    arithmetic: Any = "integer" if one.is_integer else "float"
    name = one.kernel if one.is_called else f"{LOOP} ({one.step})"
    return Kernel(name, one.reads, (one.writes,), arithmetic)


def check_compiler() -> None:
    """Refuse to compile where there is no C++ compiler.

    Raises:
        LoweringError: there is none.
    """
    try:
        inductor.check_compiler()
    except Exception as error:  # torch raises an error of its own for it
        raise LoweringError(
            "Inductor compiles C++, and there is no C++ compiler.",
            expected="g++ or clang++",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            remedy="apt-get install g++, or name a compiler in the environment variable CXX",
        ) from error
