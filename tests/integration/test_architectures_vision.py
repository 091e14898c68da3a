"""Models of images and of films, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

from architectures.behaviours import Behaviours, architectures
from architectures.vision import TABLE


@architectures(*TABLE)
class TestVision(Behaviours):
    """Each architecture of the table."""
