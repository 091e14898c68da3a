"""convert_pt2e: operators of torch's own dialect, integers stored once, and a model that can be saved."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import (
    INT8,
    WEIGHT,
    ByFunction,
    Fn,
    Nothing,
    calls,
    export,
    normal,
    one_call,
    outputs_of,
    prepare,
    quantize,
    sqnr,
    weights_of,
)
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


def mlp() -> nn.Module:
    """Two linears with a ReLU between."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


class Encoder(nn.Module):
    """Embedding, convolution, linear: each kind of weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(64, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores at each position."""
        h = self.conv(self.tokens(ids).transpose(1, 2)).transpose(1, 2)
        return self.fc(torch.relu(h))


IDS = torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(0))
X = normal(4, 16)
MODES = {
    "static": {},
    "static per channel": {"is_per_channel": True},
    "dynamic": {"is_dynamic": True},
    "dynamic per channel": {"is_per_channel": True, "is_dynamic": True},
}
modes = pytest.mark.parametrize("asked", MODES.values(), ids=MODES)


def composed(**asked: bool) -> tq.ComposableQuantizer:
    """Both backends."""
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack(**asked)])


# ----------------------------------------------------------------------------------------------------------
# What stands where
# ----------------------------------------------------------------------------------------------------------


def test_a_tensor_is_quantized_once_and_dequantized_for_each_user() -> None:
    """Each user of a quantized activation reads a dequantize of its own, all of one quantize."""
    model = Fn(lambda self, x: (y := self.fc(x)) + self.fc(y), fc=nn.Linear(16, 16))
    quantized = quantize(model, xnnpack(), X)
    (quantize_y,) = calls(quantized, "linear")[0].users
    assert len(quantize_y.users) == 2
    assert all(len(dequantize.users) == 1 for dequantize in quantize_y.users)


def test_the_parameters_of_a_static_activation_are_numbers_in_the_call() -> None:
    """Per tensor: scale and zero point as Python numbers, so that lowering can read them."""
    quantized = quantize(nn.Linear(16, 8), xnnpack(), X)
    call = calls(quantized, ".quantize_per_tensor.default")[0]
    source, scale, zero_point, *limits = call.args
    low, high = min(float(X.min()), 0.0), max(float(X.max()), 0.0)
    assert source.op == "placeholder"
    assert scale == pytest.approx((high - low) / 255)
    assert zero_point == -128 - round(low / scale)
    assert limits == [-128, 127, torch.int8]


def test_the_weight_of_a_linear_is_quantized_per_channel() -> None:
    """The stored integers and scales are those of the largest magnitude in each row, over 127."""
    linear = nn.Linear(16, 8).eval()
    quantized = quantize(linear, xnnpack(is_per_channel=True), X)
    call = one_call(quantized, "dequantize_per_channel")
    integers, scales, zero_points = (quantized.get_buffer(node.target) for node in call.args[:3])
    assert call.args[3:] == (0, -127, 127, torch.int8)
    wanted = linear.weight.detach().abs().amax(1) / 127
    torch.testing.assert_close(scales, wanted)
    assert torch.equal(integers, (linear.weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8))
    assert not zero_points.any()


def test_dynamic_activations_are_quantized_per_token() -> None:
    """Each row is quantized by its own range at run time: a large row does not spoil the small ones."""
    x = normal(4, 16)
    x[0] *= 1000
    model = nn.Linear(16, 8).eval()
    quantized = quantize(model, xnnpack(is_dynamic=True), x)
    assert calls(quantized, "choose_qparams_per_token_asymmetric")
    for row in range(4):
        assert sqnr(model(x)[row], quantized(x)[row]) > 30


@pytest.mark.parametrize("symmetric", [False, True])
def test_dynamic_activations_can_be_quantized_per_tensor(symmetric: bool) -> None:
    """A quantizer may ask for one scale for the whole input, found at run time."""
    spec = tq.QuantizationSpec("int8", is_dynamic=True, symmetric=symmetric)

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        return tq.QuantizationAnnotation({node.args[0]: spec}) if "linear" in str(node.target) else None

    model = nn.Linear(16, 8).eval()
    quantized = tq.convert_pt2e(prepare(model, ByFunction(decide), X))
    assert calls(quantized, "choose_qparams")
    for factor in (1, 100):
        assert sqnr(model(X * factor), quantized(X * factor)) > 30


