"""Cost of a comparison beside the runs of the two models, and of sensitivity beside a calibration.

    python benchmarks/accuracy.py [--models NAME ...] [--batches 1 20] [--runs 3] [--peaks 1 100]
                                  [--calibration 32]

The models are quantized for XNNPACK (static int8, one scale a channel). One run of the float and one
of the quantized model, and the comparison, take turns in one process; medians are compared. Peak memory is
that of a process of its own for each number of batches, in MiB. Then the sensitivity of all modules, and
preparing and calibrating the model on the same batches, take turns.

Exit status: 0 if a comparison costs at most LIMIT times what the two forwards do, and sensitivity LIMIT times
what preparing and calibrating does; 1 if not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import torchquilt as tq
from measuring import about, peak_of, timed
from models import MODELS, Subject
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

LIMIT = 3.0
"""Seconds of a comparison ÷ those of one float and one quantized forward of its batches; and of sensitivity ÷
those of one calibration."""
NAMES = ("ResNet-18", "MobileNetV2", "BERT-base, 128 tokens")


def quantizer() -> XNNPACKQuantizer:
    """Quantizer of all models."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def quantized(subject: Subject) -> tuple[torch.export.ExportedProgram, torch.fx.GraphModule]:
    """The exported model and its quantized form."""
    exported = torch.export.export(subject.module(), subject.batch(0))
    prepared = tq.prepare_pt2e(exported, quantizer())
    return exported, tq.convert_pt2e(tq.calibrate(prepared, [subject.batch(0)], progress=False))


def measured(subject: Subject, counts: list[int], runs: int) -> dict[str, dict[str, list[float]]]:
    """Number of batches → seconds of the two forwards and of the comparison, for each run."""
    exported, found = quantized(subject)
    plain = exported.module()
    seconds: dict[str, dict[str, list[float]]] = {}
    for count in counts:
        batches = [subject.batch(seed) for seed in range(count)]

        def forwards(batches: list[Any] = batches) -> None:
            with torch.no_grad():
                for batch in batches:
                    plain(*batch)
                    found(*batch)

        def compare(batches: list[Any] = batches) -> None:
            tq.compare(exported, found, batches, progress=False)

        forwards(batches[:1])
        into = seconds.setdefault(str(count), {"forwards": [], "compare": []})
        for _ in range(runs):
            into["forwards"].append(timed(forwards)[0])
            into["compare"].append(timed(compare)[0])
    return seconds


def of_sensitivity(subject: Subject, count: int, runs: int) -> dict[str, list[float]]:
    """Seconds of preparing and calibrating with so many batches, and of the sensitivity of all modules."""
    exported = torch.export.export(subject.module(), subject.batch(0))
    batches = [subject.batch(seed) for seed in range(count)]
    seconds: dict[str, list[float]] = {"calibration": [], "sensitivity": []}
    for _ in range(runs):
        once = timed(lambda: tq.calibrate(tq.prepare_pt2e(exported, quantizer()), batches, progress=False))
        seconds["calibration"].append(once[0])
        asked = timed(lambda: tq.sensitivity(exported, quantizer(), batches, progress=False))
        seconds["sensitivity"].append(asked[0])
    return seconds


def peak(subject: Subject, count: int) -> float:
    """MiB at the peak of a comparison; of this process."""
    exported, found = quantized(subject)
    batches = (subject.batch(seed) for seed in range(count))
    return peak_of(lambda: tq.compare(exported, found, batches, progress=False))


def peak_in_process(subject: Subject, count: int) -> float:
    """The same of a process of its own."""
    command = [sys.executable, __file__, "--models", subject.name, "--peak-of", str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The figures as they are printed."""
    table = Table("model", "batches", "forwards, s", "compare, s", "ratio", "peak, MiB", box=box.MARKDOWN)
    for row in rows:
        peaks = ", ".join(f"{count}: {mebibytes:,.0f}" for count, mebibytes in row["peaks"].items())
        for count, ratio in row["ratios"].items():
            medians = {name: statistics.median(values) for name, values in row["seconds"][count].items()}
            seconds = (f"{medians[name]:.2f}" for name in ("forwards", "compare"))
            table.add_row(row["model"], count, *seconds, f"{ratio:.2f}", peaks)
    return table


def sensitivity_table(rows: list[dict[str, Any]], count: int) -> Table:
    """The figures of sensitivity as they are printed."""
    table = Table("model", "batches", "calibration, s", "sensitivity, s", "ratio", box=box.MARKDOWN)
    for row in rows:
        medians = [statistics.median(row["of_sensitivity"][name]) for name in ("calibration", "sensitivity")]
        table.add_row(row["model"], str(count), *(f"{one:.2f}" for one in medians), f"{ratio_of(row):.2f}")
    return table


def ratio_of(row: dict[str, Any]) -> float:
    """Sensitivity ÷ calibration."""
    seconds = row["of_sensitivity"]
    return statistics.median(seconds["sensitivity"]) / statistics.median(seconds["calibration"])


def row_of(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a model."""
    seconds = measured(subject, options.batches, options.runs)
    ratios = {
        count: statistics.median(by["compare"]) / statistics.median(by["forwards"])
        for count, by in seconds.items()
    }
    peaks = {str(count): peak_in_process(subject, count) for count in options.peaks}
    row = {"model": subject.name, "seconds": seconds, "ratios": ratios, "peaks": peaks}
    return {**row, "of_sensitivity": of_sensitivity(subject, options.calibration, options.runs)}


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Cost of a comparison.")
    parser.add_argument("--models", nargs="+", default=NAMES, choices=[one.name for one in MODELS])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 20])
    parser.add_argument("--peaks", nargs="*", type=int, default=[1, 100])
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    warnings.simplefilter("ignore")
    options = options_of(arguments)
    subjects = [one for one in MODELS if one.name in options.models]
    console = Console(width=120)
    if options.peak_of is not None:
        console.print(peak(subjects[0], options.peak_of))
        return 0
    rows = [row_of(subject, options) for subject in subjects]
    console.print(table_of(rows))
    console.print(sensitivity_table(rows, options.calibration))
    if options.json:
        written = {"about": about("torchquilt", limit=LIMIT), "rows": rows}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    ratios = [ratio for row in rows for ratio in (*row["ratios"].values(), ratio_of(row))]
    return int(max(ratios) > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
