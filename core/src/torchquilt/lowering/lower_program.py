"""lower and load: the steps, in order. Importing this module does not import torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from torchquilt._internal.torch_defaults import global_state_kept
from torchquilt.errors import (
    LoweringError,
    MissingRuntimeError,
    PluginLoadError,
    ProgramError,
    ProgramInputError,
)
from torchquilt.lowering.claims import Unclaimed, unclaimed
from torchquilt.lowering.program import LoweredProgram, with_report
from torchquilt.lowering.program_facts import Ports, Verification
from torchquilt.lowering.quantized_source import Source, source_of
from torchquilt.lowering.report import ProgramReport, report_path
from torchquilt.lowering.stored_files import files_beside, opened
from torchquilt.lowering.stored_io import as_stored, narrowed, ports_of
from torchquilt.lowering.target import Contribution, LabellingTarget, Lowered, Runner, Target, TryingTarget
from torchquilt.lowering.target_choice import installed_targets, target_of
from torchquilt.plugins import registry

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from torchquilt.artifact.loading import Artifact
    from torchquilt.lowering.ledger_join import Joint


#: Errors of running a program that say nothing of what a delegate takes.
_NOT_REFUSED = (MissingRuntimeError, ProgramInputError)


@global_state_kept()
def lower(
    quantized: GraphModule | ExportedProgram | Artifact,
    example_inputs: object = None,
    *,
    target: str | None = None,
    dynamic_shapes: Any = None,
    backends: Iterable[str] | Mapping[str, Contribution | None] | None = None,
    io_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    verify: bool | float | Literal["auto"] = "auto",
    strict: bool = False,
) -> LoweredProgram:
    """Make a program for a runtime of a quantized model.

    Args:
        quantized: what :func:`torchquilt.convert_pt2e` or :func:`torchquilt.load` returned, or an
            ExportedProgram.
        example_inputs: one batch as for :func:`torchquilt.calibrate`. Needed for a GraphModule, which has to
            be exported again, and to verify.
        target: name of an installed lowering target. By default the one that each backend of the model names.
        dynamic_shapes: for a GraphModule, as for ``torch.export.export``. By default the dimensions that were
            dynamic when the model was exported stay so.
        backends: names of the backends whose contributions are used, the first one to take an operator first.
            By default those that quantized the model, in their order. A mapping gives the contributions
            themselves, such as those to delegates that no plugin knows; None stands for that of the
            installed backend of the name.
        io_dtype: have the program take and return integers of this dtype. Every floating-point input and
            output has to be quantized to it; a mapping from names to dtypes asks for some of them (inputs
            have the names of the model, outputs are ``output_0``, ``output_1`` …). What their scales and zero
            points are is in :attr:`LoweredProgram.io`.
        verify: run the program on the example inputs and compare it with the quantized model. A number is the
            SQNR in dB that each output must reach, unless it is within one quantization step; ``True`` means
            40. ``"auto"`` does so where example inputs are at hand (those that are given, or those that
            the model was exported with) and the program can run here, and says in
            :attr:`LoweredProgram.verification` what was done, or why not; an output with less than 40 dB may
            be as far off as the model is from itself where what it quantizes rounds otherwise. ``False``
            leaves it out.
        strict: refuse what a delegate refuses, instead of leaving it to the kernels of the runtime; and what
            was quantized for another target, where this one computes it in float.

    Returns:
        The program, with the ledger of the model joined with what runs where.

    Raises:
        ModelError: the model is not one that can be lowered.
        LoweringError: it cannot be lowered, with ``strict`` not as it was meant; says which operator is why.
            Or ``backends`` is none of these.
        VerificationError: the program computes something else.
        PluginNotFoundError, PluginLoadError, PluginConflictError: the target, or what a backend gives to it,
            is not installed or does not load.
    """
    from torchquilt.lowering.float_marks import with_decisions
    from torchquilt.lowering.ledger_join import Joint
    from torchquilt.lowering.program_io import with_integer_io
    from torchquilt.lowering.region_inlining import inlined

    # Load a named target first: exporting the model again takes time.
    runtime: Target | None = None if target is None else registry.target(target)
    source = source_of(quantized, example_inputs, dynamic_shapes)
    given = _given(backends)
    names = _backends_of(source, backends)
    if target is None or runtime is None:
        target = target_of([name for name in names if name not in given])
        runtime = registry.target(target)
    elsewhere = unclaimed(source.ledger, [*(source.backends or ()), *names], target)
    contributions = {name: given.get(name) or _contribution(name, target, elsewhere) for name in names}
    flat = inlined(source.program)
    program, ports = with_integer_io(flat.program, io_dtype)
    joint = Joint(program.graph_module, source.ledger, flat.earlier)
    marked = with_decisions(program, joint.left_in_float())
    making = _Making(target, runtime, contributions, source, joint, ports, elsewhere)

    def made_by(lower_it: Callable[..., Lowered]) -> LoweredProgram:
        lowered = making.labelled(lower_it(marked, contributions))
        made = making.program(lowered, strict=strict)
        # Verify another program, so that the returned one still has its initial state.
        tried = attrs.evolve(made, runner=making.open(lowered))
        return attrs.evolve(made, verification=_verification(tried, source.program, example_inputs, verify))

    try:
        return made_by(runtime.lower)
    except ProgramError as error:
        is_refused = error.backend is not None and not isinstance(error, _NOT_REFUSED)
        if strict or not is_refused or not isinstance(runtime, TryingTarget):
            raise
        failed = error
    try:
        return made_by(runtime.lower_what_runs)
    except ProgramError as error:
        raise failed from error  # nothing was found that could be left out


@attrs.frozen(eq=False)
class _Making:
    """Parts of a program, whichever way the target lowers it."""

    target: str
    runtime: Target
    contributions: Mapping[str, Contribution]
    source: Source
    joint: Joint
    ports: Ports
    unclaimed: Mapping[str, Unclaimed]

    def labelled(self, lowered: Lowered) -> Lowered:
        """The same, with the origin of the model in the program where there is room for it."""
        if not isinstance(self.runtime, LabellingTarget):
            return lowered
        return attrs.evolve(lowered, buffer=self.runtime.labelled(lowered.buffer, self.source.origin))

    def open(self, lowered: Lowered) -> Runner:
        """The program, ready to run."""
        libraries = _libraries(self.contributions.values())
        return opened(self.runtime, lowered.buffer, lowered.files, libraries)

    def program(self, lowered: Lowered, *, strict: bool) -> LoweredProgram:
        """The program with its facts, not verified yet.

        Raises:
            LoweringError: with ``strict``, it is not what was meant.
        """
        from torchquilt.lowering.ledger_join import float_islands, joined

        if strict:
            _check_is_taken(lowered, self.joint)
        runner, ledger = self.open(lowered), self.source.ledger
        stored = as_stored(self.ports, runner, lowered)
        _warn_of_sizes(narrowed(self.ports, stored), lowered.narrowed_by)
        made = LoweredProgram(
            target=self.target,
            backends=tuple(self.contributions),
            buffer=lowered.buffer,
            io=stored,
            delegates=lowered.delegates,
            operators=lowered.operators,
            ledger=None if ledger is None else joined(ledger, self.joint, lowered, self.unclaimed),
            operations=tuple(map(self.joint.lowered_operation, lowered.operations)),
            kernels=lowered.kernels,
            leftovers=tuple(map(self.joint.leftover, lowered.conversions)),
            float_islands=float_islands(lowered.operations, self.joint),
            files=lowered.files,
            runner=runner,
        )
        if strict:
            _check_promises(made, self.unclaimed)
        return made


def _verification(
    tried: LoweredProgram, model: ExportedProgram, example_inputs: object, verify: bool | float | str
) -> Verification | None:
    """Comparison of a program with the model, if asked for."""
    from torchquilt.lowering.verification import LEAST_SQNR, verified, verified_if_possible

    if verify is False:
        return None
    if verify == "auto":
        return verified_if_possible(tried, model, example_inputs)
    return verified(tried, model, example_inputs, LEAST_SQNR if verify is True else float(verify))


def _check_is_taken(lowered: Lowered, joint: Joint) -> None:
    """Refuse a program of which a delegate refuses an operator.

    Raises:
        LoweringError: it does.
    """
    refused = [one for one in lowered.operations if one.refused]
    if refused:
        raise LoweringError(
            "A delegate refuses operators of the model.",
            node="; ".join(dict.fromkeys(str(joint.lowered_operation(one)) for one in refused)),
            expected="operators that the delegates of their backends take, with strict=True",
            got="; ".join(dict.fromkeys(one.refused for one in refused)),
            remedy="lower(..., strict=False) leaves them to the kernels of the runtime itself",
        )


def _check_promises(made: LoweredProgram, unclaimed: Mapping[str, Unclaimed]) -> None:
    """Refuse a program that computes in float what was quantized for another target.

    Raises:
        LoweringError: it does.
    """
    rows = made.ledger.rows if made.ledger is not None else ()
    found = [
        row
        for row in rows
        if row.node in unclaimed and row.lowered is not None and row.lowered.code == "fell_back_to_float"
    ]
    if found:
        raise LoweringError(
            f"{made.target} computes in float what was quantized for another target.",
            node="; ".join(f"{row.node} ({row.op})" for row in found),
            expected="operators that run as integers, with strict=True",
            got="; ".join(dict.fromkeys(str(unclaimed[row.node]) for row in found)),
            remedy="ask beforehand: quantizer.quantization_capabilities().supports(..., "
            f"target={made.target!r}); or lower(..., strict=False)",
        )


@global_state_kept()
def load(path: str | os.PathLike[str], target: str | None = None) -> LoweredProgram:
    """Read a program that was saved, to look at it and to run it.

    What :meth:`LoweredProgram.save` wrote beside it is read, too, if it is there and about this program.
    Kernels that it needs are looked for in what the installed backends give to the target.

    Args:
        path: the file.
        target: name of the installed lowering target that knows such programs. By default the one that the
            report beside it names, or the installed one that can read it.

    Raises:
        LoweringError: no target is named, there is no report, and several installed targets can read it.
        ProgramError: the file is damaged, cut off, or something else. Nothing of it has been run then.
        ModelError: the report beside it is about another program, or is damaged.
        PluginNotFoundError, PluginLoadError: the target is not installed, or does not load.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    buffer = path.read_bytes()
    file = report_path(path)
    report = ProgramReport.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    if target is None:
        target = report.target if report else None
    try:
        target = target or _reader_of(path, buffer)
        files = files_beside(registry.target(target), path, buffer)
        runner = _opened(buffer, files, target)
    except ProgramError as error:
        error.path = os.fspath(path)
        raise
    found = LoweredProgram(
        target=target,
        backends=(),
        buffer=buffer,
        io=ports_of(runner),
        delegates=runner.delegates,
        operators=runner.operators,
        files=files,
        runner=runner,
    )
    return found if report is None else with_report(found, report)


