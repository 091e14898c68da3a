"""The kit warns of imports that are not public, and says what to write instead."""

from __future__ import annotations

import pytest

from torchquilt.testing.test_imports import not_public


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from torchquilt.graph.edits import write_as", "write from torchquilt.backend import write_as"),
        ("from torchquilt.ledger.ledger import Ledger", "write from torchquilt import Ledger"),
        ("from torchquilt._internal.terminal import is_terminal", "ask for is_terminal to be made public"),
        ("import torchquilt.graph.edits", "torchquilt.graph.edits is not public"),
    ],
)
def test_an_import_that_is_not_public_is_told_with_the_one_to_write(line: str, told: str) -> None:
    """The number of the line, the module, and the name in the public face if it is there."""
    ((number, text),) = not_public(f"import os\n{line}\n")
    assert number == 2
    assert told in text


@pytest.mark.parametrize(
    "line",
    [
        "import torchquilt as tq",
        "from torchquilt import PatternQuantizer",
        "from torchquilt.backend import Manifest",
        "from torchquilt.errors import ModelError",
        "from torchquilt.observers import Observer",
        "from torchquilt_acme_npu.specs import PRESETS",
    ],
)
def test_a_public_import_is_not_warned_of(line: str) -> None:
    """The public face, and other packages."""
    assert [*not_public(line)] == []
