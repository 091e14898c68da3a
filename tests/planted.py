"""Models with planted faults, each of which one recovery pass is for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from strategies import normal, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config(is_per_channel=True)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights of its own, which keep the size of the signal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=generator) / 4)
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            elif isinstance(weight, nn.Parameter) and weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / weight[0].numel()) ** 0.5)
                if getattr(module, "bias", None) is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 10)
    return model.eval()


def static() -> XNNPACKQuantizer:
    """XNNPACK's static 8 bits with a scale for each channel of a weight."""
    return XNNPACKQuantizer().set_global(STATIC)


def converted(model: ExportedProgram | GraphModule, batches: list[tuple[Any, ...]]) -> GraphModule:
    """Prepare for XNNPACK, calibrate and convert."""
    return tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(model, static()), batches))


def noise(reference: nn.Module, found: Any, batches: list[tuple[Any, ...]]) -> float:
    """Signal to noise in dB over all batches."""
    with torch.no_grad():
        pairs = [(reference(*batch), found(*batch)) for batch in batches]
    return sqnr(torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs]))


class Block(nn.Module):
    """Attention and a perceptron behind norms."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        rows, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).reshape(rows, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.before_perceptron(x))))


class VisionTransformer(nn.Module):
    """A small vision transformer, whose class token has a standard deviation of its own.

    Args:
        blocks: their number.
        class_token: standard deviation of the class token; that of the patches is 1.
        has_positions: whether positions are added, of the same standard deviation.
        strength: of what the blocks add to the tokens.
    """

    def __init__(
        self, blocks: int = 2, class_token: float = 0.02, has_positions: bool = True, strength: float = 1.0
    ) -> None:
        super().__init__()
        width = 64
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.class_token = nn.Parameter(normal(1, 1, width, seed=1) * class_token)
        self.positions = nn.Parameter(normal(1, 17, width, seed=2) * class_token) if has_positions else None
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 32)
        seeded(self)
        with torch.no_grad():
            self.patches.weight.mul_(0.5**0.5)
            for block in self.blocks:
                for linear in (block.proj, block.down):
                    linear.weight.mul_(strength)
                    linear.bias.mul_(strength)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores, from the class token."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        if self.positions is not None:
            tokens = tokens + self.positions
        return self.head(self.norm(self.blocks(tokens)[:, 0]))