def _opened(buffer: bytes, files: Mapping[str, bytes], target: str) -> Runner:
    """A stored program, ready to run."""
    return opened(registry.target(target), buffer, files, _libraries(_installed_contributions(target)))


def _reader_of(path: Path, buffer: bytes) -> str:
    """Name of the one installed target that can read a stored program.

    Raises:
        LoweringError: no target is installed, or several can read it.
        ProgramError: none of several can.
    """
    installed = installed_targets()
    tried = {target: _refusal(path, buffer, target) for target in installed} if len(installed) > 1 else {}
    able = [target for target, refusal in tried.items() if not refusal]
    if tried and not able:
        raise ProgramError(
            "No installed target can read this file.",
            expected=f"a program of one of: {', '.join(installed)}",
            got="; ".join(f"{target}: {refusal}" for target, refusal in tried.items()),
            remedy="get the file again from where it was saved, or install the target that it was made for",
        )
    return able[0] if len(able) == 1 else target_of(())


def _refusal(path: Path, buffer: bytes, target: str) -> str:
    """Reason of a target that cannot read a stored program, empty where it can."""
    try:
        _opened(buffer, files_beside(registry.target(target), path, buffer), target)
    except Exception as error:  # a reader of another runtime raises what it likes
        return str(getattr(error, "problem", None) or error or type(error).__name__)
    return ""


