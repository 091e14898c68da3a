"""Folding BatchNorm: done where it is provably equal, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, Nothing, calls, export, normal, prepare


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights are the same in every run, since how near an outcome is depends on them."""
    torch.manual_seed(0)


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
    assert torch.allclose(result(x), model(x), atol=1e-4, rtol=1e-4)
    assert sorted(result.state_dict()) == ["0.bias", "0.weight"]


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


def test_a_chain_of_batch_norms_is_right() -> None:
    """Conv → bn → bn gives what it gave before, however many of them are folded."""
    norms = [with_statistics(nn.BatchNorm2d(4)), with_statistics(nn.BatchNorm2d(4), 5)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *norms).eval()
    x = normal(2, 3, 8, 8)
    assert torch.allclose(folded(model, x)(x), model(x), atol=1e-4, rtol=1e-4)


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
        assert torch.allclose(got, want, atol=1e-4, rtol=1e-4)


def test_a_weight_that_is_used_without_the_batch_norm_as_well_stays() -> None:
    """conv(x) by itself reads the weight that it always had, while bn(conv(y)) reads a folded one."""
    norm = with_statistics(nn.BatchNorm2d(4))
    model = Fn(
        lambda self, x: (self.norm(self.conv(x)), self.conv(x.flip(-1))), conv=nn.Conv2d(3, 4, 3), norm=norm
    ).eval()
    x = normal(2, 3, 8, 8)
    got, want = folded(model, x)(x), model(x)
    assert torch.allclose(got[0], want[0], atol=1e-4, rtol=1e-4)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_kept(dtype: torch.dtype) -> None:
    """A model in another float type has it after folding, and gives the same up to its own rounding."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), with_statistics(nn.BatchNorm2d(4))).eval().to(dtype)
    x = normal(2, 3, 8, 8).to(dtype)
    result = folded(model, x)
    assert not calls(result, "batch_norm")
    assert {tensor.dtype for tensor in result.state_dict().values()} == {dtype}
    tolerance = 100 * torch.finfo(dtype).eps
    assert torch.allclose(result(x), model(x), atol=tolerance * 10, rtol=tolerance)


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
