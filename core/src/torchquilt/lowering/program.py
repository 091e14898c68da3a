"""A lowered program: its inputs and outputs, where each operator runs, and running it.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt._internal.atomic_files import check_is_replaceable, replacing
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.errors import ModelError, ProgramError
from torchquilt.graph.signature import batch_arguments
from torchquilt.ledger.ledger import Ledger
from torchquilt.lowering.calling import arrange_outputs, check_inputs, flat_inputs
from torchquilt.lowering.program_facts import Leftover, LoweredOperation, Ports, Verification
from torchquilt.lowering.report import ProgramReport, report_path
from torchquilt.lowering.stored_files import content_of
from torchquilt.lowering.target import Kernel, ObservableRunner, ProfilingRunner, Runner

if TYPE_CHECKING:
    from torchquilt.lowering.profile import Profile

_MOST_NAMED = 3


@attrs.frozen(eq=False, repr=False)
class LoweredProgram:
    """A program for a runtime.

    Args:
        target: name of the lowering target.
        backends: those that took part, in order.
        buffer: the program, as it is stored.
        io: what it takes and returns.
        delegates: the id of each delegate, in the order in which they are called.
        operators: the kernels of the runtime itself that it calls.
        ledger: every decision about the model, joined with where each operator runs; None where the model
            had none.
        operations: every operator of it and where it runs; empty where it was read from a file without a
            report.
        kernels: what the delegates run, as their payloads have it; likewise.
        leftovers: the quantize and dequantize operators that are run by themselves; likewise.
        float_islands: the operators that compute in float, those together that hand floats to each other,
            by the nodes of the model that they come from; likewise.
        verification: how it compares with the quantized model, None where that was not asked.
        files: what has to lie beside the program, name → content. Programs that are larger than the format of
            their runtime allows have some.
    """

    target: str
    backends: tuple[str, ...]
    buffer: bytes = attrs.field(repr=False)
    io: Ports
    delegates: tuple[str, ...]
    operators: tuple[str, ...]
    ledger: Ledger | None = attrs.field(default=None, repr=False)
    operations: tuple[LoweredOperation, ...] = attrs.field(default=(), repr=False)
    kernels: tuple[Kernel, ...] = attrs.field(default=(), repr=False)
    leftovers: tuple[Leftover, ...] = ()
    float_islands: tuple[tuple[str, ...], ...] = ()
    verification: Verification | None = None
    files: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    _runner: Runner | None = attrs.field(default=None, repr=False, alias="runner")

    @property
    def size(self) -> int:
        """Size in bytes, with the files beside it."""
        return len(self.buffer) + sum(map(len, self.files.values()))

    @property
    def integer_operations(self) -> tuple[LoweredOperation, ...]:
        """The operators that are computed with integers."""
        return tuple(one for one in self.operations if one.runs_as_integers)

    @default_global_state()
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, in this process.

        The kernels that it needs are loaded if an installed plugin has them. Inputs are checked before the
        runtime sees them. Threads may run one program; one of them computes at a time.

        Args:
            *args: as for the model, in any layout. Of a program with quantized inputs: these integers. What
                export made constants of (None, numbers, texts) may be left out, and is refused with another
                value.
            **kwargs: likewise.

        Returns:
            What the model returns, in its structure.

        Raises:
            ProgramInputError: the inputs are not those of the program.
            ProgramError: it needs kernels that are not here, cannot be loaded, or fails.
        """
        if self._runner is None:
            raise ProgramError("This program was made without a runtime.", got=self.target)
        inputs = flat_inputs(self._runner.structure[0], self.io, args, kwargs)
        check_inputs(self.io.inputs, inputs)
        try:
            outputs = self._runner.run(inputs)
        except ProgramError as error:
            error.node = error.node or self._about(error)
            raise
        return arrange_outputs(outputs, self._runner.structure[1], self.io)

    @default_global_state()
    def profile(self, inputs: object, *, runs: int = 20) -> Profile:
        """Time of each kernel, joined with the operators of the model that it runs.

        Args:
            inputs: one batch as for :func:`torchquilt.calibrate`.
            runs: so many runs; the times are medians.

        Raises:
            ProgramInputError: the inputs are not those of the program.
            ProgramError: the runtime does not tell times, or the program fails there.
        """
        from torchquilt.lowering.profile import profiled

        runner = self._runner
        if not isinstance(runner, ProfilingRunner):
            raise self._cannot("tell times", "ProfilingRunner")
        return profiled(self.target, self.operations, runner, self._checked(inputs), runs)

    @property
    def tells_values(self) -> bool:
        """Whether :meth:`intermediate_values` can be asked."""
        return isinstance(self._runner, ObservableRunner)

    @default_global_state()
    def intermediate_values(self, inputs: object) -> dict[str, Any]:
        """Values between the steps of the program: node of the model → what it returns there, as floats.

        Operators whose value stays inside a delegate or a fused kernel have none.

        Args:
            inputs: one batch as for :func:`torchquilt.calibrate`.

        Raises:
            ProgramInputError: the inputs are not those of the program.
            ProgramError: the runtime does not tell values, or the program fails there.
        """
        runner = self._runner
        if not isinstance(runner, ObservableRunner):
            raise self._cannot("tell the values between its steps", "ObservableRunner")
        found = runner.values(self._checked(inputs))
        return {
            one.node: found[one.step, one.output]
            for one in self.operations
            if one.node and one.output is not None and (one.step, one.output) in found
        }

    def _cannot(self, what: str, protocol: str) -> ProgramError:
        """The error of a runner that can do no more than run."""
        return ProgramError(
            f"The target {self.target!r} does not {what}.",
            expected=f"a target whose runner is a torchquilt.backend.{protocol}",
            got=type(self._runner).__name__,
            remedy="use a target that does",
        )

    def _checked(self, batch: object) -> list[Any]:
        """One batch as the runtime takes it."""
        assert self._runner is not None
        args, kwargs = batch_arguments(batch)
        inputs = flat_inputs(self._runner.structure[0], self.io, args, kwargs)
        check_inputs(self.io.inputs, inputs)
        return inputs

    def _about(self, error: ProgramError) -> str | None:
        """The operators of the model that an error of the runtime is about, as far as it says."""
        kernels = {name.partition(".")[0].replace("::", ".") for name in error.operators}
        found = [one for one in self.operations if not one.delegate and one.op.rpartition(".")[0] in kernels]
        if not found and error.backend:
            delegated = [one for one in self.operations if one.delegate]
            found = [one for one in delegated if one.delegate.partition(" ")[0] in error.backend]
        names = [*dict.fromkeys(map(str, found))]
        return "; ".join([*names[:_MOST_NAMED], *(["…"] if names[_MOST_NAMED:] else [])]) or None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to a file, whole or not at all, and a report beside it, and its :attr:`files`.

        The report has the name of the program with ``.json`` behind it. It says what :meth:`to_json` does,
        and names the program by its digest, so that it is never taken for that of another one. A device needs
        the program, and its files if it has some.

        Raises:
            ProgramError: a file cannot be written; what was there before is untouched.
        """
        path = Path(path)
        try:
            beside = {path.with_name(name): content for name, content in self.files.items()}
            for one in (*beside, report_path(path), path):
                check_is_replaceable(one)
            for one, content in beside.items():
                with replacing(one) as file:
                    file.write(content)
            with replacing(report_path(path)) as file:
                file.write(self.to_json().encode())
            with replacing(path) as file:
                file.write(self.buffer)
        except OSError as error:
            raise ProgramError(
                "The program could not be written; what was there before is untouched.",
                path=path,
                got=str(error),
                remedy="make room, or save to another place",
            ) from error

    def to_json(self) -> str:
        """All but the program itself as JSON text, with a schema version and the digest of the program."""
        return self._report().to_json()

    def to_plain(self) -> dict[str, Any]:
        """The same as dicts, lists, texts and numbers."""
        return self._report().to_plain()

    def _report(self) -> ProgramReport:
        """Everything about it but the program itself."""
        return ProgramReport(
            sha256=_digest(self),
            nbytes=self.size,
            files=_digests(self),
            **{name: getattr(self, name) for name in _REPORTED},
        )

    def __repr__(self) -> str:
        backends = ", ".join(self.backends) or "no backend"
        return f"<LoweredProgram for {self.target}, from {backends}: {self.size:,} bytes; print it for more>"

    def __str__(self) -> str:
        return "\n".join(self._report().summary())


#: The fields of a program that its report has, too.
_REPORTED = tuple(
    field.name for field in attrs.fields(ProgramReport) if field.name not in ("sha256", "nbytes", "files")
)


def read_report(path: Path) -> LoweredProgram:
    """Read the report beside a program into a program that cannot be run.

    Raises:
        ModelError: the report is none, or that of another program.
        ProgramError: a file of the program is missing.
        OSError: a file cannot be read.
    """
    report = ProgramReport.from_json(report_path(path).read_text(encoding="utf-8"))
    files = {name: content_of(path, name) for name in report.files}
    nothing = LoweredProgram("", (), path.read_bytes(), Ports((), ()), (), (), files=files)
    return with_report(nothing, report)


def with_report(program: LoweredProgram, report: ProgramReport) -> LoweredProgram:
    """The program with everything that its report says of it.

    Raises:
        ModelError: it is the report of another program.
    """
    expected = {"program": report.sha256, **report.files}
    found = {"program": _digest(program), **_digests(program)}
    others = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if others:
        raise ModelError(
            "This report is about another program.",
            expected="; ".join(f"{name}: sha256 {expected.get(name, 'of no such file')}" for name in others),
            got="; ".join(f"{name}: sha256 {found.get(name, 'of no such file')}" for name in others),
            remedy="remove it, or get the program, and its files, that it was written with",
        )
    return attrs.evolve(program, **{name: getattr(report, name) for name in _REPORTED})


def _digest(program: LoweredProgram) -> str:
    return hashlib.sha256(program.buffer).hexdigest()


def _digests(program: LoweredProgram) -> dict[str, str]:
    """Digests of the files beside it: name → digest."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in program.files.items()}