def _warn_of_sizes(dimensions: list[str], reasons: tuple[str, ...]) -> None:
    """Warn of sizes that the model takes and the program does not."""
    if dimensions:
        sentences = ["", *reasons] if reasons else ["", "What fixes them is not known"]
        warnings.warn(
            f"The program takes fewer sizes than the model: {'; '.join(dimensions)}{'. '.join(sentences)}. "
            "LoweredProgram.io has what it takes.",
            UserWarning,
            stacklevel=6,
        )


def _backends_of(source: Source, backends: Iterable[str] | None) -> tuple[str, ...]:
    """Names of the backends whose contributions are used, in their order.

    Raises:
        LoweringError: nothing says which.
    """
    if backends is None and source.backends is None:
        raise LoweringError(
            "Nothing says which backends quantized this model.",
            expected="a model of torchquilt, which carries their names",
            got="a model without a record",
            remedy="lower(..., backends=['xnnpack']), or [] to use none",
        )
    installed = {backend.name for backend in _listed()}
    # A quantizer of the user's own is no plugin, and contributes nothing.
    names = [name for name in source.backends or () if name in installed] if backends is None else [*backends]
    return tuple(dict.fromkeys(names))


def _given(backends: object) -> dict[str, Contribution]:
    """The contributions that the caller gives: name → contribution.

    Raises:
        LoweringError: it gives something else.
    """
    found = {}
    for name, contribution in backends.items() if isinstance(backends, Mapping) else ():
        if contribution is None:
            continue
        if not isinstance(contribution, Contribution):
            raise LoweringError(
                "What backends= gives for a name is no contribution.",
                backend=name,
                expected="a torchquilt.backend.Contribution, or None for that of the installed backend",
                got=repr(contribution),
                remedy="lower(..., backends={name: Contribution(partitioners=lambda: [...])})",
            )
        found[name] = contribution
    return found


