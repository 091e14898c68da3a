"""Contract of a lowering target: its protocol, the contribution of a backend, and the answer.

A target (``torchquilt-executorch``) knows a runtime. What only a backend knows of that runtime (which
partitioner takes what it quantized, which options and kernel libraries that needs) is its
:class:`Contribution`; its manifest says where that is. The target puts the contributions together. Neither
imports the other: both import this module, which imports neither torch nor a runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import attrs

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

#: Makes another program of one.
Pass: TypeAlias = "Callable[[ExportedProgram], ExportedProgram]"
#: In what an operator computes. A data-movement operator has that of the data.
Arithmetic: TypeAlias = Literal["integer", "float"]

#: An input that export made a constant of, or an output that is one.
Constant: TypeAlias = bool | int | float | str | None


# attrs' support in type checkers takes the type of an argument from its converter, which may not be generic.
def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _passes(values: Iterable[Pass]) -> tuple[Pass, ...]:
    return tuple(values)


def _mapping(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(values))


def _withhold_nothing(_overload: str, _node: Node) -> str:
    return ""


@attrs.frozen
class Kernel:
    """One kernel that a delegate runs, as its payload has it.

    Args:
        name: what the delegate calls it (``FullyConnected``).
        reads, writes: the types of its inputs and outputs, in the delegate's words (``qint8``, ``fp32``).
        arithmetic: in what it computes; None for a conversion between the two.
        handle: the debug handle of the operator that it comes from, None where the payload has none.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    arithmetic: Arithmetic | None
    handle: int | None = None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.reads)}) -> {', '.join(self.writes)}"


@attrs.frozen(kw_only=True)
class Contribution:
    """Contribution of a backend to a target, so that what it quantized runs as it promises.

    Everything that needs the runtime's own packages is behind a function or a name, so that making a
    contribution imports nothing of them.

    Args:
        passes: functions from ExportedProgram to another one, run in this order before anything else. They
            leave the program that they are given as it is.
        partitioners: makes the partitioners that hand operators to delegates; they are asked in the order of
            the backends, and the first to take an operator keeps it.
        edge_passes: makes passes over the program in the runtime's own dialect, before the partitioners.
        edge_options: options of the step that makes the program of that dialect, by the target's names.
        options: options of the step that makes the program that is stored, likewise. Two backends that ask
            for different values of one option cannot be lowered together.
        libraries: modules whose import gives the runtime in this process the kernels of this backend.
        readers: id of a delegate (``XnnpackBackend``) → function from its payload, as bytes, to the kernels
            that it runs. Where none of them names an operator and all have one arithmetic, that is the one of
            all operators in the delegate. Without a reader, it is concluded from the graph.
        withholds: why the delegate of this backend must not be given an operator that its partitioners would
            take, or ``""``. It is asked with the overload (``aten.prelu.default``) and the node, of every
            operator but those that quantize and dequantize, before and after it is brought to the runtime's
            dialect. What an operator is decomposed into is withheld with it, and so is what is quantized
            together with it, without quantize and dequantize between.
    """

    passes: tuple[Pass, ...] = attrs.field(default=(), converter=_passes)
    partitioners: Callable[[], Sequence[Any]] = tuple
    edge_passes: Callable[[], Sequence[Any]] = tuple
    edge_options: Mapping[str, Any] = attrs.field(factory=dict, converter=_mapping, hash=False)
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_mapping, hash=False)
    libraries: tuple[str, ...] = attrs.field(default=(), converter=_names)
    readers: Mapping[str, Callable[[bytes], Iterable[Kernel]]] = attrs.field(
        factory=dict, converter=_mapping, hash=False
    )
    withholds: Callable[[str, Node], str] = _withhold_nothing


@attrs.frozen
class Operation:
    """One operator of a program on its way to the runtime, without what quantizes and dequantizes.

    Args:
        name: its name in the program of the runtime's dialect.
        op: its overload there.
        source: the node of the exported program that it comes from, empty where that is not known.
        delegate: the id of the delegate that runs it and its number in the program (``XnnpackBackend 0``),
            empty where a kernel of the runtime itself does.
        arithmetic: in what it computes there.
        why: a sentence that says how that is known.
        reads: the operations whose output it reads as it is, without a quantize or dequantize between.
        returns_float: whether its output is floating point. A kernel that makes integers of its input when it
            runs computes with integers, and may return floats.
        refused: why no delegate runs it, in the words of the delegate that refuses it, or of its backend.
        step: the step of the stored program that runs it, by a name of the target's: the operators of one
            fused kernel, or of a delegate, have one. A runner tells times and values by it; empty where the
            target cannot say.
        output: which output of the step its value is; None where the value stays inside.
    """

    name: str
    op: str
    source: str
    delegate: str
    arithmetic: Arithmetic
    why: str
    reads: tuple[str, ...]
    returns_float: bool
    refused: str = ""
    step: str = ""
    output: int | None = None


@attrs.frozen
class Conversion:
    """A quantize or dequantize operator that no delegate and no fused kernel took: it is run by itself.

    Args:
        name, op, source: as for :class:`Operation`.
    """

    name: str
    op: str
    source: str


@attrs.frozen(eq=False)
class Lowered:
    """Result of lowering by a target.

    Args:
        buffer: the program, as it is stored.
        operations: all operators, in order; those that a delegate takes where the delegate is called.
        conversions: what is left of quantize and dequantize outside of delegates and fused kernels.
        delegates: the id of each delegate in the order in which they are called.
        kernels: what delegates run, as far as there are readers for them.
        operators: the kernels of the runtime that the program calls (``aten::mean.out``).
        smallest_sizes: of each input, the smallest size of each dimension; empty where that is not known.
            (The largest ones are in the stored program.)
        narrowed_by: why it takes fewer sizes than the model, a sentence for each reason, without its end.
        files: what has to lie beside the program: name → content. Only a :class:`DividedTarget` has some.
    """

    buffer: bytes
    operations: tuple[Operation, ...]
    conversions: tuple[Conversion, ...]
    delegates: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    operators: tuple[str, ...]
    smallest_sizes: tuple[tuple[int, ...], ...] = ()
    narrowed_by: tuple[str, ...] = ()
    files: Mapping[str, bytes] = attrs.field(factory=dict)


