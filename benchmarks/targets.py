"""Time, agreement and integer work on each runtime: ours, the runtime's own quantizer, and float.

    python benchmarks/targets.py [--models NAME ...] [--targets NAME ...] [--threads 1 2] [--runs 20]
                                 [--json FILE]

On each target a model is quantized by our quantizer for it (static int8, a scale for each channel of weights)
and by the one that its makers recommend, with the same calibration data: torchao's X86InductorQuantizer
compiled in the same way, ONNX Runtime's quantize_static (QDQ, per channel), NNCF's quantize for OpenVINO,
ExecuTorch's XNNPACKQuantizer. Both have the same range of integers: on ONNX Runtime weights of 7 bits
("onnxruntime", our default, and their reduce_range) and of 8 ("onnxruntime_8bit", their default). The float
model is made a program of the same runtime.

On ONNX Runtime ours is the file in a plain session, as theirs is; elsewhere it is what tq.lower returns, and
that checks its inputs, which takes a fraction of a millisecond a call.

The three take turns in a process of their own for each model, target and number of threads, which is the
number of processors that the process may use. A turn waits until the threads of the last program sleep, calls
once to warm up, and times a second call. Medians and least times are compared, and on ONNX Runtime and
OpenVINO the time in kernels, the least of each (kernels.py): other work on the machine changes that less.
SQNR is against the float model in torch, on inputs that calibration has not seen; with the first number of
threads, since it is the same with others. "to Q/DQ" is how close our
program is to our own quantized model; where that is below 40 dB, the first kernel that rounds otherwise is
named (rounding.py).

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
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from makers import MAKERS, Call, Program, onnxruntime_call

OURS, THEIRS, FLOAT = "ours", "theirs", "float"
TARGETS = {
    "executorch": "xnnpack:static_int8_per_channel",
    "inductor_x86": "inductor_x86:static_int8_per_channel",
    "onnxruntime": "onnxruntime:static_int8_per_channel",
    "onnxruntime_8bit": "onnxruntime:static_int8_per_channel",
    "openvino": "openvino:static_int8_per_channel",
}
"""Row of the table → the quantizer of ours that is measured there."""
MODELS = ("ResNet-18", "MobileNetV2", "EfficientNet-Lite0", "ViT-B/16", "BERT-base, 128 tokens", "MiniLM")
CALIBRATION, UNSEEN, INPUTS, WARM_UP = 4, 1000, 8, 3
#: Turns of ours and theirs in which kernels are timed: a machine is slower for a while, too.
ROUNDS = 3
#: Seconds until the threads of a program that wait for work sleep.
REST = 0.02
#: Programs that are nearer to their quantized model than so many dB are not looked at further.
NEAR = 40.0
HEADS = (
    "model",
    "target",
    "threads",
    "least ms",
    "÷ theirs (median / least)",
    "÷ theirs, kernels",
    "÷ float (median / least)",
    "SQNR dB ours / theirs",
    "to Q/DQ",
    "integer % of layers / all",
)
#: Operators with weights, as their overloads begin.
LAYERS = ("aten.conv", "aten.linear", "aten.addmm")
_DEMO = Path(__file__).parents[1] / "examples" / "text_encoder"


def target_of(name: str) -> str:
    """The lowering target of a row."""
    return name.removesuffix("_8bit")


def subject_of(name: str) -> tuple[Any, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """A model, batches to calibrate with, and inputs that are not among them."""
    import models

    if name == "MiniLM":
        return _minilm()
    subject = next(one for one in (*models.MODELS, models.EFFICIENTNET) if one.name == name)
    batches = [subject.batch(seed) for seed in range(CALIBRATION)]
    return subject.module(), batches, [subject.batch(UNSEEN + number) for number in range(INPUTS)]


def _minilm() -> tuple[Any, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The demo's encoder with its real weights, on real texts, one at a time."""
    sys.path.insert(0, str(_DEMO))
    import encoder
    import inputs

    loaded = encoder.load_encoder(inputs.read_model_folder(inputs.packaged_model()))
    texts = inputs.lee_background().texts[: CALIBRATION + INPUTS]
    tokens = loaded.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=128, return_tensors="pt"
    )
    rows = [(tokens["input_ids"][i : i + 1], tokens["attention_mask"][i : i + 1]) for i in range(len(texts))]
    return loaded.model, rows[:CALIBRATION], rows[CALIBRATION:]


