"""Weights however they are stored, shared and read: right for each user, as integers, stored once."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

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
    outputs_of,
    prepare,
    quantize,
    sqnr,
    weights_of,
)
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(4, 8)
IN_COLUMNS = tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=1, symmetric=True)
#: Operators with a weight: where it stands, and its spec per output channel.
READERS = {
    "aten.linear.default": (1, WEIGHT),
    "aten.matmul.default": (1, IN_COLUMNS),
    "aten.mm.default": (1, IN_COLUMNS),
    "aten.addmm.default": (2, IN_COLUMNS),
}


def every_weight(*left_out: str, **options: Any) -> ByFunction:
    """A quantizer of the weights of linear and matrix products, one scale for each output channel.

    Nodes of the names that are left out stay in float.
    """

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if str(node.target) not in READERS or node.name in left_out:
            return None
        position, spec = READERS[str(node.target)]
        return tq.QuantizationAnnotation({node.args[position]: spec}, quantizer="weights", **options)

    return ByFunction(decide)


def rounded(weight: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """A weight of 127 steps to either side, one scale for each index of an axis."""
    scale = weight.float().abs().amax([d for d in range(weight.dim()) if d != axis], keepdim=True) / 127
    return ((weight.float() / scale).round() * scale).to(weight.dtype)


def held(model: nn.Module, *dtypes: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of these types that a model holds: parameters, buffers, and plain attributes."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
        found |= {f"{path}.{name}".lstrip("."): value for name, value in plain.items()}
    return {name: tensor for name, tensor in found.items() if tensor.dtype in dtypes}


def matrices(model: nn.Module) -> list[str]:
    """The float tensors with two dimensions or more that a model still holds."""
    floats = held(model, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return [name for name, tensor in floats.items() if tensor.dim() > 1]


def assert_survives_saving(quantized: GraphModule, *inputs: torch.Tensor) -> None:
    """Exported again, saved and loaded it computes the same bits."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(quantized, inputs), buffer)
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(*inputs), quantized(*inputs))


# ----------------------------------------------------------------------------------------------------------
# How a weight is read
# ----------------------------------------------------------------------------------------------------------

#: The forward of a model with the weights ``w`` (6, 8; float32) and ``h`` (float16), and zeros for a bias.
PATHS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda m, x: linear(x, m.w, m.zero),
    "matmul, t": lambda m, x: x @ m.w.t(),
    "matmul, mT": lambda m, x: x @ m.w.mT,
    "matmul, transpose": lambda m, x: x @ m.w.transpose(0, 1),
    "matmul, permute": lambda m, x: x @ m.w.permute(1, 0),
    "mm, contiguous": lambda m, x: torch.mm(x, m.w.t().contiguous()),
    "addmm, t": lambda m, x: torch.addmm(m.zero, x, m.w.t()),
    "cast": lambda m, x: linear(x, m.h.to(torch.float32)),
    "addmm, cast, t": lambda m, x: torch.addmm(m.zero, x, m.h.float().t()),
    "matmul, cast, permute": lambda m, x: x @ m.h.type_as(x).permute(1, 0),
    "reshaped": lambda m, x: linear(x, m.w.reshape(3, 16).view(6, 8)),
    "sliced": lambda m, x: linear(x, m.w[1:5]),
    "chunked": lambda m, x: linear(x, m.w.chunk(2)[1]),
    "split": lambda m, x: linear(x, m.w.split([2, 4])[1]),
    "unbound": lambda m, x: linear(x, m.w.reshape(2, 3, 8).unbind()[1]),
    "concatenated": lambda m, x: linear(x, torch.cat([m.w, m.h.float()])),
    "scaled": lambda m, x: linear(x, m.w * 2.0),
    "merged": lambda m, x: linear(x, m.w + torch.outer(m.w[:, 0], m.w[0])),
    "detached": lambda m, x: linear(x, m.w.detach().clone()),
}


def effective(model: nn.Module) -> torch.Tensor:
    """The weight with which a model multiplies: what it makes of each unit vector."""
    with torch.no_grad():
        return model(torch.eye(8)).T


