"""The quantizer: the table and the presets; everything else is the core's PatternQuantizer."""

from __future__ import annotations

from typing import ClassVar

from torchquilt import PatternQuantizer
from torchquilt_acme_npu.specs import PRESETS
from torchquilt_acme_npu.support import SUPPORT


class AcmeNPUQuantizer(PatternQuantizer):
    """Quantizes for the Acme NPU: static, 8-bit or 16-bit activations, 8-bit or 4-bit weights."""

    TABLE = SUPPORT
    PRESETS = PRESETS
    conformance_exemptions: ClassVar = {"target:acme_npu": "there is no Acme NPU that a test could run it on"}
