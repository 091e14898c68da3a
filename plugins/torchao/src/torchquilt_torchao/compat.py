"""Names of ``torchao.quantization.pt2e``, for code that changes the line of its imports and no more.

Specs, annotations, observers and base classes are torchao's own, since quantizers are written with them. The
steps of the flow are torchquilt's. The page "Migrating from torchao" has the table of what differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import (
    DerivedObserverOrFakeQuantize,
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    ObserverOrFakeQuantize,
    PartialWrapper,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    OperatorConfig,
    OperatorPatternType,
    QuantizationAnnotation,
    QuantizationConfig,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
    annotate_input_qspec_map,
    annotate_output_qspec,
    get_bias_qspec,
    get_input_act_qspec,
    get_module_name_filter,
    get_output_act_qspec,
    get_weight_qspec,
    is_valid_annotation,
)
from torchao.quantization.pt2e.quantizer.embedding_quantizer import EmbeddingQuantizer

import torchquilt as tq
from torchquilt import (
    ComposableQuantizer,
    convert_pt2e,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from torchquilt_torchao.foreign_quantizer import foreign

__all__ = [
    "ComposableQuantizer",
    "DerivedObserverOrFakeQuantize",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "EmbeddingQuantizer",
    "FakeQuantize",
    "FixedQParamsFakeQuantize",
    "FixedQParamsObserver",
    "FixedQParamsQuantizationSpec",
    "FusedMovingAvgObsFakeQuantize",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
    "ObserverOrFakeQuantize",
    "OperatorConfig",
    "OperatorPatternType",
    "PartialWrapper",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "QuantizationAnnotation",
    "QuantizationConfig",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "allow_exported_model_train_eval",
    "annotate_input_qspec_map",
    "annotate_output_qspec",
    "convert_pt2e",
    "get_bias_qspec",
    "get_input_act_qspec",
    "get_module_name_filter",
    "get_output_act_qspec",
    "get_weight_qspec",
    "is_valid_annotation",
    "move_exported_model_to_eval",
    "move_exported_model_to_train",
    "prepare_pt2e",
    "prepare_qat_pt2e",
]


def prepare_pt2e(model: GraphModule, quantizer: Any) -> GraphModule:
    """Prepare for calibration, as :func:`torchquilt.prepare_pt2e`; a model of which nothing is quantized too.

    Each activation gets the observer of torchquilt that comes nearest to the one that its spec names.

    Args:
        model: the ``.module()`` of an exported program. It is left as it was.
        quantizer: of torchao's protocol, or of torchquilt.
    """
    return tq.prepare_pt2e(model, _alike(quantizer), strict=False)


def prepare_qat_pt2e(model: GraphModule, quantizer: Any) -> GraphModule:
    """Prepare for training, as :func:`torchquilt.prepare_qat_pt2e`.

    Args:
        model: the ``.module()`` of an exported program. It is left as it was.
        quantizer: of torchao's protocol, or of torchquilt.
    """
    return tq.prepare_qat_pt2e(model, quantizer, strict=False)


def allow_exported_model_train_eval(model: GraphModule) -> GraphModule:
    """Let ``train()`` and ``eval()`` of an exported model switch it; changes and returns ``model``."""

    def train(mode: bool = True) -> torch.nn.Module:
        return move_exported_model_to_train(model) if mode else move_exported_model_to_eval(model)

    def evaluate() -> torch.nn.Module:
        return train(False)

    model.train = train  # type: ignore[method-assign, assignment]
    model.eval = evaluate  # type: ignore[method-assign, assignment]
    return model


def _alike(quantizer: Any) -> Any:
    """The quantizer, whose specs choose observers if it is one of torchao."""
    if isinstance(quantizer, tq.ComposableQuantizer):
        return tq.ComposableQuantizer([_alike(each) for each in quantizer.quantizers])
    subject = getattr(quantizer, "subject", quantizer)
    return foreign(subject, observers="alike") if isinstance(subject, Quantizer) else quantizer