@pytest.mark.parametrize("path", PATHS)
def test_a_weight_is_quantized_by_whatever_path_it_is_read(path: str) -> None:
    """The integers of the tensor that the operator reads are stored, and no float weight is left."""
    weight, half = nn.Parameter(normal(6, 8, seed=1)), nn.Parameter(normal(6, 8, seed=2).half())
    model = Fn(PATHS[path], w=weight, h=half, zero=torch.zeros(6)).eval()
    quantized = quantize(model, every_weight(), X)
    assert not matrices(quantized)
    assert len(held(quantized, torch.int8)) == 1
    assert sqnr(X @ rounded(effective(model)).T, quantized(X)) > 100
    assert_survives_saving(quantized, X)


@pytest.mark.parametrize("key_size", [8, 6], ids=["packed weight", "packed bias"])
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_cross_attention_is_quantized_in_all_its_linears(key_size: int, is_dynamic: bool) -> None:
    """One weight, or one bias, is split for queries, keys and values; each part is a constant of its own."""
    attention = nn.MultiheadAttention(8, 2, kdim=key_size, vdim=key_size, batch_first=True)
    model = Fn(lambda m, x, y: m.attention(x, y, y, need_weights=False)[0], attention=attention).eval()
    inputs = normal(2, 3, 8), normal(2, 5, key_size)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    quantized = quantize(model, XNNPACKQuantizer().set_global(config), *inputs)
    assert not matrices(quantized)
    assert sqnr(model(*inputs), quantized(*inputs)) > 25


# ----------------------------------------------------------------------------------------------------------
# How a weight is stored
# ----------------------------------------------------------------------------------------------------------


