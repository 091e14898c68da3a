"""Folding BatchNorm: done where it is provably equal, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import torchquilt as tq
from strategies import Fn, Nothing, calls, export, normal, prepare, sqnr

#: Least ratio of signal to noise in dB between a model and its folded form: 1e-4 of the signal in single
#: precision and better, two units of rounding (epsilon) of the type in half precision.
LEAST_SQNR = {torch.float64: 80, torch.float32: 80, torch.float16: 54, torch.bfloat16: 36}


def with_statistics(norm: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters that are far from those of a fresh BatchNorm."""
    size = norm.num_features
    norm.running_mean = normal(size, seed=seed) * 2
    norm.running_var = normal(size, seed=seed + 1).abs() * 3 + 0.1
    if norm.affine:
        norm.weight.data = normal(size, seed=seed + 2)
        norm.bias.data = normal(size, seed=seed + 3)
    return norm


def folded(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> torch.fx.GraphModule:
    """The model as prepare leaves it when nothing is annotated: BatchNorm folded, no observers."""
    return tq.prepare_pt2e(export(model, *inputs, **options), Nothing())


CASES = {
    "conv1d": (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
    "conv1d same": (nn.Conv1d(3, 4, 3, padding="same"), nn.BatchNorm1d(4), (2, 3, 8)),
    "conv2d": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "conv2d same": (nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "conv2d no bias": (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "conv2d strided, dilated": (
        nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=1),
        nn.BatchNorm2d(4),
        (2, 3, 9, 9),
    ),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), (2, 4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 8, 8)),
    "not affine": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), (2, 3, 8, 8)),
    "another eps": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.5), (2, 3, 8, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (2, 2, 4, 4, 4)),
    "conv3d same": (nn.Conv3d(2, 3, 3, padding="same"), nn.BatchNorm3d(3), (2, 2, 4, 4, 4)),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), nn.BatchNorm1d(4), (2, 3, 8)),
    "transposed 2d": (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 5, 5)),
    "transposed 2d, grouped": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2, bias=False),
        nn.BatchNorm2d(6),
        (2, 4, 5, 5),
    ),
    "transposed 2d, depthwise": (nn.ConvTranspose2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (2, 4, 5, 5)),
    "transposed 3d, grouped": (nn.ConvTranspose3d(4, 2, 2, groups=2), nn.BatchNorm3d(2), (2, 4, 3, 3, 3)),
    "linear": (nn.Linear(5, 4), nn.BatchNorm1d(4), (6, 5)),
    "linear no bias": (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), (6, 5)),
}


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_norm_behind_a_weighted_operator_is_folded(case: str, strict: bool) -> None:
    """No BatchNorm and none of its statistics is left, and the result is the same up to rounding."""
    operator, norm, shape = CASES[case]
    model = nn.Sequential(operator, with_statistics(norm)).eval()
    x = normal(*shape)
    result = folded(model, x, strict=strict)
    assert not calls(result, "batch_norm")
    assert sqnr(model(x), result(x)) >= 80
    assert sorted(result.state_dict()) == ["0.bias", "0.weight"]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A convolution of any kind and shape with a BatchNorm behind it, and an input; float32 or float64."""
    dims, is_transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.integers(1, 3))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    options: dict[str, Any] = {name: draw(st.integers(1, 2)) for name in ("stride", "dilation")}
    padding: Any = draw(st.integers(0, 1))
    if not is_transposed and options["stride"] == 1:
        padding = draw(st.sampled_from([padding, "same", "valid"]))
    kind = getattr(nn, f"Conv{'Transpose' if is_transposed else ''}{dims}d")
    operator = kind(
        *channels,
        draw(st.integers(1, 3)),
        padding=padding,
        groups=groups,
        bias=draw(st.booleans()),
        **options,
    )
    norm = getattr(nn, f"BatchNorm{dims}d")(channels[1], affine=draw(st.booleans()))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    model = nn.Sequential(operator, with_statistics(norm, seed=draw(st.integers(0, 99)))).eval().to(dtype)
    return model, normal(draw(st.integers(1, 2)), channels[0], *[6] * dims).to(dtype)


@settings(max_examples=30)
@given(convolutions())
def test_a_folded_convolution_of_any_shape_computes_the_same(case: tuple[nn.Module, torch.Tensor]) -> None:
    """Whatever kernel, stride, dilation, padding, groups and channels: folded, and equal to 80 dB."""
    model, x = case
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert result(x).dtype == x.dtype
    assert sqnr(model(x), result(x)) >= LEAST_SQNR[x.dtype]


def test_the_float_model_keeps_its_weights() -> None:
    """Folding makes new weights; those of the exported program are the same bits as before."""
    x = normal(2, 3, 8, 8)
    exported = export(nn.Sequential(nn.Conv2d(3, 4, 3), with_statistics(nn.BatchNorm2d(4))), x)
    before = {name: tensor.clone() for name, tensor in exported.state_dict.items()}
    tq.prepare_pt2e(exported, Nothing())
    assert all(torch.equal(before[name], tensor) for name, tensor in exported.state_dict.items())


def test_a_convolution_that_two_batch_norms_read_is_not_folded() -> None:
    """Neither of two BatchNorms after one convolution may take it for itself."""
    one, two = with_statistics(nn.BatchNorm2d(4)), with_statistics(nn.BatchNorm2d(4), 7)
    model = Fn(
        lambda self, x: (self.one(y := self.conv(x)), self.two(y)), conv=nn.Conv2d(3, 4, 3), one=one, two=two
    )
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 2
    for got, want in zip(result(x), model(x), strict=True):
        assert torch.equal(got, want)


def test_a_convolution_whose_output_is_read_besides_is_not_folded() -> None:
    """A residual connection around the BatchNorm still reads what the convolution gave."""
    norm = with_statistics(nn.BatchNorm2d(3))
    model = Fn(lambda self, x: self.norm(y := self.conv(x)) + y, conv=nn.Conv2d(3, 3, 3), norm=norm)
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 1
    assert torch.equal(result(x), model(x))


@pytest.mark.parametrize("is_shared", [False, True], ids=["one call", "two calls"])
def test_a_chain_of_batch_norms_is_folded_one_after_the_other(is_shared: bool) -> None:
    """Conv → bn → bn becomes one convolution, also where the same weight is read without them."""
    norms = [with_statistics(nn.BatchNorm2d(4)), with_statistics(nn.BatchNorm2d(4), 5)]
    conv = nn.Conv2d(3, 4, 3)
    model = Fn(
        lambda self, x: (self.norms(self.conv(x)), self.conv(x) if is_shared else x),
        conv=conv,
        norms=nn.Sequential(*norms),
    ).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert len(result.state_dict()) == (4 if is_shared else 2)
    assert sqnr(model(x)[0], result(x)[0]) >= 80
    assert torch.equal(result(x)[1], model(x)[1])


def test_shared_weights_are_folded_apart() -> None:
    """One convolution that is called before two BatchNorms gets two weights, one for each."""
    one, two = with_statistics(nn.BatchNorm2d(4)), with_statistics(nn.BatchNorm2d(4), 7)
    model = Fn(
        lambda self, x: (self.one(self.conv(x)), self.two(self.conv(x.flip(-1)))),
        conv=nn.Conv2d(3, 4, 3),
        one=one,
        two=two,
    ).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert len({call.args[1].target for call in calls(result, "conv2d")}) == 2
    for got, want in zip(result(x), model(x), strict=True):
        assert sqnr(want, got) >= 80


def test_a_weight_that_is_used_without_the_batch_norm_as_well_stays() -> None:
    """conv(x) by itself reads the weight that it always had, while bn(conv(y)) reads a folded one."""
    norm = with_statistics(nn.BatchNorm2d(4))
    model = Fn(
        lambda self, x: (self.norm(self.conv(x)), self.conv(x.flip(-1))), conv=nn.Conv2d(3, 4, 3), norm=norm
    ).eval()
    x = normal(2, 3, 8, 8)
    got, want = folded(model, x)(x), model(x)
    assert sqnr(want[0], got[0]) >= 80
    assert torch.equal(got[1], want[1])


def test_a_linear_over_a_sequence_is_not_folded() -> None:
    """BatchNorm1d normalises dimension 1, which for three dimensions is not the linear's output channel."""
    model = nn.Sequential(nn.Linear(5, 5), with_statistics(nn.BatchNorm1d(5))).eval()
    x = normal(2, 5, 5)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 1
    assert torch.equal(result(x), model(x))


