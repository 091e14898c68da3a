"""Models to report, and measurements of them that nothing measured: plain forms as they are handed in."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export, normal

SHAPE = (2, 3, 8, 8)


class Block(nn.Module):
    """A residual block with an operator that stays in float: six operators."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of the input and of two convolutions."""
        y = self.norm(self.second(torch.relu(self.first(x))))
        return torch.relu(x + y)


class Residual(nn.Module):
    """Blocks between a convolution and a softmax: four operators beside those of the blocks."""

    def __init__(self, blocks: int, names: tuple[str, ...] = (), channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Module()
        for index in range(blocks):
            name = names[index] if index < len(names) else str(index)
            self.blocks.add_module(name, Block(channels))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        x = self.stem(x)
        for block in self.blocks.children():
            x = block(x)
        return torch.softmax(self.head(x.mean((2, 3))), -1)


@attrs.frozen(eq=False)
class Quantized:
    """A model at each step of the flow."""

    exported: ExportedProgram
    prepared: GraphModule
    converted: GraphModule

    @classmethod
    def of(cls, model: nn.Module, shape: tuple[int, ...] = SHAPE, batches: int = 2) -> Quantized:
        """Quantize a model with XNNPACK, calibrated on random inputs; what none reaches stays in float."""
        exported = export(model, normal(*shape))
        prepared = tq.prepare_pt2e(exported, tq.quantizer("xnnpack", "static_int8_per_channel"))
        with torch.no_grad():
            for seed in range(batches):
                prepared(normal(*shape, seed=seed))
        return cls(exported, prepared, tq.convert_pt2e(prepared, unseen="float"))

    @property
    def ledger(self) -> tq.Ledger:
        """Every decision about it."""
        return tq.ledger_of(self.converted)


def comparison(ledger: tq.Ledger, worst: int = 3) -> dict[str, Any]:
    """A comparison in which each operator has 30 dB, and one has 5 dB."""

    def errors(sqnr: float) -> dict[str, float]:
        return {"sqnr": sqnr, "cosine": 0.99, "mean_error": 0.01, "max_error": 0.5}

    rows = [
        {
            "node": row.node,
            "isolated": errors(5.0 if index == worst else 30.0),
            "accumulated": errors(4.0 if index == worst else 25.0),
            "tensors": [{"name": "output", "sqnr": 31.0, "saturated": 0.25, "unused": 0.5, "to_zero": 0.0}],
            "reason": f"a reason for {row.node}",
            "samples": [[0.1 * step, 0.1 * step + 0.01] for step in range(-10, 10)],
        }
        for index, row in enumerate(ledger.quantized)
    ]
    return {
        "schema": 1,
        "operators": rows,
        "outputs": [{"name": "output_0", "error": errors(21.5)}],
        "batches": 2,
        "uncompared": [{"node": "softmax", "reason": "only the float model has it"}],
    }


def sensitivity(ledger: tq.Ledger) -> dict[str, Any]:
    """Sensitivities: the first module adds ten times the noise of each other."""
    modules: dict[str, list[str]] = {}
    for row in ledger.quantized:
        modules.setdefault(row.module, []).append(row.node)
    groups = [
        {
            "name": name,
            "nodes": nodes,
            "quantizers": ["XNNPACKQuantizer"],
            "macs": 100,
            "noise": 1e-2 if index == 0 else 1e-3,
            "alone": 0.94,
            "left_out": 0.93,
        }
        for index, (name, nodes) in enumerate(modules.items())
    ]
    return {"schema": 1, "groups": groups, "float_metric": 0.95, "quantized_metric": 0.91, "minimize": False}


def search() -> dict[str, Any]:
    """A search with three points, of which the second was chosen."""
    points = [
        {
            "metric": metric,
            "macs_float": macs,
            "bytes": 1000 + macs,
            "choices": [["stem", "float"]] if macs else [],
            "recovery": ["bias_correction"],
            "latency_ms": None,
        }
        for metric, macs in ((0.91, 0), (0.93, 5000), (0.94, 90000))
    ]
    return {
        "schema": 1,
        "frontier": points,
        "best": points[1],
        "float_metric": 0.95,
        "given_metric": 0.91,
        "is_met": True,
        "is_complete": False,
        "evaluations": 40,
    }
