"""Mixtures of experts, and models with a state, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

from architectures.behaviours import Behaviours, architectures
from architectures.mixtures import TABLE


@architectures(*TABLE)
class TestMixtures(Behaviours):
    """Each architecture of the table."""
