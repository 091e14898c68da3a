"""Time, agreement and integer work on each runtime: ours, the runtime's own quantizer, and float.

    python benchmarks/targets.py [--models NAME ...] [--targets NAME ...] [--threads 1 2] [--runs 20]
                                 [--json FILE]

On each target a model is quantized by our quantizer for it (static int8, a scale for each channel of weights)
and by the one that its makers recommend, with the same calibration data: torchao's X86InductorQuantizer
compiled in the same way, ONNX Runtime's quantize_static (QDQ, per channel), NNCF's quantize for OpenVINO,
ExecuTorch's XNNPACKQuantizer. The float model is made a program of the same runtime. The three take turns in
a process of their own for each model, target and number of threads, which is the number of processors that
the process may use; times are medians. SQNR is against the float model in torch, on an input that
calibration has not seen. "to Q/DQ" is how close our program is to our own quantized model.

Exit status: 0, or 1 if a program of ours or of the other could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

OURS, THEIRS, FLOAT = "ours", "theirs", "float"
TARGETS = {
    "executorch": "xnnpack:static_int8_per_channel",
    "inductor_x86": "inductor_x86:static_int8_per_channel",
    "onnxruntime": "onnxruntime:static_int8_per_channel",
    "openvino": "openvino:static_int8_per_channel",
}
"""Target → the quantizer of ours that is measured there."""
MODELS = ("ResNet-18", "MobileNetV2", "EfficientNet-Lite0", "ViT-B/16", "BERT-base, 128 tokens", "MiniLM")
CALIBRATION, UNSEEN, WARM_UP = 4, 1000, 3
_DEMO = Path(__file__).parents[1] / "examples" / "text_encoder"

Call = Callable[[Sequence[Any]], Any]


def subject_of(name: str) -> tuple[Any, list[tuple[Any, ...]], tuple[Any, ...]]:
    """A model, batches to calibrate with, and an input that is not among them."""
    import models

    if name == "MiniLM":
        return _minilm()
    subject = next(one for one in (*models.MODELS, models.EFFICIENTNET) if one.name == name)
    return subject.module(), [subject.batch(seed) for seed in range(CALIBRATION)], subject.batch(UNSEEN)


def _minilm() -> tuple[Any, list[tuple[Any, ...]], tuple[Any, ...]]:
    """The demo's encoder with its real weights, on real texts, one at a time."""
    sys.path.insert(0, str(_DEMO))
    import encoder
    import inputs

    loaded = encoder.load_encoder(inputs.read_model_folder(inputs.packaged_model()))
    texts = inputs.lee_background().texts[: CALIBRATION + 1]
    tokens = loaded.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=128, return_tensors="pt"
    )
    rows = [(tokens["input_ids"][i : i + 1], tokens["attention_mask"][i : i + 1]) for i in range(len(texts))]
    return loaded.model, rows[:-1], rows[-1]


def ours(exported: Any, target: str, batches: list[Any], example: Any) -> tuple[Call, dict[str, Any]]:
    """Our program, and the figures that it tells of itself."""
    import torchquilt as tq

    prepared = tq.prepare_pt2e(exported, quantizer_of(target))
    quantized = tq.convert_pt2e(tq.calibrate(prepared, batches, progress=False))
    program = tq.lower(quantized, example, target=target, verify=False)
    ledger = program.ledger
    assert ledger is not None
    macs = sum(row.macs for row in ledger.rows)
    integer = [
        row.macs
        for row in ledger.rows
        if row.lowered is not None and row.lowered.code in ("integer_kernel", "delegated_as_integers")
    ]
    facts = {
        "integer_share": sum(integer) / macs if macs else 0.0,
        "integer_operators": len(program.integer_operations),
        "nbytes": program.size,
        "to_qdq": _sqnr(_leaves(quantized(*example)), _leaves(program.run(*example))),
    }
    return lambda inputs: program.run(*inputs), facts


def quantizer_of(target: str) -> Any:
    """Our quantizer, with the settings of the other: torchao's uses the whole range of activations."""
    if target != "inductor_x86":
        return TARGETS[target]
    from torchquilt_inductor_x86 import X86InductorQuantizer, get_default_x86_inductor_quantization_config

    config = get_default_x86_inductor_quantization_config(reduce_range=False)
    return X86InductorQuantizer().set_global(config)


def in_float(exported: Any, target: str, example: Any) -> Call:
    """The float program of the same runtime."""
    import torchquilt as tq

    backend = TARGETS[target].partition(":")[0]
    program = tq.lower(exported, example, target=target, backends=[backend], verify=False)
    return lambda inputs: program.run(*inputs)


def theirs_executorch(model: Any, exported: Any, batches: list[Any], example: Any) -> Call:
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

    return run


def theirs_inductor_x86(model: Any, exported: Any, batches: list[Any], example: Any) -> Call:
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

    return run


