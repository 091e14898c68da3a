"""Mixtures of experts, and models with a state, through the whole flow: see ``architectures.behaviours``."""

from __future__ import annotations

import pytest

from architectures.behaviours import Behaviours, architectures
from architectures.mixtures import TABLE

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


@architectures(*TABLE)
class TestMixtures(Behaviours):
    """Each architecture of the table."""
