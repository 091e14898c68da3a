"""Pages of the docs as tests run them."""

from __future__ import annotations

from pathlib import Path

import torch

from page_blocks import is_printed, run

#: A seed, since pages draw random numbers that they do not seed.
_SEED = 67280421310721


def check_blocks(path: Path) -> None:
    """Run the blocks of a page from top to bottom, and compare what they print with what the page shows.

    With seeded random numbers and on one thread, whatever tests before have left: on two,
    sums are rounded otherwise, and a model that is trained on a page becomes another one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    try:
        for block, printed in run(path.read_text(encoding="utf-8"), path.name):
            if block.output is not None:
                assert is_printed(block.output, printed), f"{block.code}\nprinted:\n{printed}"
    finally:
        torch.set_num_threads(before)
