"""The quantized side: 4-bit weights from two plugins, rounded to the nearest, and by GPTQ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.nn.functional import cross_entropy

import torchquilt as tq
from network import CachedDecoder, Decoder
from text import LENGTH

GPTQ = "4 bits, GPTQ"
NEAREST = "4 bits, nearest"
ROUNDED_WITH = 64
"""Sequences of the training set that GPTQ sees."""
ADDED = {"tokens": Dim("tokens", min=1, max=LENGTH)}


def quantizer() -> tq.ComposableQuantizer:
    """4-bit rows for the lookup; 4-bit weights, and activations of 8 bits as they come, for the linears.

    A scale is for 32 weights. The table is read by both, so it is stored twice, each as its kernel reads it.
    """
    return tq.ComposableQuantizer(
        [
            tq.quantizer("executorch_embedding", "int4_group32"),
            tq.quantizer("xnnpack", "dynamic_int8_weight_int4_group32"),
        ]
    )


def inputs_of(sequence: Tensor) -> tuple[Tensor, Tensor]:
    """A sequence as the cached decoder takes it, from the first position on."""
    return sequence[None], torch.arange(len(sequence))


def export(decoder: Decoder) -> ExportedProgram:
    """The decoder with its cache, for any number of tokens a call."""
    shapes = ({1: ADDED["tokens"]}, {0: ADDED["tokens"]})
    example = inputs_of(torch.arange(8))
    return torch.export.export(CachedDecoder(decoder).eval(), example, dynamic_shapes=shapes)


def quantized(exported: ExportedProgram, sequences: Tensor) -> Iterator[tuple[str, GraphModule]]:
    """Each model of 4 bits, by its name."""
    prepared = tq.prepare_pt2e(exported, quantizer())
    yield NEAREST, tq.convert_pt2e(prepared)
    batches = [inputs_of(sequence[:-1]) for sequence in sequences[:ROUNDED_WITH]]
    yield GPTQ, tq.convert_pt2e(tq.recovery.round_weights(prepared, batches))


def perplexity(model: Callable[..., Any], sequences: Iterable[Tensor]) -> float:
    """Exponential of the mean negative log-likelihood of each token after those before it."""
    losses = []
    with torch.no_grad():
        for sequence in sequences:
            scores = model(*inputs_of(sequence[:-1]))[0]
            losses.append(cross_entropy(scores, sequence[1:], reduction="none"))
    return float(torch.cat(losses).mean().exp())
