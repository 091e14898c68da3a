"""Steps that several test files take with observers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantized_decomposed operators)

import torchquilt as tq
from torchquilt.observers import Observer, QParams

OPS = torch.ops.quantized_decomposed
INT8 = tq.QuantizationSpec("int8")
PER_ROW = tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=0)
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
#: So many values are all read by a histogram.
SMALL = 99_999


def observed(
    kind: Callable[[tq.QuantizationSpec], Observer], *values: torch.Tensor, spec: tq.QuantizationSpec = INT8
) -> Observer:
    """An observer that saw these tensors."""
    observer = kind(spec)
    for value in values:
        observer.update(value)
    return observer


def round_trip(x: torch.Tensor, found: QParams, spec: tq.QuantizationSpec) -> torch.Tensor:
    """Quantize and dequantize with torch's own operators."""
    limits = (spec.quant_min, spec.quant_max, spec.dtype)
    if spec.ch_axis is not None:
        arguments = (found.scale, found.zero_point, spec.ch_axis, *limits)
        return OPS.dequantize_per_channel(OPS.quantize_per_channel(x, *arguments), *arguments)
    arguments = (float(found.scale), int(found.zero_point), *limits)
    return OPS.dequantize_per_tensor(OPS.quantize_per_tensor(x, *arguments), *arguments)


def squared_error(x: torch.Tensor, observer: Observer) -> float:
    """Squared error of quantization with an observer's parameters."""
    return float((round_trip(x, observer.qparams(), observer.spec) - x).double().square().sum())


def same_state(one: Observer, other: Observer) -> bool:
    """Equal to the last bit, kinds and shapes included."""
    left, right = one.state(), other.state()
    return list(left) == list(right) and all(_same(left[key], right[key]) for key in left)


def _same(left: Any, right: Any) -> bool:
    if not isinstance(left, torch.Tensor):
        return type(left) is type(right) and left == right
    pair = [x.view(torch.int32) if x.is_floating_point() else x for x in (left, right)]
    return left.dtype is right.dtype and torch.equal(*pair)
