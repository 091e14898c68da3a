"""Weights that are used more than once: each user is right, and the integers are stored once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import Fn, annotated, calls, export, normal, prepare, quantize, sqnr
from torchquilt.backend import operators
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


def stored(model: GraphModule, *dtypes: torch.dtype) -> dict[str, torch.Tensor]:
    """The stored tensors of these types with two dimensions or more (weights), each storage once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.dtype in dtypes and tensor.dim() >= 2:
            found.setdefault(tensor.data_ptr(), (name, tensor))
    return dict(found.values())


modes = pytest.mark.parametrize(
    "asked",
    [{}, {"is_per_channel": True}, {"is_per_channel": True, "is_dynamic": True}],
    ids=["static", "static per channel", "dynamic per channel"],
)
exports = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])


class ThreeCalls(nn.Module):
    """One linear called three times, once under a second name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 8)
        self.again = self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """fc(fc(x)) + fc(x)."""
        return self.fc(torch.tanh(self.fc(x))) + self.again(x)


@modes
@exports
def test_one_linear_called_three_times(asked: dict[str, bool], strict: bool) -> None:
    """All three calls are quantized from one integer weight, and no float weight is left."""
    x = normal(4, 8)
    model = ThreeCalls().eval()
    exported = export(model, x, strict=strict)
    prepared = tq.prepare_pt2e(exported, xnnpack(**asked), activation_observer="minmax")
    assert sum("linear" in name for name in annotated(prepared)) == 3
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    assert len(stored(quantized, torch.int8)) == 1
    assert not stored(quantized, torch.float32)
    weights = {call.args[1].args[0].target for call in calls(quantized, "linear")}
    assert len(weights) == 1
    assert sqnr(model(x), quantized(x)) > 30


@exports
def test_a_rule_by_name_takes_each_call_of_the_module(strict: bool) -> None:
    """set_module_name takes every call of a module that is called twice."""
    x = normal(4, 8)
    model = Fn(lambda self, x: self.fc(self.fc(x)), fc=nn.Linear(8, 8))
    quantizer = XNNPACKQuantizer().set_module_name("fc", get_symmetric_quantization_config())
    prepared = tq.prepare_pt2e(export(model, x, strict=strict), quantizer)
    assert list(annotated(prepared)) == ["linear", "linear_1"]


def test_one_call_of_three_can_stay_in_float() -> None:
    """A call that is left out reads the float weight, which stays for it, and the others the integers."""
    x = normal(4, 8)
    model = ThreeCalls().eval()
    quantizer = xnnpack(is_dynamic=True).set_filter_function(lambda node: node.name != "linear_1")
    quantized = quantize(model, quantizer, x)
    sources = [call.args[1].op for call in calls(quantized, "linear")]
    assert sources == ["call_function", "get_attr", "call_function"]
    assert len(stored(quantized, torch.int8)) == 1
    assert len(stored(quantized, torch.float32)) == 1
    assert torch.equal(next(iter(stored(quantized, torch.float32).values())), model.fc.weight)


class Tied(nn.Module):
    """A language model in small: the embedding table is also the output projection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(32, 32)
        self.body = nn.Linear(32, 32)
        self.head = nn.Linear(32, 32, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores of each word at each position."""
        return self.head(torch.tanh(self.body(self.embedding(ids))))


def composed(asked: dict[str, bool], backwards: bool = False) -> tq.ComposableQuantizer:
    """The embedding plugin and XNNPACK, in either order."""
    both = [ExecuTorchEmbeddingQuantizer(), xnnpack(**asked)]
    return tq.ComposableQuantizer(both[::-1] if backwards else both)


@modes
@exports
@pytest.mark.parametrize("backwards", [False, True], ids=["embedding first", "xnnpack first"])
def test_an_embedding_tied_to_the_output_projection(
    asked: dict[str, bool], strict: bool, backwards: bool
) -> None:
    """Both users of the table are quantized, each in its own way, and no float copy of it stays."""
    ids = torch.randint(0, 32, (2, 5), generator=torch.Generator().manual_seed(1))
    model = Tied().eval()
    prepared = tq.prepare_pt2e(
        export(model, ids, strict=strict), composed(asked, backwards), activation_observer="minmax"
    )
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(ids,)]))
    table, head = calls(quantized, "embedding")[0].args[0], calls(quantized, "linear")[-1].args[1]
    assert quantized.get_buffer(table.args[0].target).dtype is torch.uint8
    assert quantized.get_buffer(head.args[0].target).dtype is torch.int8
    assert not stored(quantized, torch.float32)
    assert sqnr(model(ids), quantized(ids)) > 25


@pytest.mark.parametrize(
    ("quantizer", "float_user"),
    [(ExecuTorchEmbeddingQuantizer(), "linear"), (xnnpack(is_dynamic=True), "embedding")],
    ids=["only the embedding", "only the projection"],
)
def test_the_other_user_of_a_tied_weight_keeps_the_float_one(quantizer: Any, float_user: str) -> None:
    """With one backend the other user reads the weight of the float model, equal to the last bit."""
    ids = torch.randint(0, 32, (2, 5), generator=torch.Generator().manual_seed(1))
    model = Tied().eval()
    quantized = quantize(model, quantizer, ids)
    call = calls(quantized, f"aten.{float_user}")[-1]
    read = call.args[1] if float_user == "linear" else call.args[0]
    assert read.op == "get_attr"
    assert torch.equal(quantized.get_parameter(read.target), model.embedding.weight)


class TwoNorms(nn.Module):
    """One convolution that is called for two branches, each with a BatchNorm of its own."""

    def __init__(self, *, one_call: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for number, norm in enumerate((self.one, self.two)):
            norm.running_mean = normal(4, seed=number) / 2
            norm.running_var = normal(4, seed=number + 7).abs() + 0.5
            norm.weight.data = normal(4, seed=number + 3).abs() + 0.5
            norm.bias.data = normal(4, seed=number + 5)
        self.one_call = one_call

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both branches."""
        if self.one_call:
            y = self.conv(x)
            return self.one(y), self.two(y)
        return self.one(self.conv(x)), self.two(self.conv(x.flip(-1)))


@pytest.mark.parametrize("is_per_channel", [False, True], ids=["static", "static per channel"])
@pytest.mark.parametrize("one_call", [True, False], ids=["one call", "two calls"])
def test_one_convolution_before_two_batch_norms(is_per_channel: bool, one_call: bool) -> None:
    """Each branch has its own statistics: nothing is folded into what the other one reads."""
    x = normal(2, 3, 6, 6)
    model = TwoNorms(one_call=one_call).eval()
    weight = model.conv.weight.detach().clone()
    quantized = quantize(model, xnnpack(is_per_channel=is_per_channel), x)
    for got, want in zip(quantized(x), model(x), strict=True):
        assert sqnr(want, got) > 30
    assert len(calls(quantized, "batch_norm")) == (2 if one_call else 0)
    assert torch.equal(model.conv.weight, weight)


class TwoBackends(nn.Module):
    """One weight that a linear of each backend reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.right.weight = self.left.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """left(x) * right(x)."""
        return self.left(x) - self.right(torch.tanh(x))


@exports
def test_one_weight_used_by_two_backends(strict: bool) -> None:
    """Each backend reads the weight in its own integers; the same weight asked in one way is stored once."""
    x = normal(4, 8)
    model = TwoBackends().eval()
    four_bits = tq.QuantizationSpec("int8", -8, 7, "per_axis", ch_axis=0, symmetric=True)
    table = tq.SupportTable(
        "acme",
        (
            tq.SupportRow(
                tq.OperatorPattern.of(operators.LINEAR),
                {"weight": (tq.AllowedSpec("int8", -8, 7, ("per_axis",), symmetric=True, ch_axis=0),)},
            ),
        ),
    )
    first = tq.PatternQuantizer(table).set_module_name("left", tq.QuantizationConfig(weight=four_bits))
    second = xnnpack(is_per_channel=True, is_dynamic=True)
    prepared = tq.prepare_pt2e(export(model, x, strict=strict), tq.ComposableQuantizer([first, second]))
    quantized = tq.convert_pt2e(prepared)
    left, right = (call.args[1] for call in calls(quantized, "linear"))
    ranges = [node.args[-3:-1] for node in (left, right)]
    assert ranges == [(-8, 7), (-127, 127)]
    assert len(stored(quantized, torch.int8)) == 2
    assert not stored(quantized, torch.float32)
    scale = model.left.weight.abs().amax(1, keepdim=True) / 7.5
    values = quantized.get_buffer(left.args[0].target)
    assert torch.equal(values, (model.left.weight / scale).round().clamp(-8, 7).to(torch.int8))
    assert sqnr(model(x), quantized(x)) > 15


def test_two_backends_that_ask_for_the_same_share_the_integers() -> None:
    """Two quantizers of one kind whose specs are equal store the common weight once."""
    x = normal(4, 8)
    config = get_symmetric_quantization_config(is_dynamic=True)
    both = tq.ComposableQuantizer(
        [
            XNNPACKQuantizer().set_module_name("left", config),
            XNNPACKQuantizer().set_module_name("right", config),
        ]
    )
    quantized = quantize(TwoBackends().eval(), both, x)
    assert len(stored(quantized, torch.int8)) == 1


def test_weights_of_the_prepared_model_are_those_of_the_float_model() -> None:
    """Preparing copies no weight: each is the same memory as the float model's."""
    x = normal(4, 8)
    exported = export(TwoBackends(), x)
    prepared = prepare_of(exported)
    known = {tensor.data_ptr() for tensor in exported.state_dict.values()}
    state = prepared.state_dict().values()  # with what observers saw, which is no tensor
    held = {value.data_ptr() for value in state if isinstance(value, torch.Tensor)}
    assert held == known


def prepare_of(exported: torch.export.ExportedProgram) -> GraphModule:
    """Prepared for XNNPACK."""
    return tq.prepare_pt2e(exported, xnnpack())


def test_a_weight_under_two_names_is_counted_once_in_a_saved_file() -> None:
    """The converted tied model has fewer bytes of weights than the float model has with its table once."""
    ids = torch.randint(0, 32, (2, 5))
    model = Tied().eval()
    quantized = quantize(model, composed({"is_per_channel": True, "is_dynamic": True}), ids)

    def size(tensors: dict[str, torch.Tensor]) -> int:
        return sum({t.data_ptr(): t.nbytes for t in tensors.values()}.values())

    assert size(quantized.state_dict()) < size(model.state_dict())


def test_prepare_helper_is_the_public_flow() -> None:
    """prepare() of a tied model leaves one point for each way in which the table is quantized."""
    ids = torch.randint(0, 32, (2, 5))
    prepared = prepare(Tied(), composed({"is_dynamic": True}), ids)
    names = [m.names for n, m in prepared.named_modules() if n.startswith("quantization_point")]
    assert sum("embedding_weight" in name for group in names for name in group) <= 2
