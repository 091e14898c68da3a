"""Language models that read from left to right, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

from architectures.behaviours import Behaviours, architectures
from architectures.decoders import TABLE


@architectures(*TABLE)
class TestDecoders(Behaviours):
    """Each architecture of the table."""
