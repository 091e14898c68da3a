"""A quantized model and its file, for all tests of saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.fx import GraphModule

import torchquilt as tq
from artifacts import X, made


@pytest.fixture(scope="module")
def linear() -> GraphModule:
    """A quantized linear; tests do not change it."""
    return made("linear")[0]


@pytest.fixture
def saved(linear: GraphModule, tmp_path: Path) -> Path:
    """It in a file."""
    tq.save(linear, tmp_path / "model.pt2", X)
    return tmp_path / "model.pt2"