@pytest.mark.parametrize("group_size", [2, 4, 16])
def test_a_weight_can_be_quantized_in_groups(group_size: int) -> None:
    """Groups along the last dimension have a scale each: the error is at most half of it."""
    spec = tq.QuantizationSpec("int8", -8, 7, "per_group", group_size=group_size, symmetric=True)
    model = nn.Linear(16, 8, bias=False).eval()
    quantized = tq.convert_pt2e(prepare(model, weights_of("linear", spec), X))
    call = one_call(quantized, "dequantize_per_channel_group")
    scales = quantized.get_buffer(call.args[1].target)
    assert scales.shape == (8, 16 // group_size)
    got = quantized(torch.eye(16)[:4])
    weight = model.weight.detach()
    wide = weight.abs().reshape(8, -1, group_size).amax(2).div(7.5).repeat_interleave(group_size, 1)
    bound = torch.maximum(wide / 2, weight - wide * 7)  # 7.5 steps are clipped to 7
    assert bool(((got.T - weight[:, :4]).abs() <= bound[:, :4] + 1e-6).all())


def test_a_group_size_that_does_not_fit_is_an_error_with_the_node() -> None:
    """16 columns do not divide into groups of 5."""
    spec = tq.QuantizationSpec("int8", granularity="per_group", group_size=5, symmetric=True)
    with pytest.raises(tq.CalibrationError, match="cannot be quantized as asked") as caught:
        tq.convert_pt2e(prepare(nn.Linear(16, 8), weights_of("linear", spec), X))
    assert "weight → linear" in str(caught.value.node)


def test_a_bias_can_be_derived_from_input_and_weight() -> None:
    """The int32 bias of integer kernels: scale of the input times that of the weight."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        x, weight, bias = node.args
        derived = tq.DerivedQuantizationSpec(
            ((x, node), (weight, node)),
            lambda qparams: (
                qparams[0][0] * qparams[1][0],
                torch.zeros_like(qparams[1][0], dtype=torch.int64),
            ),
            "int32",
            granularity="per_axis",
            ch_axis=0,
        )
        return tq.QuantizationAnnotation({x: INT8, weight: WEIGHT, bias: derived}, INT8)

    model = nn.Linear(16, 8).eval()
    quantized = quantize(model, ByFunction(decide), X)
    call = one_call(quantized, "aten.linear")
    bias, scale = (quantized.get_buffer(node.target) for node in call.args[2].args[:2])
    assert bias.dtype is torch.int32
    torch.testing.assert_close(bias * scale, model.bias.detach(), atol=float(scale.max()) / 2 + 1e-7, rtol=0)
    assert sqnr(model(X), quantized(X)) > 30


def test_fixed_parameters_need_no_data() -> None:
    """A sigmoid with known parameters is converted without calibration."""
    spec = tq.FixedQParamsQuantizationSpec("uint8", 1 / 256, 0)
    quantized = tq.convert_pt2e(prepare(nn.Sigmoid(), outputs_of("sigmoid", spec=spec), X))
    assert calls(quantized, ".quantize_per_tensor")[0].args[1:] == (1 / 256, 0, 0, 255, torch.uint8)
    assert torch.allclose(quantized(X), torch.sigmoid(X), atol=1 / 256)


def test_a_constant_that_is_computed_is_quantized_by_its_value() -> None:
    """The integers of weight.t() * 2 are stored, and what they were computed from is not."""
    weight = nn.Parameter(normal(16, 8))
    model = Fn(lambda self, x: nn.functional.linear(x, self.weight.t() * 2), weight=weight).eval()
    quantized = quantize(model, xnnpack(is_per_channel=True), X)
    assert not calls(quantized, "aten.t.") + calls(quantized, "aten.mul")
    assert all(
        tensor.dtype is not torch.float32 or tensor.dim() < 2 for tensor in quantized.state_dict().values()
    )
    assert sqnr(model(X), quantized(X)) > 30


def test_a_constant_computed_from_a_quantized_constant() -> None:
    """A position embedding of constant ids is a constant behind a quantized constant: both are right."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(self.ids)

    model = Fn(forward, table=nn.Embedding(8, 16), ids=torch.arange(4)).eval()
    quantized = quantize(model, composed(), X)
    assert sqnr(model(X), quantized(X)) > 30


# ----------------------------------------------------------------------------------------------------------
# What is stored
# ----------------------------------------------------------------------------------------------------------


@modes
def test_no_float_copy_of_a_quantized_weight_stays(asked: dict[str, bool]) -> None:
    """Every weight is integers; what is float are biases and scales, with one dimension at most."""
    quantized = quantize(Encoder().eval(), composed(**{**asked, "is_dynamic": False}), IDS)
    for name, tensor in quantized.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dim() <= 1, name
    integers = [t for t in quantized.state_dict().values() if t.dim() >= 2]
    assert sorted(tuple(t.shape) for t in integers) == [(8, 16), (16, 16, 3), (64, 16)]


@modes
def test_the_state_is_a_quarter_of_the_size(asked: dict[str, bool]) -> None:
    """A model that is nearly all weights has little more than a byte where it had four."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)).eval()
    quantized = quantize(model, xnnpack(**asked), normal(2, 128))

    def size(module: nn.Module) -> int:
        return sum(tensor.nbytes for tensor in module.state_dict().values())

    assert size(quantized) < 0.35 * size(model)
    buffer, smaller = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    torch.save(quantized.state_dict(), smaller)
    assert len(smaller.getvalue()) < 0.4 * len(buffer.getvalue())


def test_what_is_computed_and_not_used_leaves_nothing_behind() -> None:
    """Export keeps dead operators; neither they nor their weights come out, nor are they in the ledger."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.dead(x).split(4, 1)[0].sigmoid()
        return m.alive(x)

    model = Fn(run, alive=nn.Linear(16, 8), dead=nn.Linear(16, 8))
    exported = export(model, X)
    assert "p_dead_weight" in str(exported.graph)
    quantized = tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, xnnpack()), [(X,)]))
    assert {name.split(".")[0] for name in quantized.state_dict()} == {"alive"}
    assert [row.op for row in tq.ledger_of(quantized)] == ["aten.linear.default"]


