"""The models of the benchmarks: written here, with random weights, so that nothing has to be downloaded.

The convolutional ones follow the papers' tables (ResNet-18: He et al. 2015, arXiv:1512.03385; MobileNetV2:
Sandler et al. 2018, arXiv:1801.04381; EfficientNet: Tan and Le 2019, arXiv:1905.11946), the transformers
those of ViT-B/16 (Dosovitskiy et al. 2020, arXiv:2010.11929) and BERT-base (Devlin et al. 2018,
arXiv:1810.04805).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import nn
from torch.nn import functional

#: (expansion, channels, blocks, stride of the first), table 2 of the paper.
_MOBILE_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
#: (expansion, channels, blocks, stride of the first, size of the kernel), table 1 of the paper.
_EFFICIENT_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def _settled(model: nn.Module) -> nn.Module:
    """The model with the statistics of some images in its BatchNorms, as training leaves them.

    With those that they begin with the signal fades from layer to layer, and what comes out is the last bias.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches that are seen
    with torch.no_grad():
        model.train()(torch.cat([_image(seed)[0] for seed in range(50, 54)]))
    return model.eval()


def _convolution(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
    )


class BasicBlock(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inside, outside, 3, stride)
        self.second = _convolution(outside, outside, 3)
        same = inside == outside and stride == 1
        self.around = nn.Identity() if same else _convolution(inside, outside, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to images."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.around(x))


def resnet18() -> nn.Module:
    """ResNet-18 for images of 224 × 224."""
    layers: list[nn.Module] = [_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for outside in (64, 128, 256, 512):
        layers += [
            BasicBlock(inside, outside, 1 if outside == 64 else 2),
            BasicBlock(outside, outside, 1),
        ]
        inside = outside
    return _settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; with a way around where the shape is kept."""

    def __init__(self, inside: int, outside: int, stride: int, expansion: int, size: int = 3) -> None:
        super().__init__()
        hidden = inside * expansion
        widen = [] if expansion == 1 else [_convolution(inside, hidden, 1), nn.ReLU6()]
        filters = [_convolution(hidden, hidden, size, stride, hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*widen, *filters, _convolution(hidden, outside, 1))
        self.is_residual = inside == outside and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to images."""
        made: torch.Tensor = self.layers(x)
        return x + made if self.is_residual else made


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1 for images of 224 × 224."""
    layers: list[nn.Module] = [_convolution(3, 32, 3, 2), nn.ReLU6()]
    inside = 32
    for expansion, outside, blocks, stride in _MOBILE_STAGES:
        for number in range(blocks):
            layers.append(InvertedResidual(inside, outside, stride if number == 0 else 1, expansion))
            inside = outside
    layers += [_convolution(inside, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return _settled(nn.Sequential(*layers, nn.Linear(1280, 1000)))


def efficientnet_lite() -> nn.Module:
    """EfficientNet-Lite0 for images of 224 × 224: EfficientNet-B0 without squeeze and excitation."""
    layers: list[nn.Module] = [_convolution(3, 32, 3, 2), nn.ReLU6()]
    inside = 32
    for expansion, outside, blocks, stride, size in _EFFICIENT_STAGES:
        for number in range(blocks):
            layers.append(InvertedResidual(inside, outside, stride if number == 0 else 1, expansion, size))
            inside = outside
    layers += [_convolution(inside, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return _settled(nn.Sequential(*layers, nn.Linear(1280, 1000)))


class Layer(nn.Module):
    """One layer of a transformer: attention and two linears, each with a way around.

    Args:
        width: of a token.
        heads: of the attention.
        norm_first: normalize before (ViT) instead of behind (BERT).
    """

    def __init__(self, width: int, heads: int, *, norm_first: bool) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mixed = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList((nn.LayerNorm(width), nn.LayerNorm(width)))

    def attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Tokens (batch, length, width) to tokens."""
        parts = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.query, self.key, self.value))
        query, key, value = (part.transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed: torch.Tensor = self.mixed(found.transpose(1, 2).flatten(-2))
        return mixed

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (batch, length, width) to tokens."""
        if self.norm_first:
            x = x + self.attend(self.norms[0](x), mask)
            return x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))
        x = self.norms[0](x + self.attend(x, mask))
        done: torch.Tensor = self.norms[1](x + self.narrow(functional.gelu(self.wide(x))))
        return done


class VisionTransformer(nn.Module):
    """ViT-B/16 for images of 224 × 224."""

    def __init__(self, width: int = 768, layers: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, width // 64, norm_first=True) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """An image (1, 3, 224, 224) to logits (1, 1000)."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token, patches], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.head(self.norm(x)[:, 0])
        return logits


class TextEncoder(nn.Module):
    """BERT-base, without its pooler, for tokens and a mask that says which of them are there."""

    def __init__(self, width: int = 768, layers: int = 12, words: int = 30522) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, width // 64, norm_first=False) for _ in range(layers))

    def forward(self, tokens: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, length), int64, and 1 or 0 for each, to vectors (batch, length, width)."""
        mask = (1.0 - there[:, None, None, :].float()) * torch.finfo(torch.float32).min
        positions = torch.arange(tokens.shape[1])
        x = self.norm(self.words(tokens) + self.positions(positions))
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Residual(nn.Module):
    """Ten nodes: two convolutions with weight and bias, two ReLUs, a dropout and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input, and what the convolutions make of it."""
        return torch.relu(self.second(self.dropout(torch.relu(self.first(x)))) + x)


def chain(blocks: int) -> nn.Module:
    """Small residual blocks, one behind the other: hardly any arithmetic, so all of it is overhead."""
    return nn.Sequential(*(Residual() for _ in range(blocks)))


@attrs.frozen
class Subject:
    """A model to be measured, and data for it.

    Args:
        name: as it is printed.
        make: the module.
        batch: inputs for one call, drawn with a seed.
        blocks: of a chain; None for a real model.
        is_dynamic: whether it is quantized dynamically where it is lowered, as one would a transformer.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], tuple[torch.Tensor, ...]]
    blocks: int | None = None
    is_dynamic: bool = False

    def module(self, seed: int = 0) -> nn.Module:
        """The module in evaluation mode, with random weights that a seed determines."""
        torch.manual_seed(seed)
        return self.make().eval().requires_grad_(False)


def _image(seed: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed)),)


def _text(seed: int) -> tuple[torch.Tensor, ...]:
    tokens = torch.randint(30522, (1, 128), generator=torch.Generator().manual_seed(seed))
    there = torch.ones(1, 128, dtype=torch.int64)
    there[:, 96 + seed % 32 :] = 0
    return tokens, there


def _small_image(seed: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(seed)),)


EFFICIENTNET = Subject("EfficientNet-Lite0", efficientnet_lite, _image)
MODELS = (
    Subject("ResNet-18", resnet18, _image),
    Subject("MobileNetV2", mobilenet_v2, _image),
    Subject("ViT-B/16", VisionTransformer, _image, is_dynamic=True),
    Subject("BERT-base, 128 tokens", TextEncoder, _text, is_dynamic=True),
)


def chain_of(blocks: int) -> Subject:
    """A chain as a subject."""
    return Subject(f"chain of {blocks:,}", lambda: chain(blocks), _small_image, blocks)
