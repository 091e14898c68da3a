"""Layers of half precision that are quantized when the model runs, on ExecuTorch's runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, calls, export, normal, sqnr

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

#: Preset → the type of its weights in the delegate, and decibels between program and Q/DQ model for a layer.
#: The delegate rounds the scales of groups to bfloat16.
PRESETS = {
    "dynamic_int8_per_channel": ("qcint8", 60.0),
    "dynamic_int8_weight_int4": ("qcint4", 60.0),
    "dynamic_int8_weight_int4_group32": ("qbint4", 48.0),
}

presets = pytest.mark.parametrize("preset", PRESETS)


def converted(model: nn.Module, preset: str, *inputs: torch.Tensor, **options: Any) -> torch.fx.GraphModule:
    """Quantize for XNNPACK with a preset, with parameters that are all found at run time."""
    quantizer = tq.quantizer("xnnpack", preset=preset)
    return tq.convert_pt2e(tq.prepare_pt2e(export(model, *inputs, **options), quantizer))


def with_and_without_bias(dtype: torch.dtype) -> nn.Module:
    """Two layers on one input."""
    torch.manual_seed(0)
    parts = {"one": nn.Linear(64, 48), "other": nn.Linear(64, 24, bias=False)}
    return Fn(lambda m, x: (m.one(x), m.other(x)), **parts).to(dtype)


@presets
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static sizes", "dynamic sizes"])
def test_a_linear_of_float16_computes_what_it_was_converted_to(preset: str, is_dynamic: bool) -> None:
    """With bias and without, one sample and several, any number of tokens; by the kernels of float16."""
    kind, least = PRESETS[preset]
    x = normal(3, 5, 64).half()
    dims = {"dynamic_shapes": (({0: Dim("batch", max=8), 1: Dim("tokens", min=2, max=32)},),)}
    model = converted(with_and_without_bias(torch.float16), preset, x, **(dims if is_dynamic else {}))
    program = tq.lower(model, (x,), verify=True)

    computing = [str(kernel) for kernel in program.kernels if kernel.name == "FullyConnected"]
    assert computing == [f"FullyConnected(qdint8, {kind}) -> fp16"] * 2
    linears = [row for row in program.ledger.rows if row.op == "aten.linear.default"]
    assert [row.lowered.code for row in linears] == ["delegated_as_integers"] * 2
    for shape in ((1, 2, 64), (1, 20, 64), (4, 3, 64)) if is_dynamic else ((3, 5, 64),):
        data = normal(*shape, seed=1).half()
        for expected, found in zip(model(data), program.run(data), strict=True):
            assert expected.dtype is found.dtype is torch.float16
            assert sqnr(expected.float(), found.float()) > least


@presets
def test_small_and_large_numbers_of_float16_agree(preset: str) -> None:
    """Also where a range is more than the largest number of float16, and where a scale has few bits in it."""
    model = Fn(lambda m, x: m.layer(x), layer=nn.Linear(64, 16, bias=False)).half()
    torch.manual_seed(0)
    model.layer.weight.data = (0.02 * torch.randn(16, 64)).half()
    spread = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spread[:, :2] = torch.tensor([-1.0, 1.0])
    magnitudes = torch.tensor([6e4, 3e4, 1e4, 1e2, 1.0, 1e-1, 1e-2, 1e-3])
    x = (spread * magnitudes[:, None]).half()
    quantized = converted(model, preset, x)
    program = tq.lower(quantized, (x,), verify=False)

    expected, found = quantized(x).float(), program.run(x).float()
    assert expected.isfinite().all()
    for one, other in zip(expected, found, strict=True):
        assert sqnr(one, other) > 45


def test_parameters_are_chosen_in_float32() -> None:
    """The operators that choose them see no half precision; what is quantized is of half precision."""
    x = normal(3, 64).half()
    model = converted(with_and_without_bias(torch.float16), "dynamic_int8_per_channel", x)
    (choose,) = {node.args[0].meta["val"].dtype for node in calls(model, "choose_qparams")}
    (quantize,) = {node.args[0].meta["val"].dtype for node in calls(model, "quantize_per_token")[:1]}
    assert (choose, quantize) == (torch.float32, torch.float16)


FORMS: dict[str, tuple[Any, dict[str, Any], torch.Tensor]] = {
    "addmm": (
        lambda m, x: torch.addmm(m.bias, x, m.weight),
        {"weight": normal(64, 8), "bias": normal(8)},
        normal(3, 64),
    ),
    "matmul": (lambda m, x: x @ m.weight, {"weight": normal(64, 8)}, normal(2, 3, 64)),
    "pointwise": (lambda m, x: m.conv(x), {"conv": nn.Conv2d(16, 8, 1)}, normal(2, 16, 4, 4)),
    "part of it": (
        lambda m, x: m.last(functional.relu(m.first(x.half()).float())),
        {"first": nn.Linear(64, 16).half(), "last": nn.Linear(16, 8)},
        normal(3, 64),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_other_forms_of_a_linear_compute_what_they_were_converted_to(name: str) -> None:
    """Products with a constant, pointwise convolutions, and a model of which one layer is of float16."""
    function, parts, x = FORMS[name]
    model = Fn(function, **parts)
    if name != "part of it":
        model, x = model.half(), x.half()
    quantized = converted(model, "dynamic_int8_per_channel", x)
    program = tq.lower(quantized, (x,), verify=True)

    assert sqnr(quantized(x).float(), program.run(x).float()) > 45
    computing = [str(kernel) for kernel in program.kernels if kernel.name == "FullyConnected"]
    assert computing
    assert all("qdint8" in kernel for kernel in computing)
    assert any("-> fp16" in kernel for kernel in computing)


@presets
def test_bfloat16_stays_in_float_and_says_why(preset: str) -> None:
    """The delegate has no kernel of integers that returns it."""
    x = normal(3, 64).bfloat16()
    model = export(with_and_without_bias(torch.bfloat16), x)
    with pytest.raises(tq.IntentError, match=r"float16; there is torch\.bfloat16"):
        tq.prepare_pt2e(model, tq.quantizer("xnnpack", preset=preset))


@pytest.mark.parametrize(
    "module", [nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)], ids=["conv", "transposed"]
)
def test_other_convolutions_of_float16_stay_in_float_and_say_why(module: nn.Module) -> None:
    """A transposed one was seen not to load."""
    model = export(Fn(lambda m, x: m.layer(x), layer=module).half(), normal(1, 4, 6, 6).half())
    with pytest.raises(tq.IntentError, match=r"float32; there is torch\.float16"):
        tq.prepare_pt2e(model, tq.quantizer("xnnpack", preset="dynamic_int8_per_channel"))


def test_capabilities_show_the_dtypes() -> None:
    """Each dynamic row of linear layers says that it takes float16."""
    rows = tq.quantizer("xnnpack").backend_capabilities().filter(nn.Linear, mode="dynamic")
    assert len(rows) == 6
    assert all("only if all tensors are float32, or all are float16 (dtype)" in str(row) for row in rows)


class Block(nn.Module):
    """A block of a decoder: attention and a gated feed-forward, each behind a root mean square norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute as decoders do in half precision, the norms in float32."""
        batch, tokens, width = x.shape
        y = norm(x)
        parts = (
            layer(y).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        y = norm(x)
        found: torch.Tensor = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return found


def norm(x: torch.Tensor) -> torch.Tensor:
    """Root mean square norm without weights."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def decoder() -> nn.Module:
    """Two blocks between a table and a head."""
    torch.manual_seed(0)
    parts = {
        "table": nn.Embedding(50, 64),
        "one": Block(64, 4),
        "other": Block(64, 4),
        "head": nn.Linear(64, 50),
    }
    return Fn(lambda m, ids: m.head(norm(m.other(m.one(m.table(ids))))).float(), **parts).half()


@pytest.mark.parametrize(
    "preset",
    [
        "dynamic_int8_per_channel",
        *(pytest.param(preset, marks=pytest.mark.exhaustive) for preset in PRESETS if "int4" in preset),
    ],
)
def test_a_decoder_of_float16_computes_what_it_was_converted_to(preset: str) -> None:
    """All of its linear layers run as integers, for other numbers of tokens, too."""
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    tokens = {"dynamic_shapes": (({1: Dim("tokens", min=2, max=16)},),)}
    model = converted(decoder(), preset, ids, **tokens)
    program = tq.lower(model, (ids,), verify=True)

    kind, _ = PRESETS[preset]
    computing = [str(kernel) for kernel in program.kernels if kernel.name == "FullyConnected"]
    assert computing == [f"FullyConnected(qdint8, {kind}) -> fp16"] * 15
    linears = [row for row in program.ledger.rows if row.op == "aten.linear.default"]
    assert {row.lowered.code for row in linears} == {"delegated_as_integers"}
    for data in (ids, ids[:, :3], torch.cat([ids, ids], 1)):
        with torch.no_grad():
            assert sqnr(model(data), program.run(data)) > 40
