"""Making programs: ONNX of a quantized model, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchquilt.backend import Contribution, Lowered
from torchquilt_onnxruntime.packages import required

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchquilt_onnxruntime.runner import ONNXRuntimeRunner


class ONNXRuntimeTarget:
    """Lowers to ONNX Runtime: a file of standard operators, and the ledger from its optimized form."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program; see :class:`torchquilt.backend.Target`."""
        for name in ("onnx", "onnxscript", "onnxruntime"):
            required(name)
        from onnxscript import ir

        from torchquilt_onnxruntime.exporting import exported
        from torchquilt_onnxruntime.optimized import Optimized
        from torchquilt_onnxruntime.signature import signature_of, with_signature
        from torchquilt_onnxruntime.writing import write

        for given in contributions.values():
            for transform in given.passes:
                program = transform(program)
        model = exported(program)
        write(model)
        with_signature(model, signature_of(program))
        message = ir.to_proto(model)
        buffer = message.SerializeToString()
        optimized = Optimized.of(buffer, message)
        return Lowered(
            buffer=buffer,
            operations=optimized.operations(),
            conversions=optimized.conversions(),
            delegates=(),
            kernels=(),
            operators=optimized.operators,
        )

    def open(self, buffer: bytes, libraries: Sequence[str]) -> ONNXRuntimeRunner:
        """Read a stored program; see :class:`torchquilt.backend.Target`."""
        required("onnx")
        from torchquilt_onnxruntime.runner import ONNXRuntimeRunner

        return ONNXRuntimeRunner(buffer)
