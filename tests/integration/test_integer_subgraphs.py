"""Integers and booleans in a model come through untouched: indices, positions, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import INT8, ByFunction, Fn, annotated, calls, export, normal, prepare, quantize
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def everything(**asked: bool) -> tq.ComposableQuantizer:
    """Both backends, asked for everywhere."""
    config = get_symmetric_quantization_config(is_per_channel=True, **asked)
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), XNNPACKQuantizer().set_global(config)])


def integer_nodes(model: GraphModule) -> list[str]:
    """Nodes that return one tensor that is not floating point."""
    return [
        node.format_node()
        for node in model.graph.nodes
        if isinstance(value := node.meta.get("val"), torch.Tensor) and not value.is_floating_point()
    ]


def computed_index(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Rows picked by an index that is computed with an addition."""
    index = torch.arange(x.shape[0]) + 0
    return self.fc(x)[index] + x[index]


def flipped_index(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Integer add, mul, relu, clamp, cat, view and slice on the way to an index."""
    index = torch.arange(x.shape[0]) * 2 + 1
    index = torch.cat([index, index]).view(2, -1)[0]
    index = torch.relu(torch.clamp(index, 0, x.shape[0] - 1))
    return self.fc(x)[index]


def bool_mask(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A boolean mask with masked_fill."""
    return self.fc(x).masked_fill(x > 0.5, 0.0)


def int_mask(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A mask of ones and zeros, multiplied in integers and then with floats."""
    mask = (x > 0).int() * (x < 1).int()
    return self.fc(x) * mask


def where(self: Any, x: torch.Tensor) -> torch.Tensor:
    """torch.where on a comparison of computed positions."""
    position = torch.arange(x.shape[-1]) + torch.arange(x.shape[-1])
    return torch.where(position > 3, self.fc(x), x)


def argmax(self: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer outputs beside float ones."""
    y = self.fc(x)
    best = x.argmax(-1)
    return y, best + best


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    "function", [computed_index, flipped_index, bool_mask, int_mask, where, argmax], ids=lambda f: f.__name__
)
def test_integers_come_through_untouched(function: Callable[..., Any], is_dynamic: bool) -> None:
    """No integer node is annotated or observed, each is still there, and the result is near the float one."""
    x = normal(4, 6)
    model = Fn(function, fc=nn.Linear(6, 6))
    before = integer_nodes(export(model, x).module())
    prepared = prepare(model, everything(is_dynamic=is_dynamic), x)
    for name in annotated(prepared):
        assert not any(line.startswith(f"%{name} ") for line in before)
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.target.startswith("quantization_point"):
            assert node.meta["val"].is_floating_point()
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    assert [line for line in integer_nodes(quantized) if line in before] == before
    assert calls(quantized, "dequantize"), "the linear is quantized all the same"
    got, want = quantized(x), model(x)
    got, want = (got, want) if isinstance(want, tuple) else ((got,), (want,))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        if other.is_floating_point():
            assert torch.allclose(one, other, atol=0.1)
        else:
            assert torch.equal(one, other)


class Positions(nn.Module):
    """Token and position embeddings, with position ids from a buffer or computed, and an attention mask."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.positions = nn.Embedding(12, 8)
        self.fc = nn.Linear(8, 8)
        self.computed = computed
        self.register_buffer("position_ids", torch.arange(12).expand(1, -1))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores with masked positions left out."""
        n = ids.shape[1]
        positions = torch.arange(n) + 0 if self.computed else self.position_ids[:, :n]
        h = self.fc(self.tokens(ids) + self.positions(positions))
        extended = (1.0 - mask[:, None, :].float()) * torch.finfo(torch.float32).min
        return torch.softmax(h @ h.transpose(1, 2) + extended, -1)


@pytest.mark.parametrize("computed", [False, True], ids=["a buffer", "computed"])
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_position_ids_and_masks(computed: bool, is_dynamic: bool) -> None:
    """Masked scores stay masked exactly, and the others stay near those of the float model."""
    torch.manual_seed(0)
    model = Positions(computed).eval()
    ids = torch.randint(0, 20, (2, 6))
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    quantized = quantize(model, everything(is_dynamic=is_dynamic), ids, mask)
    got, want = quantized(ids, mask), model(ids, mask)
    assert bool((got[1, :, 4:] == 0).all())
    assert torch.allclose(got, want, atol=0.05)
    if is_dynamic and not computed:  # where the sum is static, the rows of the positions are stored instead
        assert torch.equal(quantized.state_dict()["position_ids"], model.position_ids)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_the_ids_of_an_embedding_may_be_of_either_type(ids_dtype: torch.dtype) -> None:
    """A quantized embedding takes int32 and int64 indices, as the float one does."""
    ids = torch.tensor([[0, 3, 19]], dtype=ids_dtype)
    model = Fn(lambda self, ids: self.emb(ids), emb=nn.Embedding(20, 8))
    quantized = quantize(model, everything(), ids)
    assert torch.allclose(quantized(ids), model(ids), atol=0.02)


def test_an_integer_tensor_that_is_annotated_is_refused() -> None:
    """A quantizer that asks for an integer tensor is told which one, at which node."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "add" not in str(node.target):
            return None
        return tq.QuantizationAnnotation({}, INT8, quantizer="acme")

    model = Fn(lambda _, x: x[torch.arange(3) + 0])
    with pytest.raises(tq.AnnotationError, match="floating point") as caught:
        prepare(model, ByFunction(decide), normal(4, 4))
    assert caught.value.node == "add"
    assert caught.value.quantizer == "acme"


def test_a_rule_about_add_leaves_integer_adds_alone() -> None:
    """set_object_type(operator) takes the float adds of a model and none of its integer adds."""

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(4) + torch.arange(4)
        return (x + x)[index % 4]

    quantizer = XNNPACKQuantizer().set_object_type(torch.add, get_symmetric_quantization_config())
    prepared = prepare(Fn(forward), quantizer, normal(4, 4))
    float_adds = [n.name for n in calls(prepared, "aten.add") if n.meta["val"].is_floating_point()]
    assert len(calls(prepared, "aten.add")) == 2
    assert list(annotated(prepared)) == float_adds
