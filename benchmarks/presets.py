"""Size and accuracy of each preset of the ExecuTorch plugins, run on ExecuTorch.

    python benchmarks/presets.py

The model is a text encoder with normally distributed weights: an embedding table, two blocks of attention and
perceptron, and a head that chooses one of 16. It is quantized with each preset of torchquilt-xnnpack, and of
torchquilt-executorch-embedding, lowered, and run. Printed are the size of the program, the signal to noise
ratio of its outputs against the float program's, and how often both choose the same. Needs executorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import executorch.kernels.quantized  # noqa: F401  (registers the quantized kernels with the runtime)
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

import torchquilt as tq
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer, write_kernels
from torchquilt_xnnpack import XNNPACKQuantizer

WORDS, WIDTH, LENGTH, CHOICES = 4096, 256, 32, 16
SAMPLES = 64


class Block(nn.Module):
    """Attention and perceptron, each with a residual and a LayerNorm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend with four heads, then transform."""
        *inputs, out = self.projections
        normed = self.attention_norm(x)
        query, key, value = (p(normed).unflatten(-1, (4, -1)).transpose(1, 2) for p in inputs)
        weights = (query @ key.transpose(2, 3) / 8.0).softmax(-1)
        x = x + out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.perceptron_norm(x))))


class Encoder(nn.Module):
    """Tokens → scores of the choices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, CHOICES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens decides."""
        return self.head(self.blocks(self.embedding(tokens)).mean(1))


def tokens(seed: int) -> torch.Tensor:
    """One sample."""
    return torch.randint(0, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(seed))


def program_of(model: GraphModule) -> bytes:
    """The model as a program for ExecuTorch."""
    exported = torch.export.export(write_kernels(model), (tokens(0),))
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def outputs_of(program: bytes) -> torch.Tensor:
    """What the program returns for each sample."""
    method = Runtime.get().load_program(program).load_method("forward")
    return torch.cat([method.execute((tokens(seed),))[0].clone() for seed in range(SAMPLES)])


def quantized(model: nn.Module, quantizer: object) -> GraphModule:
    """The model, calibrated with samples that it is not measured with."""
    prepared = tq.prepare_pt2e(torch.export.export(model, (tokens(0),)), quantizer)
    return tq.convert_pt2e(tq.calibrate(prepared, [(tokens(seed),) for seed in range(1000, 1016)]))


def quantizers() -> Iterator[tuple[str, Callable[[], object]]]:
    """Every preset by itself, and one composition."""
    for cls in (XNNPACKQuantizer, ExecuTorchEmbeddingQuantizer):
        backend = cls.TABLE.backend if cls.TABLE else ""
        for preset in cls.PRESETS:
            yield f"{backend} {preset}", lambda cls=cls, preset=preset: cls.from_preset(preset)
    yield "int4_group32 and dynamic_int8_weight_int4_group32", lambda: tq.ComposableQuantizer([
        ExecuTorchEmbeddingQuantizer.from_preset("int4_group32"),
        XNNPACKQuantizer.from_preset("dynamic_int8_weight_int4_group32"),
    ])  # fmt: skip


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    model = Encoder().eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.normal_(std=layer.in_features**-0.5)
    program = program_of(torch.export.export(model, (tokens(0),)).module())
    expected = outputs_of(program)
    print("| preset | program kB | SQNR dB | same choice |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| float | {len(program) / 1000:.0f} | – | – |")
    for name, make in quantizers():
        program = program_of(quantized(model, make()))
        found = outputs_of(program)
        ratio = 20 * math.log10(float(expected.norm()) / float((expected - found).norm()))
        same = float((found.argmax(1) == expected.argmax(1)).float().mean())
        print(f"| {name} | {len(program) / 1000:.0f} | {ratio:.1f} | {same:.0%} |", flush=True)


if __name__ == "__main__":
    main()
