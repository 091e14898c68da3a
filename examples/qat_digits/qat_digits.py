"""Quantize a network for handwritten digits to 8 and 4 bits, with and without training, and print a table.

    python examples/qat_digits/qat_digits.py [--seeds 3] [--epochs 60] [--qat-epochs 40] [--json FILE]

For each seed the data is split anew, and a network is trained from nothing. Models of 4 bits have the same
integers in the same tensors; only how their weights and ranges were found differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import attrs

from report import print_table, rows_of
from variants import Figures, run


def main() -> None:
    """Run all seeds, and print what they come to."""
    arguments = parse_arguments()
    rows = rows_of(run_seeds(arguments.seeds, arguments.epochs, arguments.qat_epochs))
    print_table(rows)
    print("\nEach trained model and what it was converted to give the same bits on the whole test set.")
    if arguments.json is not None:
        text = json.dumps([attrs.asdict(row) for row in rows], indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Quantization-aware training of a network for digits.")
    parser.add_argument("--seeds", type=int, default=3, help="how many networks to train")
    parser.add_argument("--epochs", type=int, default=60, help="of the float network")
    parser.add_argument("--qat-epochs", type=int, default=40, help="of each model that is trained further")
    parser.add_argument("--json", type=Path, help="a file for the unrounded figures")
    return parser.parse_args()


def run_seeds(seeds: int, epochs: int, qat_epochs: int) -> list[list[Figures]]:
    """The figures of each seed, which run at the same time as far as there are processors."""
    workers = min(seeds, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return [*pool.map(run, range(seeds), repeat(epochs), repeat(qat_epochs))]


if __name__ == "__main__":
    main()
