"""Language models that read from left to right, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

import pytest

from architectures.behaviours import Behaviours, architectures
from architectures.decoders import TABLE

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


@architectures(*TABLE)
class TestDecoders(Behaviours):
    """Each architecture of the table."""