class Storing(nn.Module):
    """A linear whose weight is stored in one of many ways."""

    def __init__(self, store: Callable[[nn.Module], None]) -> None:
        super().__init__()
        store(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The linear."""
        return linear(x, self.weight)


def _as(weight: torch.Tensor) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, "weight", weight)


STORED = {
    "parameter": _as(nn.Parameter(normal(6, 8))),
    "frozen parameter": _as(nn.Parameter(normal(6, 8), requires_grad=False)),
    "plain attribute": _as(normal(6, 8)),
    "buffer": lambda module: module.register_buffer("weight", normal(6, 8)),
    "not persistent": lambda module: module.register_buffer("weight", normal(6, 8), persistent=False),
    "not contiguous": _as(nn.Parameter(normal(8, 6).t())),
    "every other row": _as(nn.Parameter(normal(12, 8)[::2])),
    "expanded": lambda module: module.register_buffer("weight", normal(1, 8).expand(6, 8)),
    "slice": _as(nn.Parameter(normal(60, 8)[6:12])),
}
exports = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])


@exports
@pytest.mark.parametrize("how", STORED)
def test_a_weight_is_quantized_however_it_is_stored(how: str, strict: bool) -> None:
    """Integers replace the weight, and the model that was exported keeps it as it was."""
    model = Storing(STORED[how]).eval()
    weight = model.weight
    before = weight.detach().clone()
    exported = export(model, X, strict=strict)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, every_weight()))
    assert not held(quantized, torch.float32).keys() - {"weight_int8_scale"}
    assert held(quantized, torch.int8)["weight_int8"].is_contiguous()
    assert sqnr(X @ rounded(before).T, quantized(X)) > 100
    assert model.weight is weight
    assert torch.equal(weight, before)
    assert torch.equal(exported.module()(X), model(X))
    assert_survives_saving(quantized, X)


class Unsaved(nn.Module):
    """Weights and other constants that are in no state dict, in the model itself and in a part of it."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.plain, self.shift = normal(8, 8, seed=depth), normal(8)
        self.register_buffer("weight", normal(8, 8), persistent=False)
        self.register_buffer("factor", normal(8).abs(), persistent=False)
        self.part = Unsaved(depth - 1) if depth else nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two linears, and some arithmetic."""
        return self.part(linear(linear(x, self.plain), self.weight) * self.factor + self.shift)


@exports
def test_what_is_in_no_state_dict_stays_out_of_it(strict: bool) -> None:
    """Buffers that are not persistent and plain attributes are held where they are read, and not saved."""
    model = Unsaved().eval()
    prepared = tq.prepare_pt2e(export(model, X, strict=strict), every_weight())
    quantized = tq.convert_pt2e(prepared)
    assert not prepared.state_dict()
    assert len(quantized.state_dict()) == 4 * 3
    assert all("_int8" in name for name in quantized.state_dict())
    floats = [tensor for name, tensor in held(quantized, torch.float32).items() if "_int8" not in name]
    assert len(floats) == 4
    assert_survives_saving(quantized, X)


@exports
def test_a_constant_that_is_written_in_the_forward_is_quantized(strict: bool) -> None:
    """torch.tensor(...) in the forward is a weight as any other; export lifts, copies and detaches it."""
    rows = normal(6, 8).tolist()
    model = Fn(lambda _, x: linear(x, torch.tensor(rows))).eval()
    prepared = tq.prepare_pt2e(export(model, X, strict=strict), every_weight())
    quantized = tq.convert_pt2e(prepared)
    assert not calls(quantized, "lift_fresh_copy")
    assert not matrices(quantized)
    assert sqnr(X @ rounded(effective(model)).T, quantized(X)) > 100


def test_weights_may_ask_for_gradients() -> None:
    """A prepared model can be called outside of no_grad; nothing of its graph of gradients is kept."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    assert all(parameter.requires_grad for parameter in model.parameters())
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare(model, quantizer, X)
    prepared(X)
    quantized = tq.convert_pt2e(prepared)
    assert not any(tensor.requires_grad for tensor in quantized.buffers())
    assert sqnr(model(X), quantized(X)) > 30


def test_a_weight_without_elements_is_quantized_where_that_is_annotated() -> None:
    """There is nothing to lose: the integers are as empty as the weight, with one scale for each channel."""
    for shape in ((0, 8), (6, 0)):
        weight = nn.Parameter(torch.empty(shape))
        x = normal(4, shape[1])
        quantized = quantize(Fn(lambda m, x: linear(x, m.w), w=weight), weights_of("linear"), x)
        assert quantized.w_int8.shape == shape
        assert quantized.w_int8_scale.shape == shape[:1]
        assert torch.equal(quantized(x), torch.zeros(4, shape[0]))
        assert_survives_saving(quantized, x)


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_a_backend_leaves_a_weight_without_elements_in_float(is_dynamic: bool) -> None:
    """A table claims nothing of it, and says so, and what is beside it is quantized."""
    model = Fn(
        lambda m, x: torch.cat([m.fc(x), linear(x, m.empty)], -1),
        fc=nn.Linear(8, 8),
        empty=nn.Parameter(torch.empty(0, 8)),
    ).eval()
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    quantized = quantize(model, XNNPACKQuantizer().set_global(config), X)
    ledger = tq.ledger_of(quantized)
    assert ledger["linear"].is_quantized
    assert (ledger["linear_1"].code, ledger["linear_1"].reasons[0].text) == (
        "no_elements",
        "empty has no elements, and so no range",
    )
    assert sqnr(model(X), quantized(X)) > 30


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The tensor attribute self.weight was assigned:UserWarning")
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@exports
@pytest.mark.parametrize(
    "parametrize",
    [
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        parametrizations.spectral_norm,
        weight_norm,
        spectral_norm,
    ],
    ids=["weight_norm", "orthogonal", "spectral_norm", "old weight_norm", "old spectral_norm"],
)
def test_the_weight_of_a_parametrized_module_is_one_constant(
    parametrize: Callable[[nn.Module], nn.Module], strict: bool
) -> None:
    """The tensors that it is computed from are not stored, nor is the computation left in the graph."""
    torch.manual_seed(0)
    model = parametrize(nn.Linear(8, 8, bias=False)).eval()
    quantized = tq.convert_pt2e(tq.prepare_pt2e(export(model, X, strict=strict), every_weight()))
    assert {str(node.target).split(".")[1] for node in calls(quantized)} == {
        "dequantize_per_channel",
        "linear",
    }
    assert len(quantized.state_dict()) == 3
    assert sqnr(X @ rounded(effective(model)).T, quantized(X)) > 100
    assert_survives_saving(quantized, X)


# ----------------------------------------------------------------------------------------------------------
# Used more than once
# ----------------------------------------------------------------------------------------------------------


class Cast(nn.Module):
    """A layer that casts and transposes its float16 weight in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(8, 8).half())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A matrix product."""
        return x @ self.weight.float().t()


def test_a_layer_that_computes_its_weight_in_each_call_stores_it_once() -> None:
    """Three calls compute one constant: one matrix of integers, and no assertion keeps the float one."""
    model = Fn(lambda m, x: m.layer(torch.tanh(m.layer(torch.tanh(m.layer(x))))), layer=Cast()).eval()
    quantized = quantize(model, every_weight(), X)
    assert sorted(tensor.dtype for tensor in quantized.state_dict().values() if tensor.dim() > 1) == [
        torch.int8
    ]
    assert len(quantized.state_dict()) == 3
    assert not calls(quantized, "_assert_tensor_metadata")
    weight = rounded(model.layer.weight.detach().float()).T
    assert sqnr(torch.tanh(torch.tanh(X @ weight) @ weight) @ weight, quantized(X)) > 100


@pytest.mark.parametrize("allow_implicit_sharing", [True, False])
def test_one_weight_and_one_spec_are_one_set_of_integers(allow_implicit_sharing: bool) -> None:
    """Two users that ask for the same read the same integers, scales and zero points, however they share."""
    model = Fn(lambda m, x: linear(x, m.w) + linear(torch.tanh(x), m.w), w=nn.Parameter(normal(8, 8))).eval()
    quantized = quantize(model, every_weight(allow_implicit_sharing=allow_implicit_sharing), X)
    assert list(quantized.state_dict()) == ["w_int8_scale", "w_int8_zero_point", "w_int8"]
    one, other = calls(quantized, "dequantize")
    assert one.args == other.args or [a.target for a in one.args[:3]] == [a.target for a in other.args[:3]]


def test_one_weight_and_two_specs_are_two_sets_of_integers() -> None:
    """A user of 8 bits and one of 4 bits each read their own, and both are right."""
    four_bits = tq.QuantizationSpec("int8", -8, 7, "per_axis", ch_axis=0, symmetric=True)
    specs = {"linear": WEIGHT, "linear_1": four_bits}

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        return tq.QuantizationAnnotation({node.args[1]: specs[node.name]}) if node.name in specs else None

    model = Fn(lambda m, x: (linear(x, m.w), linear(x, m.w)), w=nn.Parameter(normal(8, 8))).eval()
    quantized = quantize(model, ByFunction(decide), X)
    assert [tuple(t.shape) for t in held(quantized, torch.int8).values()] == [(8, 8), (8, 8)]
    assert not matrices(quantized)
    fine, coarse = quantized(X)
    assert sqnr(X @ rounded(model.w.detach()).T, fine) > 100
    scale = model.w.detach().abs().amax(1, keepdim=True) / 7.5
    assert sqnr(X @ ((model.w.detach() / scale).round().clamp(-8, 7) * scale).T, coarse) > 100


def test_two_weights_that_share_a_spec_have_one_scale() -> None:
    """The scale of both is stored once, and is that of the larger one."""
    first: list[Any] = []

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        first.append((node.args[1], node))
        spec: Any = WEIGHT if len(first) == 1 else tq.SharedQuantizationSpec(first[0])
        return tq.QuantizationAnnotation({node.args[1]: spec})

    small, large = nn.Parameter(normal(8, 8)), nn.Parameter(normal(8, 8, seed=1) * 10)
    model = Fn(lambda m, x: linear(linear(x, m.small), m.large), small=small, large=large).eval()
    quantized = quantize(model, ByFunction(decide), X)
    assert sorted(quantized.state_dict()) == [
        "large_int8",
        "small_int8",
        "small_int8_scale",
        "small_int8_zero_point",
    ]
    wanted = torch.maximum(small.detach().abs().amax(1), large.detach().abs().amax(1)) / 127
    torch.testing.assert_close(quantized.small_int8_scale, wanted)


class Slices(nn.Module):
    """Query, key and value: three slices of one tensor, two of them parameters and one a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = normal(24, 8)
        self.query, self.key = nn.Parameter(self.whole[:8]), nn.Parameter(self.whole[8:16])
        self.register_buffer("value", self.whole[16:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One row of outputs behind the other."""
        return torch.cat([linear(x, self.query), linear(x, self.key), linear(x, self.value)], -1)


@exports
@pytest.mark.parametrize("left_out", [(), ("linear_1",)], ids=["all", "two of three"])
def test_slices_of_one_tensor_are_quantized_apart(strict: bool, left_out: tuple[str, ...]) -> None:
    """Each slice has its own integers; one that stays in float has its own memory, not that of all."""
    model = Slices().eval()
    before = model.whole.clone()
    exported = export(model, X, strict=strict)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, every_weight(*left_out)))
    weight = rounded(before)
    if left_out:
        weight[8:16] = before[8:16]
        assert matrices(quantized) == ["key"]
        assert isinstance(quantized.key, nn.Parameter)
        assert quantized.key.untyped_storage().nbytes() == quantized.key.nbytes
    assert sqnr(X @ weight.T, quantized(X)) > 100
    assert torch.equal(model.whole, before)