def ours(
    exported: Any, name: str, batches: list[Any], inputs: list[Any], *, times_alone: bool
) -> tuple[Program, dict[str, Any]]:
    """Our program, and the figures that it tells of itself."""
    import torchquilt as tq

    prepared = tq.prepare_pt2e(exported, quantizer_of(name))
    quantized = tq.convert_pt2e(tq.calibrate(prepared, batches, progress=False))
    program = tq.lower(quantized, inputs[0], target=target_of(name), verify=False)
    ledger = program.ledger
    assert ledger is not None
    layers = [row for row in ledger.rows if row.op.startswith(LAYERS)]

    def run(one: Sequence[Any]) -> Any:
        return program.run(*one)

    facts = {
        "integer_share": _integer_share(ledger.rows),
        "integer_share_of_layers": _integer_share(layers),
        "integer_operators": len(program.integer_operations),
        "nbytes": program.size,
    }
    made = _program_of(program, run)
    if times_alone:
        return made, facts
    facts["to_qdq"] = _sqnr(_all(lambda one: quantized(*one), inputs), _all(run, inputs))
    if facts["to_qdq"] < NEAR:
        facts["rounds_otherwise"] = _rounds_otherwise(quantized, inputs[0], target_of(name))
    return made, facts


def _integer_share(rows: Sequence[Any]) -> float:
    """Share of the multiply-adds of some rows of a ledger that run in integer kernels."""
    codes = ("integer_kernel", "delegated_as_integers")
    integer = sum(row.macs for row in rows if row.lowered is not None and row.lowered.code in codes)
    return float(integer / (sum(row.macs for row in rows) or 1))


def _program_of(program: Any, run: Call) -> Program:
    """A program to time: on ONNX Runtime the file in a plain session, as theirs is."""
    import kernels

    file = Path(tempfile.mkdtemp()) / "program"
    if program.target == "onnxruntime":
        program.save(file)
        return Program(onnxruntime_call(file), partial(kernels.onnxruntime_seconds, file))
    if program.target == "openvino":
        program.save(file)
        return Program(run, partial(kernels.openvino_seconds, kernels.stored_openvino(file.read_bytes())))
    return Program(run)


def _rounds_otherwise(quantized: Any, example: Any, target: str) -> str:
    from rounding import first_rounded_otherwise

    found = first_rounded_otherwise(quantized, example, target)
    return "none of the first kernels" if found is None else str(found)


def quantizer_of(name: str) -> Any:
    """Our quantizer, with the settings of the other: torchao's uses the whole range of activations."""
    if name == "onnxruntime_8bit":
        from torchquilt_onnxruntime import ONNXRuntimeQuantizer, get_default_onnxruntime_quantization_config

        whole = get_default_onnxruntime_quantization_config(reduce_range=False)
        return ONNXRuntimeQuantizer().set_global(whole)
    if name != "inductor_x86":
        return TARGETS[name]
    from torchquilt_inductor_x86 import X86InductorQuantizer, get_default_x86_inductor_quantization_config

    config = get_default_x86_inductor_quantization_config(reduce_range=False)
    return X86InductorQuantizer().set_global(config)


def in_float(exported: Any, name: str, example: Any) -> Program:
    """The float program of the same runtime."""
    import torchquilt as tq

    backend = TARGETS[name].partition(":")[0]
    program = tq.lower(exported, example, target=target_of(name), backends=[backend], verify=False)
    return _program_of(program, lambda inputs: program.run(*inputs))


def tried(
    way: str,
    make: Callable[[], tuple[Program, dict[str, Any]]],
    expected: list[Any] | None,
    inputs: list[Any],
) -> tuple[Program | None, dict[str, Any]]:
    """A program and its figures, or why there is none.

    Args:
        way: whose program it is.
        make: makes it.
        expected: outputs of the float model; None to leave out what is compared with them.
        inputs: of these.
    """
    try:
        program, facts = make()
        if expected is None:
            return program, facts
        return program, facts | {f"{way}_sqnr": _sqnr(expected, _all(program.run, inputs))}
    except Exception as error:  # each system fails in its own way; the figure says so
        return None, {f"{way}_failed": f"{type(error).__name__}: {error}"[:400]}


