"""The two systems that quantize: torchquilt, and torchao with ExecuTorch's XNNPACKQuantizer.

Both are asked for the same: int8, one weight scale a channel, activations calibrated or dynamic, each with
the observers that it takes by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch.fx import GraphModule

import torchquilt as tq
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


@attrs.frozen
class System:
    """One of the two: how it prepares, and how it converts."""

    name: str
    prepare: Callable[[GraphModule], GraphModule]
    convert: Callable[[GraphModule], GraphModule]


def torchquilt(*, is_dynamic: bool = False, has_tables: bool = False) -> System:
    """Ours; with the embedding backend first where there are tables to be quantized."""

    def prepare(model: GraphModule) -> GraphModule:
        config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
        xnnpack = XNNPACKQuantizer().set_global(config)
        if not has_tables:
            return tq.prepare_pt2e(model, xnnpack)
        return tq.prepare_pt2e(model, tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack]))

    return System("torchquilt", prepare, tq.convert_pt2e)


def torchao(*, is_dynamic: bool = False) -> System:
    """The other one."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization.pt2e import quantize_pt2e

    def prepare(model: GraphModule) -> GraphModule:
        config = xnnpack_quantizer.get_symmetric_quantization_config(
            is_per_channel=True, is_dynamic=is_dynamic
        )
        quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
        prepared: GraphModule = quantize_pt2e.prepare_pt2e(model, quantizer)
        return prepared

    return System("torchao", prepare, quantize_pt2e.convert_pt2e)


@attrs.frozen
class TrainingSystem:
    """One of the two, for training: how it prepares, converts, and moves between the modes."""

    name: str
    prepare: Callable[[GraphModule], GraphModule]
    convert: Callable[[GraphModule], GraphModule]
    to_evaluation: Callable[[GraphModule], object]


def torchquilt_training() -> TrainingSystem:
    """Ours."""

    def prepare(model: GraphModule) -> GraphModule:
        config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
        return tq.prepare_qat_pt2e(model, XNNPACKQuantizer().set_global(config))

    return TrainingSystem("torchquilt", prepare, tq.convert_pt2e, tq.move_exported_model_to_eval)


def torchao_training() -> TrainingSystem:
    """The other one. Its prepare changes the model that it is given."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e import quantize_pt2e

    def prepare(model: GraphModule) -> GraphModule:
        config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
        quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
        prepared: GraphModule = quantize_pt2e.prepare_qat_pt2e(model, quantizer)
        return prepared

    return TrainingSystem("torchao", prepare, quantize_pt2e.convert_pt2e, pt2e.move_exported_model_to_eval)