class Moving(nn.Module):
    """A weight that is a slice of a buffer, one of which the model writes to after using the other."""

    def __init__(self, writes_to: str) -> None:
        super().__init__()
        whole = normal(24, 8)
        self.register_buffer("part", whole[8:16])
        self.register_buffer("whole", whole)
        self.writes_to = writes_to

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A linear by what is written to only under its other name."""
        y = linear(x, self.whole if self.writes_to == "part" else self.part) + 1.0
        self.get_buffer(self.writes_to).add_(0.5)
        return y


@exports
@pytest.mark.parametrize("writes_to", ["part", "whole"])
def test_a_weight_in_memory_that_the_model_writes_to_goes_on_changing(writes_to: str, strict: bool) -> None:
    """Prepared and converted models see a write to the slice in the whole, and the other way round."""
    model = Moving(writes_to).eval()
    exported = export(model, X, strict=strict)
    before = {name: tensor.clone() for name, tensor in exported.state_dict.items()}
    prepared = tq.calibrate(tq.prepare_pt2e(exported, outputs_of("aten.add.")), [(X,)] * 3)
    quantized = tq.convert_pt2e(prepared)
    assert all(torch.equal(before[name], tensor) for name, tensor in exported.state_dict.items())
    outputs = []
    for _ in range(3):
        outputs.append(model(X))
        assert sqnr(outputs[-1], quantized(X)) > 35
    assert sqnr(outputs[0], outputs[-1]) < 20


@pytest.mark.parametrize("writes_to", ["part", "whole"])
def test_a_weight_in_memory_that_the_model_writes_to_is_no_constant(writes_to: str) -> None:
    """Annotated, it is quantized whenever it is read, whichever of its names the model writes to."""
    model = Moving(writes_to).eval()
    prepared = tq.prepare_pt2e(export(model, X), weights_of("linear"))
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(X,)] * 3))
    assert not [name for name, tensor in quantized.state_dict().items() if tensor.dtype is torch.int8]
    for _ in range(3):
        assert sqnr(model(X), quantized(X)) > 35


# ----------------------------------------------------------------------------------------------------------
# Other float types
# ----------------------------------------------------------------------------------------------------------

Spec = tq.QuantizationSpec
SPECS = {
    "per tensor": INT8,
    "per axis": WEIGHT,
    "per group": Spec("int8", granularity="per_group", group_size=4, symmetric=True),
    "float zero point": Spec("uint8", granularity="per_axis", ch_axis=0, zero_point_domain="float"),
    "16 bits": Spec("int16"),
    "16 bits, unsigned": Spec("uint16"),
    "32 bits": Spec("int32"),
}
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


@halves
@pytest.mark.parametrize("spec", SPECS)
def test_a_weight_in_half_precision_is_quantized_by_its_exact_value(spec: str, dtype: torch.dtype) -> None:
    """The operator gets half precision again, and more than 8 bits lose nothing on the way, nor overflow."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8).to(dtype).eval()
    x = X.to(dtype)
    quantized = quantize(model, weights_of("linear", SPECS[spec]), x)
    assert held(quantized, dtype).keys() == {"bias"}
    got = quantized(x)
    assert got.dtype == dtype
    bound = 38 if SPECS[spec].bits <= 8 else 60
    assert sqnr(model(x).float(), got.float()) > bound
    assert_survives_saving(quantized, x)