def theirs_onnxruntime(model: Any, exported: Any, batches: list[Any], example: Any) -> Call:
    """ONNX Runtime's quantize_static: QDQ, per channel."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

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
    )
    found = onnxruntime.InferenceSession(quantized, providers=["CPUExecutionProvider"])
    return lambda inputs: [
        torch.from_numpy(one)
        for one in found.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    ]


def theirs_openvino(model: Any, exported: Any, batches: list[Any], example: Any) -> Call:
    """NNCF's quantize of the same model."""
    import nncf
    import openvino
    import torch

    found = openvino.convert_model(exported)
    data = nncf.Dataset([tuple(x.numpy() for x in batch) for batch in batches])
    is_transformer = len(batches[0]) > 1 or "Vision" in type(model).__name__
    kind = nncf.ModelType.TRANSFORMER if is_transformer else None
    quantized = nncf.quantize(found, data, subset_size=len(batches), model_type=kind)
    compiled = openvino.Core().compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [torch.from_numpy(one) for one in compiled([x.numpy() for x in inputs]).values()]


THEIR_WAYS: dict[str, Callable[..., Call]] = {
    "executorch": theirs_executorch,
    "inductor_x86": theirs_inductor_x86,
    "onnxruntime": theirs_onnxruntime,
    "openvino": theirs_openvino,
}
"""Target → what its makers recommend."""


def tried(
    way: str, make: Callable[[], tuple[Call, dict[str, Any]]], expected: list[Any], example: Any
) -> tuple[Call | None, dict[str, Any]]:
    """A program and its figures, or why there is none."""
    try:
        call, facts = make()
        return call, facts | {f"{way}_sqnr": _sqnr(expected, _leaves(call(example)))}
    except Exception as error:  # each system fails in its own way; the figure says so
        return None, {f"{way}_failed": f"{type(error).__name__}: {error}"[:400]}


def measured(name: str, target: str, runs: int) -> dict[str, Any]:
    """Figures of one model on one target, in this process."""
    import torch

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, batches, example = subject_of(name)
    exported = torch.export.export(model, example)
    with torch.no_grad():
        expected = _leaves(model(*example))
    row: dict[str, Any] = {"model": name, "target": target}
    made: dict[str, Call] = {}
    ways: dict[str, Callable[[], tuple[Call, dict[str, Any]]]] = {
        OURS: lambda: ours(exported, target, batches, example),
        THEIRS: lambda: (THEIR_WAYS[target](model, exported, batches, example), {}),
        FLOAT: lambda: (in_float(exported, target, example), {}),
    }
    for way, make in ways.items():
        call, facts = tried(way, make, expected, example)
        row |= facts
        if call is not None:
            made[way] = call
    for call in made.values():
        for _ in range(WARM_UP):
            call(example)
    seconds: dict[str, list[float]] = {way: [] for way in made}
    from measuring import timed

    for _ in range(runs):
        for way, call in made.items():
            seconds[way].append(timed(lambda call=call: call(example))[0])
    return row | {f"{way}_ms": 1e3 * statistics.median(times) for way, times in seconds.items()}


def _leaves(outputs: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return list(pytree.tree_leaves(outputs))


def _sqnr(expected: list[Any], found: list[Any]) -> float:
    from measuring import signal_to_noise

    return signal_to_noise(expected, found)


def in_process(name: str, target: str, threads: int, runs: int) -> dict[str, Any]:
    """The same of a process of its own, that may use so many processors."""
    arguments = ["--models", name, "--targets", target, "--runs", str(runs), "--one"]
    processors = sorted(os.sched_getaffinity(0))[:threads]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TORCHQUILT_BENCH_PROCESSORS": json.dumps(processors),
        },
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"model": name, "target": target, "threads": threads, "ours_failed": done.stderr[-400:]}
    return {**json.loads(lines[-1]), "threads": threads}


def cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""

    def number(key: str, form: str, times: float = 1.0) -> str:
        return format(times * row[key], form) if key in row else "–"

    def ratio(other: str) -> str:
        return f"{row['ours_ms'] / row[other]:.2f}" if "ours_ms" in row and other in row else "–"

    return [
        row["model"],
        row["target"],
        str(row["threads"]),
        number("ours_ms", ".2f"),
        ratio("theirs_ms"),
        ratio("float_ms"),
        f"{number('ours_sqnr', '.1f')} / {number('theirs_sqnr', '.1f')}",
        number("to_qdq", ".1f"),
        number("integer_share", ".1f", 100),
    ]


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--targets", nargs="+", default=tuple(TARGETS), choices=tuple(TARGETS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        os.sched_setaffinity(0, json.loads(os.environ["TORCHQUILT_BENCH_PROCESSORS"]))
        print(json.dumps(measured(options.models[0], options.targets[0], options.runs)))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [
        in_process(name, target, threads, options.runs)
        for name in options.models
        for target in options.targets
        for threads in options.threads
    ]
    heads = (
        "model",
        "target",
        "threads",
        "ms",
        "÷ theirs",
        "÷ float",
        "SQNR dB ours / theirs",
        "to Q/DQ",
        "integer %",
    )
    table = Table(*heads, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*cells(row))
    console = Console(width=140)
    console.print(table)
    failures = [
        f"{row['model']}, {row['target']}, {row['threads']}: {key.removesuffix('_failed')}: {value}"
        for row in rows
        for key, value in row.items()
        if key.endswith("_failed")
    ]
    for line in failures:
        console.print(line, markup=False, highlight=False)
    if options.json:
        from measuring import about

        written = {"about": about("torchquilt", "torchao", "onnxruntime", "openvino", "nncf"), "rows": rows}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
