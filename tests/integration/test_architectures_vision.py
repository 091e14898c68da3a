"""Models of images and of films, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

import pytest

from architectures.behaviours import Behaviours, architectures
from architectures.vision import TABLE

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


@architectures(*TABLE)
class TestVision(Behaviours):
    """Each architecture of the table."""