ACTIVATIONS = {
    "static": INT8,
    "static, 16 bits": Spec("int16"),
    "static, 16 bits unsigned": Spec("uint16"),
    "per axis": Spec("int8", granularity="per_axis", ch_axis=1),
    "per token": Spec("int8", granularity="per_token", is_dynamic=True),
    "dynamic": Spec("int8", is_dynamic=True),
    "fixed": tq.FixedQParamsQuantizationSpec("int8", 1 / 32, 3),
}


@halves
@pytest.mark.parametrize("spec", ACTIVATIONS)
def test_an_activation_in_half_precision_is_quantized(spec: str, dtype: torch.dtype) -> None:
    """Statically or at run time, the model takes and gives half precision and stays near to itself."""
    torch.manual_seed(0)

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        return tq.QuantizationAnnotation({node.args[0]: ACTIVATIONS[spec], node.args[1]: WEIGHT})

    model = nn.Linear(8, 8).to(dtype).eval()
    x = X.to(dtype)
    quantized = quantize(model, ByFunction(decide), x)
    assert quantized(x).dtype == dtype
    assert sqnr(model(x).float(), quantized(x).float()) > 35
    assert_survives_saving(quantized, x)


@halves
def test_a_derived_bias_in_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    """The int32 numbers of a bias are far beyond what half precision holds, and come out right."""

    def derive(qparams: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        return qparams[0][0] * qparams[1][0], torch.tensor(0)

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        x, weight, bias = node.args
        derived = tq.DerivedQuantizationSpec(((x, node), (weight, node)), derive, "int32")
        return tq.QuantizationAnnotation({x: INT8, weight: INT8, bias: derived}, INT8)

    model = nn.Linear(8, 8).eval()
    model.bias.data = normal(8) * 20
    x = X.to(dtype)
    model = model.to(dtype)
    quantized = quantize(model, ByFunction(decide), x)
    assert int(held(quantized, torch.int32)["bias_int32"].abs().max()) > 65504
    assert sqnr(model(x).float(), quantized(x).float()) > 35


@halves
def test_a_backend_of_float32_says_so_of_a_model_in_half_precision(dtype: torch.dtype) -> None:
    """XNNPACK's rows are for float32, and the error about a model that has none says it."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    with pytest.raises(tq.IntentError, match="float32"):
        tq.prepare_pt2e(export(nn.Linear(8, 8).to(dtype), X.to(dtype)), quantizer)


def test_a_float64_model_stays_in_float_for_a_reason() -> None:
    """The reason names float64, and what is float32 beside it is quantized."""
    double = nn.Linear(8, 8).double()
    model = Fn(lambda m, x: m.wide(m.fc(x).double()).float() + x, fc=nn.Linear(8, 8), wide=double).eval()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    quantized = quantize(model, quantizer, X)
    ledger = tq.ledger_of(quantized)
    assert ledger["linear"].is_quantized
    assert ledger["linear_1"].code == "not_float"
    assert "not a float32, float16 or bfloat16 tensor" in ledger["linear_1"].reasons[0].text
    assert held(quantized, torch.float64).keys() == {"wide.weight", "wide.bias"}
    assert sqnr(model(X), quantized(X)) > 30


def test_a_float64_weight_that_is_annotated_is_refused() -> None:
    """The q/dq operators take no float64: an error with node and quantizer, and the model is as it was."""
    exported = export(nn.Linear(8, 8).double(), X.double())
    before = {name: tensor.clone() for name, tensor in exported.state_dict.items()}
    with pytest.raises(tq.AnnotationError, match="float64") as caught:
        tq.prepare_pt2e(exported, weights_of("linear"))
    assert (caught.value.node, caught.value.quantizer) == ("linear", "weights")
    assert all(torch.equal(before[name], tensor) for name, tensor in exported.state_dict.items())
    assert tq.prepare_pt2e(exported, Nothing())(X.double()).dtype is torch.float64


def test_a_weight_that_is_not_a_number_anywhere_is_refused_in_one_message() -> None:
    """The error at convert says which weight, what it is, and one thing to do about it."""
    weight = nn.Parameter(torch.full((8, 8), float("nan")))
    prepared = prepare(Fn(lambda m, x: linear(x, m.w), w=weight), weights_of("linear"), X)
    with pytest.raises(tq.CalibrationError, match="NaN or infinite") as caught:
        tq.convert_pt2e(prepared)
    assert caught.value.node == "w"
    assert "64 NaN" in str(caught.value.got)
    assert str(caught.value).count("to fix it") == 1
