"""The configs of the backend, and real layers quantized by it on the runtime."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchquilt as tq
from torchquilt.testing.trials import sqnr
from torchquilt_onnxruntime import ONNXRuntimeQuantizer, get_default_onnxruntime_quantization_config
from torchquilt_onnxruntime.specs import LARGEST_REDUCED_WEIGHT

_LARGEST_INT16 = 2**15 - 1


def test_by_default_two_products_fit_into_16_bits() -> None:
    """As processors without VNNI add them; with the widest weights they do not."""
    reduced = get_default_onnxruntime_quantization_config().weight
    widest = get_default_onnxruntime_quantization_config(reduce_range=False).weight
    assert reduced is not None
    assert widest is not None
    assert max(-reduced.quant_min, reduced.quant_max) == LARGEST_REDUCED_WEIGHT
    assert 2 * 255 * LARGEST_REDUCED_WEIGHT <= _LARGEST_INT16 < 2 * 255 * widest.quant_max


@pytest.mark.parametrize("preset", ONNXRuntimeQuantizer.PRESETS)
def test_static_and_dynamic_presets_are_right_on_every_processor(preset: str) -> None:
    """Each weight that meets integers is in the reduced range."""
    config = ONNXRuntimeQuantizer.PRESETS[preset]()
    assert config.weight is not None
    if config.mode != "weight_only":
        assert config.weight.quant_max <= LARGEST_REDUCED_WEIGHT


class Image(nn.Module):
    """A residual block as those of MobileNetV2 and EfficientNet-Lite, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.wide = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.narrow = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        x = torch.relu(self.stem(x))
        y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.wide(x))))
        pooled = nn.functional.silu(x + self.narrow(y)).mean((2, 3))
        logits: torch.Tensor = self.head(pooled)
        return logits


@pytest.mark.long
@pytest.mark.parametrize("preset", ["static_int8", "static_int8_per_channel"])
def test_all_of_a_convolutional_model_runs_in_kernels_of_integers(preset: str) -> None:
    """No operator is left in float, and the program computes what was converted."""
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 16, 16),)
    exported = torch.export.export(Image().eval(), inputs)
    prepared = tq.prepare_pt2e(exported, tq.quantizer("onnxruntime", preset=preset))
    tq.calibrate(prepared, [inputs])
    converted = tq.convert_pt2e(prepared)
    program = tq.lower(converted, inputs, target="onnxruntime")
    assert program.ledger is not None
    statuses = {row.node: row.lowered.code for row in program.ledger.rows if row.lowered is not None}
    assert set(statuses.values()) <= {"integer_kernel", "removed"}, statuses
    assert [statuses[name] for name in ("conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "linear")] == [
        "integer_kernel"
    ] * 5
    assert sqnr(converted(*inputs), program.run(*inputs)) > 40
