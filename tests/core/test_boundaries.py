"""Boundaries: where a tensor that is quantized in one way is quantized anew, and who does it."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import Fn, RandomModel, export, normal, outputs_of, random_models
from torchquilt.graph.node_values import HELPS
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
NARROW = get_symmetric_quantization_config(act_qmin=-100, act_qmax=90)
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
X = normal(3, 6)


def boundaries(quantizer: object, model: nn.Module, *inputs: torch.Tensor) -> tuple[object, ...]:
    """The boundaries of a model."""
    return tq.explain(export(model, *inputs), quantizer).boundaries


def test_a_tensor_that_is_quantized_anew_is_a_boundary() -> None:
    """It names the producer and the user, how each quantizes it, and that the user requantizes it."""
    first = outputs_of("tanh", name="mine")
    model = Fn(lambda self, x: self.fc(torch.tanh(x)), fc=nn.Linear(6, 6))
    quantizer = tq.ComposableQuantizer([first, XNNPACKQuantizer().set_global(DYNAMIC)])
    (boundary,) = tq.explain(export(model, X), quantizer).boundaries
    assert (boundary.producer, boundary.user) == ("tanh", "linear")
    assert (boundary.made_by, boundary.used_by) == ("mine", "XNNPACKQuantizer")
    assert "per_tensor" in boundary.made_as
    assert "per_token" in boundary.used_as
    assert str(boundary).endswith("by linear")


def test_two_backends_with_one_scale_have_no_boundary() -> None:
    """Nothing is requantized between two that ask for the same integers, whichever quantizer did."""
    model = Fn(lambda self, x: self.two(torch.tanh(x)), two=nn.Linear(6, 6))
    activation = STATIC.input_activation
    assert (
        boundaries(
            tq.ComposableQuantizer(
                [outputs_of("tanh", spec=activation), XNNPACKQuantizer().set_global(STATIC)]
            ),
            model,
            X,
        )
        == ()
    )


def test_a_tensor_that_is_used_in_several_ways_has_a_boundary_for_each() -> None:
    """Two of three users requantize a tensor: those whose scale is not the one that it was made with."""
    parts = {name: nn.Linear(6, 6) for name in ("stem", "same", "narrow", "tokens")}
    model = Fn(lambda m, x: (m.same(h := m.stem(x)), m.narrow(h), m.tokens(h)), **parts)
    quantizer = XNNPACKQuantizer().set_global(STATIC)
    quantizer.set_module_name("narrow", NARROW).set_module_name("tokens", DYNAMIC)
    found = tq.explain(export(model, X), quantizer).boundaries
    assert [(boundary.producer, boundary.user) for boundary in found] == [
        ("linear", "linear_2"),
        ("linear", "linear_3"),
    ]


def test_what_is_left_in_float_between_is_no_boundary() -> None:
    """A tensor that its producer leaves in float is quantized by its user, once."""
    model = Fn(lambda m, x: m.fc(m.emb(x)), emb=nn.Embedding(6, 6), fc=nn.Linear(6, 6))
    quantizer = tq.ComposableQuantizer(
        [ExecuTorchEmbeddingQuantizer(), XNNPACKQuantizer().set_global(STATIC)]
    )
    assert boundaries(quantizer, model, torch.tensor([1, 2])) == ()


def requantized(model: GraphModule) -> set[tuple[str, str]]:
    """The edges of a converted model on which a dequantized tensor is quantized again."""
    found = set()
    for node in model.graph.nodes:
        source = _source(node)
        if source is None:
            continue
        producer = _source(source)
        if producer is not None and not _is(producer, "dequantize"):
            found |= {(_written(producer), _written(user)) for user in node.users}
    return found


def _written(node: Node) -> str:
    """The operator of the model that a node is, or helps to write in another form."""
    name: str = node.meta.get(HELPS, node.name)
    return name


def _source(node: Node) -> Node | None:
    """The tensor that was quantized, of which a dequantize node is."""
    if not _is(node, "dequantize"):
        return None
    quantize = node.args[0]
    return quantize.args[0] if isinstance(quantize, Node) and _is(quantize, ".quantize") else None


def _is(node: object, part: str) -> bool:
    return isinstance(node, Node) and part in str(node.target)


def some(choice: int) -> object:
    """A filter that lets through some of the nodes, whatever they are."""
    return lambda node: zlib.crc32(f"{node.name}{choice}".encode()) % 3 == 0


@pytest.mark.filterwarnings("ignore:Something was asked for")
@settings(max_examples=25)
@given(random_models(), st.integers(0, 7))
def test_the_boundaries_are_where_the_converted_model_requantizes(model: RandomModel, choice: int) -> None:
    """Three backends with different scales: the ledger has each requantized edge, and no other."""
    quantizer = tq.ComposableQuantizer(
        [
            XNNPACKQuantizer().set_global(NARROW).set_filter_function(some(choice)),
            XNNPACKQuantizer().set_global(DYNAMIC).set_filter_function(some(choice + 1)),
            XNNPACKQuantizer().set_global(STATIC),
        ]
    )
    exported = export(model, model.example)
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(model.example,)]))
    found = {(boundary.producer, boundary.user) for boundary in tq.ledger_of(quantized).boundaries}
    assert found == requantized(quantized)
