"""Pages of the docs as tests run them."""

from __future__ import annotations

from pathlib import Path

from page_blocks import is_printed, run


def check_blocks(path: Path) -> None:
    """Run the blocks of a page from top to bottom, and compare what they print with what the page shows."""
    for block, printed in run(path.read_text(encoding="utf-8"), path.name):
        if block.output is not None:
            assert is_printed(block.output, printed), f"{block.code}\nprinted:\n{printed}"