def test_a_batch_norm_behind_something_else_is_left() -> None:
    """A BatchNorm of the input stays, and computes the same bits."""
    model = with_statistics(nn.BatchNorm2d(3)).eval()
    x = normal(2, 3, 4, 4)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 1
    assert torch.equal(result(x), model(x))


def test_a_weight_that_depends_on_the_input_is_not_folded() -> None:
    """A convolution with a computed weight keeps its BatchNorm."""
    norm = with_statistics(nn.BatchNorm2d(4))
    weight = nn.Parameter(normal(4, 3, 3, 3))
    model = Fn(
        lambda self, x: self.norm(nn.functional.conv2d(x, self.weight * x.mean())), weight=weight, norm=norm
    ).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 1
    assert torch.equal(result(x), model(x))


def test_a_weight_that_is_the_input_as_well_stays() -> None:
    """A convolution of a tensor with itself: the folded weight is not what it is applied to."""
    weight = nn.Parameter(normal(3, 3, 3, 3))
    model = Fn(
        lambda self, x: self.norm(nn.functional.conv2d(self.weight, self.weight, padding=1)) + x,
        weight=weight,
        norm=with_statistics(nn.BatchNorm2d(3)),
    ).eval()
    x = normal(1)
    assert sqnr(model(x), folded(model, x)(x)) >= 80