def _contribution(backend: str, target: str, unclaimed: Mapping[str, Unclaimed]) -> Contribution:
    found = registry.contribution(backend, target)
    if found is None:
        own = {node: one for node, one in unclaimed.items() if one.backend == backend}
        raise LoweringError(
            f"The backend {backend!r} does not say how it is lowered to {target!r}.",
            backend=backend,
            node=", ".join(own) or None,
            expected=f"a contribution to {target!r} in its manifest",
            got="; ".join(dict.fromkeys(map(str, own.values()))) or "none",
            remedy=f"lower to a target of its own; or use what {target!r} makes of it without promise: "
            "lower(..., backends=[...]) without it; or ask beforehand, with "
            f"quantizer.quantization_capabilities().supports(..., target={target!r})",
        )
    if not isinstance(found, Contribution):
        raise PluginLoadError(
            f"What the backend {backend!r} gives to {target!r} is no contribution.",
            quantizer=backend,
            expected="torchquilt.backend.Contribution",
            got=repr(found),
            remedy="name a Contribution in the manifest",
        )
    return found


def _installed_contributions(target: str) -> list[Contribution]:
    """Contributions of the installed backends to a target, without those that do not load."""
    found = []
    for backend in _listed():
        if backend.status == "ok" and backend.manifest and target in backend.manifest.contributions:
            try:
                found.append(_contribution(backend.name, target, {}))
            except PluginLoadError as error:
                warnings.warn(f"{error.problem} ({error.got})", stacklevel=4)
    return found


def _listed() -> registry.Backends:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the environment, of which loading the target has warned
        return registry.backends()


def _libraries(contributions: Iterable[Contribution]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(library for given in contributions for library in given.libraries))
