"""Encoders of text, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

from architectures.behaviours import Behaviours, architectures
from architectures.encoders import TABLE


@architectures(*TABLE)
class TestEncoders(Behaviours):
    """Each architecture of the table."""
