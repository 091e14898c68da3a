"""Translation, sound, images with text, series, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

from architectures.behaviours import Behaviours, architectures
from architectures.pairs import TABLE


@architectures(*TABLE)
class TestPairs(Behaviours):
    """Each architecture of the table."""
