"""Lowering: from a quantized model to a program for a runtime, with the lowering status of each operator.

``target`` is the contract between a lowering target and the backends that contribute to it. ``program_facts``
and ``program`` are what a user gets, ``report`` writes that as JSON, ``calling`` checks inputs.
``quantized_source`` finds the program, ledger and backends of a model, ``target_choice`` the target that
these backends name, ``region_inlining`` writes regions into the graph around them, ``float_marks`` marks
operators that stay in float, ``contributed`` runs the passes of backends for targets without delegates,
``pool_divisors`` writes averages in other operators, ``program_io`` takes quantize and dequantize off inputs
and outputs, ``stored_io`` reads these off the stored program, ``stored_runner`` is the base of what runs one,
``claims`` tells what no row promises for the target, ``ledger_join`` joins the ledger with where each
operator runs, ``verification`` compares outputs, ``profile`` joins times; ``lower_program`` runs these steps
in order.
Importing this package does not import torch.
"""

from torchquilt.lowering.float_marks import stays_in_float
from torchquilt.lowering.ledger_join import node_in_words
from torchquilt.lowering.lower_program import load, lower
from torchquilt.lowering.pool_divisors import without_pool_divisors
from torchquilt.lowering.profile import Profile, ProfiledKernel
from torchquilt.lowering.program import LoweredProgram
from torchquilt.lowering.program_facts import (
    Agreement,
    Dimension,
    Leftover,
    LoweredOperation,
    Port,
    Ports,
    Verification,
)
from torchquilt.lowering.stored_runner import StoredFacts, StoredRunner
from torchquilt.lowering.target import (
    Arithmetic,
    Constant,
    Contribution,
    Conversion,
    DividedTarget,
    Kernel,
    KernelTime,
    LabellingTarget,
    Lowered,
    ObservableRunner,
    Operation,
    ProfilingRunner,
    Runner,
    RunTimes,
    Slot,
    Target,
    TryingTarget,
)

__all__ = [
    "Agreement",
    "Arithmetic",
    "Constant",
    "Contribution",
    "Conversion",
    "Dimension",
    "DividedTarget",
    "Kernel",
    "KernelTime",
    "LabellingTarget",
    "Leftover",
    "Lowered",
    "LoweredProgram",
    "LoweredOperation",
    "ObservableRunner",
    "Operation",
    "Port",
    "Ports",
    "Profile",
    "ProfiledKernel",
    "ProfilingRunner",
    "RunTimes",
    "Runner",
    "Slot",
    "StoredFacts",
    "StoredRunner",
    "Target",
    "TryingTarget",
    "Verification",
    "load",
    "lower",
    "node_in_words",
    "stays_in_float",
    "without_pool_divisors",
]