def test_what_has_an_effect_stays_though_its_value_is_not_used() -> None:
    """A random draw moves the generator: without it the model would draw other numbers afterwards."""

    def run(_: Any, x: torch.Tensor) -> torch.Tensor:
        torch.rand_like(x)
        return x + torch.rand_like(x)

    model = Fn(run)
    quantized = tq.convert_pt2e(prepare(model, Nothing(), X))
    results = []
    for module in (model, quantized):
        torch.manual_seed(1)
        results.append(module(X))
    assert torch.equal(*results)


def test_a_weight_of_a_float_user_stays_in_float() -> None:
    """A weight that a float operator reads is not touched."""
    model = mlp()
    quantizer = xnnpack(is_dynamic=True).set_module_name("0", None)
    quantized = quantize(model, quantizer, X)
    assert torch.equal(quantized.state_dict()["0.weight"], model[0].weight)
    assert quantized.state_dict()["2.weight_int8"].dtype is torch.int8


@modes
def test_each_row_of_a_weight_is_within_half_a_step(asked: dict[str, bool]) -> None:
    """The weight that runs differs from the float one by half a scale at most."""
    model = nn.Linear(16, 8).eval()
    quantized = quantize(model, xnnpack(**asked), X)
    call = calls(quantized, "aten.linear")[0].args[1]
    integers = quantized.get_buffer(call.args[0].target)
    scale = call.args[1]
    scale = quantized.get_buffer(scale.target)[:, None] if isinstance(scale, Node) else scale
    assert bool(((integers * scale - model.weight).abs() <= scale / 2 * (1 + 1e-5)).all())


def test_each_row_of_an_embedding_is_within_half_a_step() -> None:
    """A float zero point costs no more than rounding: half a scale of the row at most."""
    model = nn.Embedding(64, 16).eval()
    ids = torch.arange(64)
    rows = quantize(model, ExecuTorchEmbeddingQuantizer(), ids)(ids)
    weight = model.weight.detach()
    step = (weight.amax(1) - weight.amin(1)) / 255
    assert float(((rows - weight).abs() / step[:, None]).max()) <= 0.501


# ----------------------------------------------------------------------------------------------------------
# What the prepared model and others may expect
# ----------------------------------------------------------------------------------------------------------


@modes
def test_the_prepared_model_can_be_used_again(asked: dict[str, bool]) -> None:
    """After convert the prepared model is as it was: it computes floats, and goes on calibrating."""
    model = mlp()
    prepared = tq.calibrate(prepare(model, xnnpack(**asked), X), [(X,)])
    code, state = prepared.code, {name: id(t) for name, t in prepared.named_parameters()}
    first = tq.convert_pt2e(prepared)
    expected = first(X)
    assert prepared.code == code
    assert {name: id(t) for name, t in prepared.named_parameters()} == state
    assert torch.equal(prepared(X), model(X))
    wide = X * 50
    second = tq.convert_pt2e(tq.calibrate(prepared, [(wide,)]))
    assert sqnr(model(wide), second(wide)) > 25
    assert torch.equal(first(X), expected)


@modes
def test_convert_is_deterministic(asked: dict[str, bool]) -> None:
    """Converting twice gives the same graph, the same names and the same bits."""
    prepared = tq.calibrate(prepare(Encoder(), composed(**asked), IDS), [(IDS,)])
    one, other = tq.convert_pt2e(prepared), tq.convert_pt2e(prepared)
    assert one.code == other.code
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())
    assert torch.equal(one(IDS), other(IDS))


