"""The quantizer of an accelerator that does not exist: what a table says is all that there is to it."""

from __future__ import annotations

from torchquilt import (
    AllowedSpec,
    OperatorPattern,
    PatternQuantizer,
    QuantizationConfig,
    QuantizationSpec,
    SupportRow,
    SupportTable,
)
from torchquilt.backend import CONSTANT_WEIGHT, FLOAT32
from torchquilt.backend import operators as ops

_ACTIVATION = AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
_ACTIVATIONS = {"input_activation": (_ACTIVATION,), "output_activation": (_ACTIVATION,)}
_WEIGHT = AllowedSpec("int8", -127, 127, ("per_axis",), symmetric=True, ch_axis=0)


def _row(*operators: ops.Operator) -> SupportRow:
    """One row: the operators run as one, with or without a weight."""
    has_weight = "weight" in operators[0].roles
    specs = {**_ACTIVATIONS, "weight": (_WEIGHT,)} if has_weight else _ACTIVATIONS
    constraints = (FLOAT32, CONSTANT_WEIGHT) if has_weight else (FLOAT32,)
    return SupportRow(OperatorPattern.of(*operators), specs, constraints=constraints)


SUPPORT = SupportTable(
    "digits_accelerator",
    (
        _row(ops.CONV2D, ops.RELU),
        _row(ops.CONV2D),
        _row(ops.ADD, ops.RELU),
        _row(ops.LINEAR),
    ),
)


def config(bits: int) -> QuantizationConfig:
    """Weights with a scale for each output channel and activations with one for all, of so many bits."""
    largest = 2 ** (bits - 1) - 1
    activation = QuantizationSpec("int8", -largest - 1, largest)
    weight = QuantizationSpec("int8", -largest, largest, "per_axis", ch_axis=0, symmetric=True)
    return QuantizationConfig(activation, activation, weight)


def quantizer(bits: int) -> PatternQuantizer:
    """The quantizer for the whole network, with 8 or 4 bits."""
    return PatternQuantizer(SUPPORT).set_global(config(bits))
