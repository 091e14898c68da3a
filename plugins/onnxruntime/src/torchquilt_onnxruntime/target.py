"""Making programs: ONNX of a quantized model, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchquilt import LoweringError, ProgramError
from torchquilt.backend import Contribution, Lowered, after_passes, node_in_words, pytree
from torchquilt_onnxruntime.lowering import COM_MICROSOFT
from torchquilt_onnxruntime.packages import required
from torchquilt_onnxruntime.stored import KEY, parsed
from torchquilt_onnxruntime.weights_file import locations, moved_out

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchquilt_onnxruntime.runner import ONNXRuntimeRunner

#: Dtypes that the CPU provider has kernels for, or that stand for integers.
_TAKEN = frozenset(
    {"float32", "float16", "float64", "bool"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


class ONNXRuntimeTarget:
    """Lowers to ONNX Runtime: a file of standard operators, and the ledger from its optimized form."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program; see :class:`torchquilt.backend.Target`."""
        return _lowered(_after_passes(program, contributions), {}, is_fused=_is_fused(contributions))

    def lower_what_runs(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program that loads and runs here; see :class:`torchquilt.backend.TryingTarget`."""
        from torchquilt_onnxruntime.refusals import refused

        program, is_fused = _after_passes(program, contributions), _is_fused(contributions)

        def make(withheld: Mapping[str, str]) -> Lowered:
            made = _lowered(program, withheld, is_fused=is_fused)
            _run(made, program)
            return made

        try:
            return make({})
        except ProgramError as error:
            return make(refused(make, _operators(program), error))

    def labelled(self, buffer: bytes, origin: Mapping[str, str]) -> bytes:
        """Keep the origin in the metadata of the file; see :class:`torchquilt.backend.LabellingTarget`."""
        onnx = required("onnx")
        model = onnx.ModelProto.FromString(buffer)
        for key, text in origin.items():
            model.metadata_props.add(key=f"{KEY}.{key}", value=text)
        labelled: bytes = model.SerializeToString()
        return labelled

    def open(self, buffer: bytes, libraries: Sequence[str]) -> ONNXRuntimeRunner:
        """Read a stored program; see :class:`torchquilt.backend.Target`."""
        return self.open_with(buffer, {}, libraries)

    def files_of(self, buffer: bytes) -> tuple[str, ...]:
        """Name the files that lie beside a program; see :class:`torchquilt.backend.DividedTarget`."""
        return locations(parsed(buffer))

    def open_with(
        self, buffer: bytes, files: Mapping[str, bytes], libraries: Sequence[str]
    ) -> ONNXRuntimeRunner:
        """Read a stored program and its weights; see :class:`torchquilt.backend.DividedTarget`."""
        required("onnx")
        from torchquilt_onnxruntime.runner import ONNXRuntimeRunner

        return ONNXRuntimeRunner(buffer, files)


def _after_passes(program: ExportedProgram, contributions: Mapping[str, Contribution]) -> ExportedProgram:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        required(name)
    program = after_passes(program, contributions, "ONNX Runtime", options=[COM_MICROSOFT])
    _check_dtypes(program)
    return program


def _is_fused(contributions: Mapping[str, Contribution]) -> bool:
    """Whether the file has the runtime's own operators in it."""
    return any(given.options.get(COM_MICROSOFT) for given in contributions.values())


def _lowered(program: ExportedProgram, withheld: Mapping[str, str], *, is_fused: bool) -> Lowered:
    """A program in which some operators are left in float, each with the reason."""
    from onnxscript import ir

    from torchquilt_onnxruntime.exporting import exported
    from torchquilt_onnxruntime.fused_file import fused
    from torchquilt_onnxruntime.optimized import Optimized
    from torchquilt_onnxruntime.signature import signature_of, with_signature
    from torchquilt_onnxruntime.writing import write

    signature = signature_of(program)
    model = exported(program)
    write(model, withheld)
    with_signature(model, signature)
    files = moved_out(model)
    message = ir.to_proto(model)
    buffer = message.SerializeToString()
    if is_fused:
        message, files = fused(buffer, message, files)
        buffer = message.SerializeToString()
    optimized = Optimized.of(buffer, message, files)
    return Lowered(
        buffer=buffer,
        operations=optimized.operations(withheld),
        conversions=optimized.conversions(),
        delegates=(),
        kernels=(),
        operators=optimized.operators,
        files=files,
    )


def _run(lowered: Lowered, program: ExportedProgram) -> None:
    """Run a program on the inputs that the model was exported with, if there are some."""
    from torchquilt_onnxruntime.runner import ONNXRuntimeRunner

    if program.example_inputs is not None:
        ONNXRuntimeRunner(lowered.buffer, lowered.files).run(pytree.tree_leaves(program.example_inputs))


def _operators(program: ExportedProgram) -> list[str]:
    """The operators that read or return what is quantized, in order."""
    from torchquilt.backend import is_conversion, overload_name, regions

    return [
        region.name_of(node)
        for region in regions(program.graph_module)
        for node in region.module.graph.nodes
        if overload_name(node)
        and not is_conversion(node)
        and any(map(is_conversion, (*node.all_input_nodes, *node.users)))
    ]


def _check_dtypes(program: ExportedProgram) -> None:
    """Refuse a model that computes in a dtype for which the CPU provider has no kernels.

    Raises:
        LoweringError: it does; names the node and the dtype.
    """
    import torch

    for node in program.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            dtype = str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else "bool"
            if dtype not in _TAKEN:
                raise LoweringError(
                    f"ONNX Runtime's CPU provider does not compute in {dtype}.",
                    node=node_in_words(node),
                    expected="float32, float16 or float64",
                    got=dtype,
                    remedy="export the model in float32: model.float()",
                )
