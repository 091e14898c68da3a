"""From a quantized model to a program for a runtime, with what became of each decision.

``contract`` is what a lowering target has and what a backend gives to it: all that an author of either reads.
``values`` and ``program`` are what a user gets, ``report`` writes that as JSON, ``calling`` checks inputs;
``sources`` finds the program, ledger and backends of a model, ``decisions`` marks what stays in float,
``border`` takes quantize and dequantize off inputs and outputs, ``slots`` says of these what the stored
program does, ``joining`` joins the ledger with what runs where, ``verifying`` compares, and ``rounding``
changes a model's last bits for that; ``flow`` puts these together. Importing this package does not import
torch.
"""

from torchquilt.lowering.contract import (
    Arithmetic,
    Constant,
    Contribution,
    Conversion,
    Kernel,
    Lowered,
    Operation,
    Runner,
    Slot,
    Target,
    TryingTarget,
)
from torchquilt.lowering.decisions import stays_in_float
from torchquilt.lowering.flow import load, lower
from torchquilt.lowering.joining import place_of
from torchquilt.lowering.program import LoweredProgram
from torchquilt.lowering.values import Agreement, Dimension, Leftover, Placed, Port, Ports, Verification

__all__ = [
    "Agreement",
    "Arithmetic",
    "Constant",
    "Contribution",
    "Conversion",
    "Dimension",
    "Kernel",
    "Leftover",
    "Lowered",
    "LoweredProgram",
    "Operation",
    "Placed",
    "Port",
    "Ports",
    "Runner",
    "Slot",
    "Target",
    "TryingTarget",
    "Verification",
    "load",
    "lower",
    "place_of",
    "stays_in_float",
]