def test_a_new_bias_takes_no_name_that_is_in_use() -> None:
    """If the convolution has no bias and another tensor has its name, that one keeps its value."""
    model = Fn(
        lambda self, x: self.norm(nn.functional.conv2d(x, self.weight)) * self.bias.reshape(4, 1, 1),
        weight=nn.Parameter(normal(4, 3, 3, 3)),
        bias=nn.Parameter(normal(4, seed=9)),
        norm=with_statistics(nn.BatchNorm2d(4)),
    ).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert torch.equal(result.bias, model.bias)
    assert sqnr(model(x), result(x)) >= 80


def test_one_batch_norm_behind_two_convolutions_is_folded_into_both() -> None:
    """A BatchNorm that is called twice goes into each of the convolutions before it."""
    model = Fn(
        lambda self, x: self.norm(self.one(x)) + self.norm(self.two(x)),
        one=nn.Conv2d(3, 4, 3),
        two=nn.Conv2d(3, 4, 3),
        norm=with_statistics(nn.BatchNorm2d(4)),
    ).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert len(result.state_dict()) == 4
    assert sqnr(model(x), result(x)) >= 80


def test_a_batch_norm_with_two_users_is_folded() -> None:
    """All users of the BatchNorm read the folded convolution."""
    norm = with_statistics(nn.BatchNorm2d(4))
    model = Fn(lambda self, x: (y := self.norm(self.conv(x))).relu() + y, conv=nn.Conv2d(3, 4, 3), norm=norm)
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert sqnr(model(x), result(x)) >= 80


def test_a_convolution_whose_output_the_model_returns_is_not_folded() -> None:
    """An output of the model is read by its caller, and is what it was."""
    norm = with_statistics(nn.BatchNorm2d(4))
    model = Fn(lambda self, x: (y := self.conv(x), self.norm(y)), conv=nn.Conv2d(3, 4, 3), norm=norm).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert all(torch.equal(got, want) for got, want in zip(result(x), model(x), strict=True))


NOT_THE_OUTPUT_CHANNEL = {
    "linear, vector weight": (lambda self, x: self.norm(nn.functional.linear(x, self.vector)), 5, (5, 5, 4)),
    "conv1d, no batch": (lambda self, x: self.norm(self.conv1d(x)), 6, (4, 6)),
    "conv2d, no batch": (lambda self, x: self.norm(self.conv2d(x)), 6, (4, 6, 6)),
    "transposed, no batch": (lambda self, x: self.norm(self.transposed(x)), 6, (4, 6, 6)),
}


@pytest.mark.parametrize("case", NOT_THE_OUTPUT_CHANNEL)
def test_a_batch_norm_over_another_dimension_is_not_folded(case: str) -> None:
    """Without a batch dimension 1 is not the output channel: the BatchNorm stays as it is."""
    function, size, shape = NOT_THE_OUTPUT_CHANNEL[case]
    parts = {
        "vector": nn.Parameter(normal(4)),
        "conv1d": nn.Conv1d(4, 4, 1),
        "conv2d": nn.Conv2d(4, 4, 1),
        "transposed": nn.ConvTranspose2d(4, 4, 1),
    }
    model = Fn(function, norm=with_statistics(nn.BatchNorm1d(size)), **parts).eval()
    x = normal(*shape)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 1
    assert torch.equal(result(x), model(x))


