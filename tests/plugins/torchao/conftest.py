"""Flags of torch that quantizers of vendors change for the whole process, set back behind their tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _kernels_of_torch() -> Iterator[None]:
    """Qualcomm's quantizer turns oneDNN off on processors of AMD."""
    before = torch.backends.mkldnn.enabled
    yield
    torch.backends.mkldnn.set_flags(before)
