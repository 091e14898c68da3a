"""Small models that the tests of the target quantize and lower."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def xnnpack(*, is_dynamic: bool = False) -> XNNPACKQuantizer:
    """XNNPACK's quantizer, asked for int8 everywhere."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    return XNNPACKQuantizer().set_global(config)


def composed(*, is_dynamic: bool = False) -> tq.ComposableQuantizer:
    """Embeddings as bytes, and the rest for XNNPACK."""
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack(is_dynamic=is_dynamic)])


def converted(module: nn.Module, quantizer: Any, *inputs: Any, **options: Any) -> GraphModule:
    """Export, prepare, calibrate with the very inputs, convert; options are those of export."""
    torch.manual_seed(0)
    kwargs = options.get("kwargs") or {}
    exported = export(module, *inputs, **options)
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
    prepared(*inputs, **kwargs)
    return tq.convert_pt2e(prepared)


class Encoder(nn.Module):
    """An embedding, two layers, a head, and a softmax and a sum that stay in float."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores that add up along the last dimension."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = self.drop(torch.relu(layer(hidden)))
        return torch.softmax(self.head(hidden), -1).cumsum(-1)


class Counter(nn.Module):
    """A linear layer whose result is added to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half of the sum of all calls so far."""
        self.total += self.fc(x)
        return self.total * 0.5
