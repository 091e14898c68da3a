"""Contribution of the quantizer to its own target, which knows already how to lower what it quantizes."""

from __future__ import annotations

from torchquilt.backend import Contribution

CONTRIBUTION = Contribution()