def test_an_observer_without_data_is_an_error_with_the_node() -> None:
    """Converting before calibrating names the tensor that saw nothing, and harms nothing."""
    prepared = prepare(nn.Linear(16, 8), xnnpack(), X)
    with pytest.raises(tq.CalibrationError, match="no data") as caught:
        tq.convert_pt2e(prepared)
    assert "→ linear" in str(caught.value.node)
    assert "calibration" in str(caught.value.remedy)
    tq.convert_pt2e(tq.calibrate(prepared, [(X,)]))


def test_a_tensor_that_saw_only_masks_is_an_error_with_the_node() -> None:
    """NaN and infinities are not data; the error says how many there were."""
    prepared = prepare(nn.Linear(16, 8), xnnpack(), X)
    prepared(torch.full((4, 16), float("nan")))
    with pytest.raises(tq.CalibrationError, match="64 NaN") as caught:
        tq.convert_pt2e(prepared)
    assert "→ linear" in str(caught.value.node)


@modes
def test_no_annotation_and_no_point_is_left(asked: dict[str, bool]) -> None:
    """A converted model is plain operators: no module of torchquilt and none of its notes."""
    quantized = quantize(Encoder(), composed(**asked), IDS)
    assert not any("torchquilt" in type(module).__module__ for module in quantized.modules())
    assert not any("quantization_annotation" in node.meta for node in quantized.graph.nodes)
    quantized.graph.lint()


@modes
def test_every_node_says_what_it_computes_and_where_it_comes_from(asked: dict[str, bool]) -> None:
    """The recorded value has the shape and dtype of what comes out, and q/dq nodes name their module."""
    quantized = quantize(Encoder(), composed(**asked), IDS)

    class Check(torch.fx.Interpreter):
        seen = 0

        def run_node(self, node: Node) -> Any:
            value = super().run_node(node)
            if isinstance(value, torch.Tensor):
                recorded = node.meta["val"]
                assert recorded.dtype == value.dtype, node
                assert recorded.shape == value.shape, node
                Check.seen += 1
            return value

    Check(quantized).run(IDS)
    assert Check.seen > 10
    for node in calls(quantized, "quantize"):
        paths = [path for path, _ in node.meta["nn_module_stack"].values()]
        assert paths[-1] in ("", "tokens", "conv", "fc")
    linear = one_call(quantized, "aten.linear")
    for source in linear.all_input_nodes[:2]:
        assert list(source.meta["nn_module_stack"].values())[-1][0] in ("fc", "")


# ----------------------------------------------------------------------------------------------------------
# Saved and loaded
# ----------------------------------------------------------------------------------------------------------


@modes
def test_saved_and_loaded_it_gives_the_same_bits(asked: dict[str, bool]) -> None:
    """torch.export.export, save and load change nothing, weights stay integers."""
    quantized = quantize(Encoder(), composed(**asked), IDS)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(quantized, (IDS,)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    assert torch.equal(loaded.module()(IDS), quantized(IDS))
    dtypes = {tensor.dtype for tensor in loaded.state_dict.values() if tensor.dim() >= 2}
    assert torch.uint8 in dtypes
    assert torch.float32 not in dtypes or asked.get("is_dynamic")


@pytest.mark.long
def test_a_fresh_process_loads_it_without_torchquilt(tmp_path: Path) -> None:
    """A saved model needs torch alone, and gives the same bits there."""
    quantized = quantize(Encoder(), composed(is_per_channel=True), IDS)
    torch.export.save(torch.export.export(quantized, (IDS,)), tmp_path / "model.pt2")
    torch.save((IDS, quantized(IDS)), tmp_path / "case.pt")
    code = """
import sys, torch
from torch.ao.quantization.fx import _decomposed
ids, expected = torch.load(sys.argv[1] + "/case.pt")
got = torch.export.load(sys.argv[1] + "/model.pt2").module()(ids)
assert torch.equal(got, expected), (got - expected).abs().max()
assert "torchquilt" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_dynamic_batch_survives_saving() -> None:
    """A converted model can be exported again for any batch size."""
    batch = torch.export.Dim("batch", min=1, max=32)
    exported = export(mlp(), X, dynamic_shapes=({0: batch},))
    prepared = tq.calibrate(tq.prepare_pt2e(exported, xnnpack()), [(X,)])
    quantized = tq.convert_pt2e(prepared)
    again = torch.export.export(quantized, (X,), dynamic_shapes=({0: batch},)).module()
    for size in (1, 7):
        x = normal(size, 16, seed=size)
        assert torch.equal(again(x), quantized(x))


def test_the_state_dict_of_a_converted_model_loads_into_another() -> None:
    """Two conversions of one architecture have the same names, so state moves between them."""
    one, other = (quantize(nn.Linear(16, 8), xnnpack(is_per_channel=True), X) for _ in range(2))
    other.load_state_dict(one.state_dict())
    reads: list[GraphModule] = [one, other]
    weights = [module.state_dict()["weight_int8"] for module in reads]
    assert torch.equal(*weights)
