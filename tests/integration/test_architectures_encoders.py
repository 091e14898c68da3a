"""Encoders of text, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

import pytest

from architectures.behaviours import Behaviours, architectures
from architectures.encoders import TABLE

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


@architectures(*TABLE)
class TestEncoders(Behaviours):
    """Each architecture of the table."""
