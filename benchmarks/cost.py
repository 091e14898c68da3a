"""Cost of prepare and convert for each node, in chains of residual blocks of different lengths.

    python benchmarks/cost.py [--blocks 100 400 1600] [--runs 5] [--json FILE]

The cost is linear if a node of the longest chain costs as much as one of the shortest. Each is quantized
with one rule for all of it, and with a rule for each block. Times are seconds of the processor, which other
programs on the machine disturb less than those of the clock; the lengths take turns, and the median counts.

Exit status: 0 if the cost is linear, 1 if a node of the longest chain costs more than LIMIT times as much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.fx import GraphModule

import measuring
import torchquilt as tq
from models import chain
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

LIMIT = 2.2
"""Times. Larger graphs miss the caches of the processor more often, and the collector has more to look at."""
INPUT = torch.randn(1, 4, 2, 2)
CONFIG = get_symmetric_quantization_config(is_per_channel=True)
T = TypeVar("T")


def one_rule(_: int) -> XNNPACKQuantizer:
    """One rule for everything."""
    return XNNPACKQuantizer().set_global(CONFIG)


def rule_for_each(blocks: int) -> XNNPACKQuantizer:
    """A rule for each block, by its name."""
    quantizer = XNNPACKQuantizer()
    for number in range(blocks):
        quantizer.set_module_name(f"{number}", CONFIG)
    return quantizer


RULES: dict[str, Callable[[int], XNNPACKQuantizer]] = {"one rule": one_rule, "a rule a block": rule_for_each}


@attrs.define
class Measured:
    """A chain under some rules, and the seconds of each run."""

    rules: str
    blocks: int
    nodes: int
    export: float
    prepare: list[float] = attrs.field(factory=list)
    convert: list[float] = attrs.field(factory=list)

    @property
    def microseconds_a_node(self) -> float:
        """Prepare and convert together, the median of all runs."""
        runs = [sum(pair) for pair in zip(self.prepare, self.convert, strict=True)]
        return statistics.median(runs) / self.nodes * 1e6


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the processor, and what the function returned."""
    return measuring.timed(function, time.process_time)


def export_chain(blocks: int) -> tuple[float, GraphModule]:
    """Seconds that the export of a chain took, and its graph."""
    module = chain(blocks).eval()
    return timed(lambda: torch.export.export(module, (INPUT,)).module())


def run(exported: GraphModule, measured: Measured) -> None:
    """Prepare and convert once, and note how long it took."""
    quantizer = RULES[measured.rules](measured.blocks)
    seconds, prepared = timed(lambda: tq.prepare_pt2e(exported, quantizer, activation_observer="minmax"))
    measured.prepare.append(seconds)
    tq.calibrate(prepared, [(INPUT,)])
    seconds, _ = timed(lambda: tq.convert_pt2e(prepared))
    measured.convert.append(seconds)


def measure(lengths: list[int], runs: int) -> list[Measured]:
    """All lengths under all rules, interleaved, after one run of the shortest that is not counted."""
    chains = {blocks: export_chain(blocks) for blocks in lengths}
    rows = [
        Measured(rules, blocks, len(chains[blocks][1].graph.nodes), chains[blocks][0])
        for rules in RULES
        for blocks in lengths
    ]
    run(chains[lengths[0]][1], attrs.evolve(rows[0], prepare=[], convert=[]))
    for _ in range(runs):
        for row in rows:
            run(chains[row.blocks][1], row)
    return rows


def ratios(rows: list[Measured]) -> dict[str, float]:
    """For each kind of rules: what a node of the longest chain costs, in nodes of the shortest."""
    found = {}
    for rules in RULES:
        own = sorted((row for row in rows if row.rules == rules), key=lambda row: row.blocks)
        found[rules] = own[-1].microseconds_a_node / own[0].microseconds_a_node
    return found


def print_table(rows: list[Measured]) -> None:
    """Print the medians, in the form that Markdown reads too."""
    table = Table(box=box.MARKDOWN)
    for title in ("rules", "blocks", "nodes", "export s", "prepare s", "convert s", "µs a node"):
        table.add_column(title, justify="left" if title == "rules" else "right", no_wrap=True)
    for row in rows:
        seconds = (row.export, statistics.median(row.prepare), statistics.median(row.convert))
        counts = (f"{row.blocks:,}", f"{row.nodes:,}")
        table.add_row(row.rules, *counts, *(f"{s:.2f}" for s in seconds), f"{row.microseconds_a_node:.0f}")
    Console(width=100, no_color=True).print(table)


def write_json(path: Path, rows: list[Measured], about: dict[str, Any]) -> None:
    """Write all runs unrounded: ``about``, ``ratios`` and ``rows`` under these keys."""
    figures = {"about": about, "ratios": ratios(rows), "rows": [attrs.asdict(row) for row in rows]}
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run the benchmark and give its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[100, 400, 1600], metavar="N")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = measure(sorted(arguments.blocks), arguments.runs)
    print_table(rows)
    for rules, ratio in ratios(rows).items():
        print(f"{rules}: a node of the longest chain costs {ratio:.2f} times one of the shortest (≤ {LIMIT})")
    if arguments.json:
        write_json(arguments.json, rows, measuring.about(runs=arguments.runs, limit=LIMIT))
    return 0 if max(ratios(rows).values()) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
