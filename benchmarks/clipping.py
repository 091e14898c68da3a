"""Agreement with the float model, by how often the squares of what is clipped count in the search for ranges.

    python benchmarks/clipping.py [--models NAME ...] [--row NAME]

Each model of targets.py is calibrated once, and converted with ranges that count clipping so often. SQNR is
that of the quantized model against the float one, on inputs that calibration has not seen; in torch, so that
no runtime is needed. Beside them are the ranges from the smallest to the largest value.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import targets

COUNTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)


def figures(name: str, row: str) -> Iterator[float]:
    """SQNR for each count, and for ranges that clip nothing."""
    import torch

    import torchquilt as tq
    from torchquilt.observers import search

    torch.manual_seed(0)
    model, batches, inputs = targets.subject_of(name)
    exported = torch.export.export(model, inputs[0])
    with torch.no_grad():
        expected = [leaf for one in inputs for leaf in _leaves(model(*one))]

    def agreement(prepared: Any) -> float:
        from measuring import signal_to_noise

        quantized = tq.convert_pt2e(prepared)
        with torch.no_grad():
            return signal_to_noise(expected, [leaf for one in inputs for leaf in _leaves(quantized(*one))])

    def calibrated(observer: str) -> Any:
        prepared = tq.prepare_pt2e(exported, targets.quantizer_of(row), activation_observer=observer)
        return tq.calibrate(prepared, batches, progress=False)

    prepared, ours = calibrated("histogram"), search._CLIPPED_COUNTS
    for counts in COUNTS:
        search._CLIPPED_COUNTS = counts
        yield agreement(prepared)
    search._CLIPPED_COUNTS = ours
    yield agreement(calibrated("minmax"))


def _leaves(outputs: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return list(pytree.tree_leaves(outputs))


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=targets.MODELS, choices=targets.MODELS)
    parser.add_argument("--row", default="inductor_x86", choices=tuple(targets.TARGETS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("model", *(f"{counts:g}" for counts in COUNTS), "min-max", box=box.MARKDOWN)
    for name in options.models:
        table.add_row(name, *(f"{found:.1f}" for found in figures(name, options.row)))
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