def test_a_batch_norm_before_a_convolution_is_not_folded() -> None:
    """With padding it could not be: the padding is zero behind the BatchNorm, not before it."""
    model = nn.Sequential(with_statistics(nn.BatchNorm2d(3)), nn.Conv2d(3, 4, 3, padding=1)).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 1
    assert torch.equal(result(x), model(x))


class Drifting(nn.Module):
    """A convolution and a BatchNorm, one tensor of which the model moves at each call, after using it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.norm = with_statistics(nn.BatchNorm2d(4))
        self.register_buffer("weight", normal(4, 3, 3, 3))
        self.what = what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of the convolution."""
        y = self.norm(nn.functional.conv2d(x, self.weight))
        self.get_buffer(self.what).add_(0.5)
        return y


@pytest.mark.parametrize("what", ["weight", "norm.running_mean"])
def test_what_the_model_writes_to_is_not_folded(what: str) -> None:
    """Statistics or weights that move from call to call are no constants, and go on moving."""
    x = normal(2, 3, 8, 8)
    result, model = folded(Drifting(what), x), Drifting(what).eval()
    for _ in range(3):
        assert torch.equal(result(x), model(x))


def test_a_weight_that_is_computed_from_constants_is_folded() -> None:
    """A weight-normed convolution: its weight is computed once, scaled, and stored where modules have it."""
    conv = weight_norm(nn.Conv2d(3, 4, 3, bias=False))
    model = nn.Sequential(conv, with_statistics(nn.BatchNorm2d(4))).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert sorted(result.state_dict()) == ["0.bias", "0.weight"]
    assert sqnr(model(x), result(x)) >= 80


@pytest.mark.parametrize("norm_dtype", [None, torch.float32], ids=["all half", "float32 norm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_folded_in_float32_and_rounded_once(
    dtype: torch.dtype, norm_dtype: torch.dtype | None
) -> None:
    """The folded weight is in the type of the model, and as near to the exact one as that type allows."""
    conv, norm = nn.Conv2d(3, 4, 3).to(dtype), with_statistics(nn.BatchNorm2d(4)).to(norm_dtype or dtype)
    model = nn.Sequential(conv, norm).eval()
    x = normal(2, 3, 8, 8).to(dtype)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert {tensor.dtype for tensor in result.state_dict().values()} == {dtype}
    assert sqnr(model(x).float(), result(x).float()) >= LEAST_SQNR[dtype]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    # Half a unit in the last place, and what float32 adds to it.
    error = ((result.get_parameter("0.weight").double() - exact) / exact).detach().abs()
    assert float(error.max()) <= torch.finfo(dtype).eps / 2 * 1.001


def test_what_would_overflow_half_precision_is_not_folded() -> None:
    """A channel with next to no variance has a scale that the weight's type cannot hold: nothing is done."""
    norm = nn.BatchNorm2d(4, eps=1e-12)
    norm.running_var.fill_(1e-9)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    conv.weight.data.fill_(8.0)
    model = nn.Sequential(conv.half(), norm).eval()
    x = (normal(2, 3, 8, 8) * 1e-4).half()
    result = folded(model, x)
    assert model(x).isfinite().all()
    assert torch.equal(result(x), model(x))


def test_training_mode_is_refused() -> None:
    """A BatchNorm that would go on learning its statistics is an error that names the node and the remedy."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    exported = torch.export.export(model, (normal(2, 3, 8, 8),))
    with pytest.raises(tq.ModelError, match="training mode") as caught:
        tq.prepare_pt2e(exported, Nothing())
    assert caught.value.node == "batch_norm"
    assert "eval()" in str(caught.value.remedy)


def test_a_batch_norm_without_statistics_is_no_training_mode() -> None:
    """With track_running_stats=False evaluation uses the batch's statistics: it stays, and is not refused."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval()
    x = normal(2, 3, 8, 8)
    result = folded(model, x)
    assert len(calls(result, "batch_norm")) == 1
    assert torch.equal(result(x), model(x))


def test_the_folded_operator_says_where_it_comes_from() -> None:
    """After folding the convolution still has its module path, and the value that export recorded."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), with_statistics(nn.BatchNorm2d(4)))
    prepared = prepare(model, Nothing(), normal(2, 3, 8, 8))
    (conv,) = calls(prepared, "conv2d")
    assert [path for path, _ in conv.meta["nn_module_stack"].values()][-1] == "0"
    assert conv.meta["val"].shape == (2, 4, 6, 6)
    assert {read.meta["val"].shape for read in conv.args[1:3]} == {(4, 3, 3, 3), (4,)}