@attrs.frozen
class Slot:
    """An input or output of a program that is stored.

    Args:
        dtype: ``"float32"``; ``"int"``, ``"float"`` or ``"bool"`` for a number; empty where it is anything.
        shape: its sizes; the largest ones where they are dynamic.
        is_dynamic: whether smaller sizes are taken, too.
        dim_order: its dimensions from the one that lies farthest apart in memory to the one whose elements
            are neighbors, ``(0, 2, 3, 1)`` for channels_last; empty where it is not known.
        is_constant: whether it is no tensor and has one value. Of an output that is a number this is not
            known, and False.
        constant: that value; None also for a text, which programs do not keep.
    """

    dtype: str
    shape: tuple[int, ...]
    is_dynamic: bool
    dim_order: tuple[int, ...] = ()
    is_constant: bool = False
    constant: Constant = None


class Runner(Protocol):
    """A program in the runtime."""

    @property
    def inputs(self) -> tuple[Slot, ...]:
        """Inputs, in order."""

    @property
    def outputs(self) -> tuple[Slot, ...]:
        """Outputs, in order."""

    @property
    def operators(self) -> tuple[str, ...]:
        """The kernels of the runtime that it calls."""

    @property
    def delegates(self) -> tuple[str, ...]:
        """The delegates that it calls, in order."""

    @property
    def structure(self) -> tuple[str, str]:
        """The structures of inputs and outputs as pytree writes them, empty where they are not stored."""

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run it on inputs that have been checked, however they lie in memory. Threads may call it at once.

        Raises:
            ProgramError: it cannot be loaded into the runtime, or fails there.
        """


@attrs.frozen
class KernelTime:
    """Time of one kernel in one run.

    Args:
        kernel: what the runtime calls it (``QLinearConv``).
        seconds: how long it took.
        step: the step of the stored program that it belongs to, as in :class:`Operation`; empty where the
            runtime does not say.
    """

    kernel: str
    seconds: float
    step: str = ""


@attrs.frozen
class RunTimes:
    """Times of one run.

    Args:
        seconds: of the whole run, as the runtime measures it.
        kernels: of each kernel, in order.
    """

    seconds: float
    kernels: tuple[KernelTime, ...]


@runtime_checkable
class ProfilingRunner(Runner, Protocol):
    """A program in a runtime that tells how long each kernel takes."""

    def profile(self, inputs: Sequence[Any], runs: int) -> Sequence[RunTimes]:
        """Run it so many times, after a run that is not measured, and tell the times of each run.

        Raises:
            ProgramError: as for ``run``.
        """


@runtime_checkable
class ObservableRunner(Runner, Protocol):
    """A program in a runtime that tells the values between its steps."""

    def values(self, inputs: Sequence[Any]) -> Mapping[tuple[str, int], Any]:
        """Run it, and return the tensors that steps return, as floats: (step, number of the output) → value.

        Raises:
            ProgramError: as for ``run``.
        """


class Target(Protocol):
    """Protocol of a lowering target. A manifest names a class that can be called without arguments."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program for the runtime.

        Args:
            program: quantized; it is not changed.
            contributions: name of a backend → what it gives, in the order of the backends.

        Raises:
            LoweringError: it cannot be made; says which operator of the model is why.
        """

    def open(self, buffer: bytes, libraries: Sequence[str]) -> Runner:
        """Read a stored program, without running anything of it.

        Args:
            buffer: the program.
            libraries: modules that may have kernels that it needs.

        Raises:
            ProgramError: it is damaged, or something else.
        """


@runtime_checkable
class TryingTarget(Target, Protocol):
    """A target that can find out what its runtime refuses when it loads or runs a program."""

    def lower_what_runs(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program as ``lower`` does, and leave to the runtime what a delegate here refuses to run.

        It is asked for when the program that ``lower`` made cannot be loaded or run.

        Raises:
            LoweringError: as for ``lower``.
        """


@runtime_checkable
class DividedTarget(Target, Protocol):
    """A target whose programs may need files beside them, such as the weights of a large ONNX model."""

    def files_of(self, buffer: bytes) -> tuple[str, ...]:
        """Names of the files that have to lie beside a stored program.

        Raises:
            ProgramError: it is damaged, or something else.
        """

    def open_with(self, buffer: bytes, files: Mapping[str, bytes], libraries: Sequence[str]) -> Runner:
        """Read a stored program and the files beside it, as ``open`` reads one without.

        Args:
            buffer: the program.
            files: name → content.
            libraries: as for ``open``.

        Raises:
            ProgramError: the program or a file is damaged, or something else.
        """


@runtime_checkable
class LabellingTarget(Target, Protocol):
    """A target whose stored programs have room for texts, such as the metadata of an ONNX file."""

    def labelled(self, buffer: bytes, origin: Mapping[str, str]) -> bytes:
        """Keep in a program where it comes from.

        Args:
            buffer: the program, as it is stored.
            origin: ``version`` of torchquilt, that of ``torch``; ``quantizer``, ``backends``, ``recipe`` and
                ``capabilities``, as far as the model says, as in :class:`torchquilt.Lock`.

        Returns:
            The program with these texts. It computes the same.
        """
        ...