def measured(name: str, target: str, runs: int, *, times_alone: bool) -> dict[str, Any]:
    """Figures of one model on one target, in this process."""
    import torch

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, batches, inputs = subject_of(name)
    exported = torch.export.export(model, inputs[0])
    with torch.no_grad():
        expected = None if times_alone else _all(lambda one: model(*one), inputs)
    row: dict[str, Any] = {"model": name, "target": target}
    made: dict[str, Program] = {}
    ways: dict[str, Callable[[], tuple[Program, dict[str, Any]]]] = {
        OURS: lambda: ours(exported, target, batches, inputs, times_alone=times_alone),
        THEIRS: lambda: (MAKERS[target](model, exported, batches, inputs[0]), {}),
        FLOAT: lambda: (in_float(exported, target, inputs[0]), {}),
    }
    for way, make in ways.items():
        program, facts = tried(way, make, expected, inputs)
        row |= facts
        if program is not None:
            made[way] = program
    for _ in range(ROUNDS):
        for way, program in made.items():
            if way != FLOAT and program.kernels is not None:
                found = 1e3 * program.kernels(inputs[0], runs)
                row[f"{way}_kernels_ms"] = min(found, row.get(f"{way}_kernels_ms", found))
    seconds = in_turns(made, inputs[0], runs)
    return (
        row
        | {f"{way}_ms": 1e3 * statistics.median(times) for way, times in seconds.items()}
        | {f"{way}_least_ms": 1e3 * min(times) for way, times in seconds.items()}
    )


def in_turns(made: dict[str, Program], example: Any, runs: int) -> dict[str, list[float]]:
    """Seconds of the calls of some programs that take turns."""
    from measuring import timed

    for program in made.values():
        for _ in range(WARM_UP):
            program.run(example)
    seconds: dict[str, list[float]] = {way: [] for way in made}
    for _ in range(runs):
        for way, program in made.items():
            time.sleep(REST)
            program.run(example)
            seconds[way].append(timed(lambda run=program.run: run(example))[0])
    return seconds


def _all(call: Call, inputs: list[Any]) -> list[Any]:
    """All outputs of some calls."""
    return [leaf for one in inputs for leaf in _leaves(call(one))]


def _leaves(outputs: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return list(pytree.tree_leaves(outputs))


def _sqnr(expected: list[Any], found: list[Any]) -> float:
    from measuring import signal_to_noise

    return signal_to_noise(expected, found)


def in_process(name: str, target: str, threads: int, runs: int, *, times_alone: bool) -> dict[str, Any]:
    """The same of a process of its own, that may use so many processors."""
    arguments = ["--models", name, "--targets", target, "--runs", str(runs), "--one"]
    arguments += ["--times-alone"] if times_alone else []
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
        pairs = [(f"ours{kind}", f"{other}{kind}") for kind in ("_ms", "_least_ms")]
        if any(key not in row for pair in pairs for key in pair):
            return "–"
        return " / ".join(f"{row[own] / row[theirs]:.2f}" for own, theirs in pairs)

    return [
        row["model"],
        row["target"],
        str(row["threads"]),
        number("ours_least_ms", ".2f"),
        ratio("theirs"),
        f"{row['ours_kernels_ms'] / row['theirs_kernels_ms']:.2f}"
        if {"ours_kernels_ms", "theirs_kernels_ms"} <= row.keys()
        else "–",
        ratio("float"),
        f"{number('ours_sqnr', '.1f')} / {number('theirs_sqnr', '.1f')}",
        number("to_qdq", ".1f"),
        f"{number('integer_share_of_layers', '.1f', 100)} / {number('integer_share', '.1f', 100)}",
    ]


def show(rows: list[dict[str, Any]], failures: list[str]) -> None:
    """Print the table, the kernels that round otherwise, and what failed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*cells(row))
    console = Console(width=170)
    console.print(table)
    otherwise = [
        f"{row['model']}, {row['target']}: first to round otherwise: {row['rounds_otherwise']}"
        for row in rows
        if "rounds_otherwise" in row and row["threads"] == rows[0]["threads"]
    ]
    for line in (*otherwise, *failures):
        console.print(line, markup=False, highlight=False)


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--targets", nargs="+", default=tuple(TARGETS), choices=tuple(TARGETS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--times-alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        os.sched_setaffinity(0, json.loads(os.environ["TORCHQUILT_BENCH_PROCESSORS"]))
        name, target = options.models[0], options.targets[0]
        print(json.dumps(measured(name, target, options.runs, times_alone=options.times_alone)))
        return 0
    rows = [
        in_process(name, target, threads, options.runs, times_alone=threads != options.threads[0])
        for name in options.models
        for target in options.targets
        for threads in options.threads
    ]
    failures = [
        f"{row['model']}, {row['target']}, {row['threads']}: {key.removesuffix('_failed')}: {value}"
        for row in rows
        for key, value in row.items()
        if key.endswith("_failed")
    ]
    show(rows, failures)
    if options.json:
        from measuring import about

        written = {"about": about("torchquilt", "torchao", "onnxruntime", "openvino", "nncf"), "rows": rows}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
