"""Signal to noise of `static_int8_per_channel` with each recovery pass, over the architectures of the tests.

    python benchmarks/recovery.py [--only TEXT ...] [--passes NAME ...] [--batches 8] [--shown 4]
        [--json FILE]

Each architecture (tests/architectures: tiny, random weights; and the vision transformer with a small class
token of tests/planted.py) is exported once, and quantized for XNNPACK by itself and behind each pass.
Calibration and passes see the same batches; the signal to noise against the float model, in dB, is that of
the worst output over other batches. Printed are, for each architecture, the default and the change that
each pass makes, and for each pass the median and the worst change where it was applied.

"all" is split_ranges, equalize, smooth and correct_biases, in this order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import attrs
import torch
from rich.console import Console
from rich.table import Table

import torchquilt as tq
from architectures import Architecture, decoders, encoders, mixtures, pairs, vision
from architectures.behaviours import measure, quantizer, results
from measuring import about
from planted import VisionTransformer
from torchquilt import recovery
from torchquilt.graph.shared_storage import written_tensors

DEFAULT = "default"


@attrs.frozen
class Way:
    """A way to quantize: passes over the float model, and over the calibrated one.

    Args:
        before: from the exported program and the batches to what is prepared.
        biases: whether biases are corrected.
    """

    before: Callable[[Any, list[Any]], Any] = lambda exported, batches: exported
    biases: bool = False


def _all(exported: Any, batches: list[Any]) -> Any:
    split = recovery.split_ranges(exported, batches)
    return recovery.smooth(recovery.equalize(split), batches)


WAYS = {
    DEFAULT: Way(),
    "equalize": Way(lambda exported, _: recovery.equalize(exported)),
    "smooth": Way(recovery.smooth),
    "split_ranges": Way(recovery.split_ranges),
    "correct_biases": Way(biases=True),
    "all": Way(_all, biases=True),
}


class Planted(Architecture):
    """An architecture whose weights are meant as they are."""

    def model(self) -> torch.nn.Module:
        """The model in evaluation mode."""
        return self.make().eval()


@attrs.frozen
class Measured:
    """Signal to noise in dB of one architecture, by way; for how many nodes each pass was applied."""

    name: str
    decibels: dict[str, float]
    applied: dict[str, int]


def subjects() -> Iterator[Architecture]:
    """The architectures of the tests, and the planted one."""
    for module in (vision, encoders, decoders, mixtures, pairs):
        yield from module.TABLE

    def images(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {"images": torch.randn(2, 3, 32, 32, generator=generator)}

    yield Planted("vit, small class token", VisionTransformer, images)


def measured(architecture: Architecture, ways: list[str], count: int, others: int) -> Measured:
    """Export once, and quantize in each way.

    Args:
        architecture: which.
        ways: names of the ways.
        count: batches to calibrate with.
        others: batches to measure with.
    """
    batches = [architecture.inputs(seed) for seed in range(count)]
    shapes = architecture.dynamic_shapes()
    exported = torch.export.export(
        architecture.model(), (), batches[0], strict=architecture.strict, dynamic_shapes=shapes
    )
    # What fills a cache takes the steps of one sequence, of which there are not so many.
    has_cache = bool(written_tensors(exported.module()))
    shown = batches if has_cache else [architecture.inputs(100 + seed) for seed in range(others)]
    expected = results(exported.module(), shown)
    decibels: dict[str, float] = {}
    applied: dict[str, int] = {}
    for name, way in ((name, WAYS[name]) for name in ways):
        calibrated = tq.calibrate(
            tq.prepare_pt2e(way.before(exported, batches), quantizer(is_dynamic=False)), batches
        )
        if way.biases:
            calibrated = recovery.correct_biases(calibrated, batches)
        applied[name] = sum(len(step.applied) for step in recovery.steps_of(calibrated))
        converted = tq.convert_pt2e(calibrated)
        decibels[name] = min(measure(expected, results(converted, shown)))
    return Measured(architecture.name, decibels, applied)


def changes(rows: list[Measured], way: str) -> list[float]:
    """The change of a way in dB where it was applied, sorted."""
    return sorted(row.decibels[way] - row.decibels[DEFAULT] for row in rows if row.applied[way])


def print_table(rows: list[Measured]) -> None:
    """Each architecture, and the median and the worst of all."""
    ways = [name for name in rows[0].decibels if name != DEFAULT]
    table = Table("architecture", f"{DEFAULT}, dB", *ways)
    for row in rows:
        cells = (
            f"{row.decibels[way] - row.decibels[DEFAULT]:+.1f}" if row.applied[way] else "–" for way in ways
        )
        table.add_row(row.name, f"{row.decibels[DEFAULT]:.1f}", *cells)
    table.add_section()
    for name, figure in (("median", statistics.median), ("worst", min), ("best", max), ("applied", len)):
        found = [changes(rows, way) for way in ways]
        signed = "d" if name == "applied" else "+.1f"
        table.add_row(name, "", *(f"{figure(values):{signed}}" if values else "–" for values in found))
    Console(width=140).print(table)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="architectures with one of these in the name")
    parser.add_argument("--batches", type=int, default=8, help="to calibrate with")
    parser.add_argument("--passes", nargs="*", default=[*WAYS], choices=WAYS, help="all by default")
    parser.add_argument("--shown", type=int, default=4, help="batches to measure with")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[Measured] = []
    for architecture in subjects():
        if not given.only or any(text in architecture.name for text in given.only):
            ways = [DEFAULT, *(name for name in given.passes if name != DEFAULT)]
            rows.append(measured(architecture, ways, given.batches, given.shown))
            print(
                rows[-1].name, {way: round(value, 1) for way, value in rows[-1].decibels.items()}, flush=True
            )
    print_table(rows)
    if given.json:
        written = {
            "about": about("transformers", batches=given.batches, shown=given.shown),
            "rows": [*map(attrs.asdict, rows)],
        }
        given.json.write_text(json.dumps(written, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
