"""The range of integers that each quantized tensor got, read off the quantized model."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import attrs
import torch
from torch.fx import Node

from torchquilt.accuracy.report.subject import Subject
from torchquilt.graph.qdq import QDQ, dequantize_of, is_quantize, quantize_of
from torchquilt.spec.dtypes import dtype_name


@attrs.frozen
class Range:
    """The values that a group of tensors can take.

    Args:
        low, high: the smallest and the largest, over all sets of parameters; None where they are found for
            each input.
        step: the largest scale; None likewise.
        text: dtype, integers and parameters, in words.
    """

    low: float | None
    high: float | None
    step: float | None
    text: str


def ranges_of(subject: Subject) -> dict[int, Range]:
    """Number of a group of tensors, as the ledger has it → the range of the group."""
    read: defaultdict[str, list[QDQ]] = defaultdict(list)
    made: defaultdict[str, list[QDQ]] = defaultdict(list)
    rows = {row.node: row for row in subject.ledger.rows}
    for _, node, row in subject.calls:
        if row is not None:
            read[row.node] += filter(None, map(dequantize_of, node.all_input_nodes))
            made[row.node] += filter(None, map(quantize_of, filter(is_quantize, node.users)))
    found: dict[int, Range] = {}
    for name, row in rows.items():
        inputs = [tensor for tensor in row.tensors if tensor.edge != "output"]
        # Both are in the order of the operator's arguments. An operator that was rewritten meanwhile may
        # read others, of which nothing is told then.
        pairs = [*zip(inputs, read[name], strict=False)] if len(inputs) == len(read[name]) else []
        outputs = [tensor for tensor in row.tensors if tensor.edge == "output"]
        pairs += zip(outputs, made[name], strict=False)
        for tensor, conversion in pairs:
            if tensor.group not in found:
                found[tensor.group] = _range_of(conversion, subject)
    return found


def _range_of(conversion: QDQ, subject: Subject) -> Range:
    integers = f"{dtype_name(conversion.dtype)} [{conversion.quant_min}, {conversion.quant_max}]"
    scale, zero = (_values(part, subject) for part in (conversion.scale, conversion.zero_point))
    if scale is None or zero is None or not len(scale):
        return Range(None, None, None, f"{integers}, found for each input")
    ends = [(end - zero.double()) * scale.double() for end in (conversion.quant_min, conversion.quant_max)]
    low, high = float(ends[0].min()), float(ends[1].max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return Range(None, None, None, f"{integers}, with a range that is not finite")
    if len(scale) == 1:
        told = f"scale {float(scale[0]):.6g}, zero point {float(zero[0]):g}"
    else:
        told = f"{len(scale):,} scales from {float(scale.min()):.3g} to {float(scale.max()):.3g}"
    return Range(low, high, float(scale.max()), f"{integers}, {told}")


def _values(parameter: Any, subject: Subject) -> torch.Tensor | None:
    """A parameter as a flat tensor; None for what the program computes."""
    if isinstance(parameter, (int, float)):
        return torch.tensor([float(parameter)])
    stored = subject.stored(parameter) if isinstance(parameter, Node) else None
    return None if stored is None else stored.detach().flatten().cpu()
