"""Programs as the makers of each runtime recommend them: quantized by their own quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

Call = Callable[[Sequence[Any]], Any]


@attrs.frozen
class Program:
    """A program to measure.

    Args:
        run: calls it.
        kernels: seconds in its kernels, the least of so many runs, on some inputs; None where the runtime
            does not tell.
    """

    run: Call
    kernels: Callable[[Sequence[Any], int], float] | None = None


def executorch_program(model: Any, exported: Any, batches: list[Any], example: Any) -> Program:
    """ExecuTorch's own quantizer and functions."""
    import torch

    from runtime import lowered_by_executorch, opened
    from systems import torchao

    system = torchao()
    prepared = system.prepare(exported.module())
    for batch in batches:
        prepared(*batch)
    stored = lowered_by_executorch(torch.export.export(system.convert(prepared), example))
    method = opened(stored)

    def run(inputs: Sequence[Any], kept: bytes = stored) -> Any:  # the runtime reads from this memory
        return method(tuple(inputs))

    return Program(run)


def inductor_x86_program(model: Any, exported: Any, batches: list[Any], example: Any) -> Program:
    """Torchao's quantizer, through torch.compile with freezing."""
    import torch
    import torch._inductor.config as config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as theirs

    quantizer = theirs.X86InductorQuantizer().set_global(
        theirs.get_default_x86_inductor_quantization_config()
    )
    prepared = prepare_pt2e(exported.module(), quantizer)
    for batch in batches:
        prepared(*batch)
    quantized = convert_pt2e(prepared)
    config.freezing = True
    compiled = torch.compile(quantized)

    def run(inputs: Sequence[Any]) -> Any:
        with torch.no_grad():
            return compiled(*inputs)

    return Program(run)


def onnxruntime_program(
    model: Any, exported: Any, batches: list[Any], example: Any, *, reduce_range: bool
) -> Program:
    """ONNX Runtime's quantize_static: QDQ, per channel."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    import kernels

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, names: list[str]) -> None:
            self.rows: Iterator[Any] = iter(
                [{name: value.numpy() for name, value in zip(names, batch, strict=True)} for batch in batches]
            )

        def get_next(self) -> Any:
            return next(self.rows, None)

    folder = Path(tempfile.mkdtemp())
    plain, prepared, quantized = (str(folder / f"{name}.onnx") for name in ("plain", "prepared", "quantized"))
    torch.onnx.export(exported, dynamo=True, verbose=False).save(plain)
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    session = onnxruntime.InferenceSession(prepared, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    quantize_static(
        prepared,
        quantized,
        Reader(names),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=reduce_range,
    )
    return Program(onnxruntime_call(Path(quantized)), partial(kernels.onnxruntime_seconds, Path(quantized)))


def onnxruntime_call(file: Path) -> Call:
    """A session of a file, as ONNX Runtime has it by default."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(inputs: Sequence[Any]) -> Any:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(one) for one in session.run(None, given)]

    return run


def openvino_program(model: Any, exported: Any, batches: list[Any], example: Any) -> Program:
    """NNCF's quantize of the same model."""
    import nncf
    import openvino
    import torch

    import kernels

    found = openvino.convert_model(exported)
    data = nncf.Dataset([tuple(x.numpy() for x in batch) for batch in batches])
    is_transformer = len(batches[0]) > 1 or "Vision" in type(model).__name__
    kind = nncf.ModelType.TRANSFORMER if is_transformer else None
    quantized = nncf.quantize(found, data, subset_size=len(batches), model_type=kind)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "ENABLE_CPU_PINNING": "NO",
    }
    compiled = openvino.Core().compile_model(quantized, "CPU", options)

    def run(inputs: Sequence[Any]) -> Any:
        return [torch.from_numpy(one) for one in compiled([x.numpy() for x in inputs]).values()]

    return Program(run, partial(kernels.openvino_seconds, quantized))


MAKERS: dict[str, Callable[..., Program]] = {
    "executorch": executorch_program,
    "inductor_x86": inductor_x86_program,
    "onnxruntime": partial(onnxruntime_program, reduce_range=True),
    "onnxruntime_8bit": partial(onnxruntime_program, reduce_range=False),
    "openvino": openvino_program,
}
"""Row of the table → what the makers of its runtime recommend."""
