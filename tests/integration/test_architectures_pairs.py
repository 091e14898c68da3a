"""Translation, sound, images with text, series, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

import pytest

from architectures.behaviours import Behaviours, architectures
from architectures.pairs import TABLE

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


@architectures(*TABLE)
class TestPairs(Behaviours):
    """Each architecture of the table."""
