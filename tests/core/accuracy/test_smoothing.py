"""SmoothQuant: outliers of activations go into the weights of all linears that read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from planted import converted, noise, seeded
from strategies import Fn, export, normal, sqnr
from torchquilt.graph.invariants import checking_invariants

BATCHES = [(normal(4, 6, 32, seed=seed),) for seed in range(3)]


class WrittenOut(nn.Module):
    """RMSNorm in single steps."""

    def __init__(self, width: int, one_plus: bool = False) -> None:
        super().__init__()
        self.one_plus = one_plus
        self.weight = nn.Parameter(torch.zeros(width) if one_plus else torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * (1 + self.weight) if self.one_plus else self.weight * x


class WithBias(WrittenOut):
    """A norm in single steps that ends with a sum."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(normal(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens."""
        return super().forward(x) + self.bias


def gated(norm: nn.Module) -> nn.Module:
    """A gated perceptron behind a norm with outliers: three channels of 30 to 100."""
    model = seeded(
        Fn(
            lambda m, x: x + m.down(functional.silu(m.gate(h := m.norm(x))) * m.up(h)),
            norm=norm, gate=nn.Linear(32, 48), up=nn.Linear(32, 48), down=nn.Linear(48, 32),
        )
    )  # fmt: skip
    with torch.no_grad():
        norm.weight[5] += 100
        norm.weight[9] += 30
        for linear in (model.gate, model.up):
            linear.weight[:, 5] /= 60
            linear.weight[:, 9] /= 30
    return model


def smoothed(model: nn.Module, batches: Any, **options: Any) -> tuple[Any, tq.recovery.RecoveryStep]:
    """The smoothed model, under the invariants, and the record of the pass."""
    with checking_invariants():
        found = tq.recovery.smooth(export(model, *batches[0]), batches, **options)
    (step,) = tq.recovery.steps_of(found)
    return found, step


NORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer_norm": (lambda: nn.LayerNorm(32), "layer_norm"),
    "rms_norm": (lambda: nn.RMSNorm(32), "rms_norm"),
    "written out": (lambda: WrittenOut(32), "mul_1"),
    "written out, one plus the weight": (lambda: WrittenOut(32, one_plus=True), "mul_1"),
    "written out with a bias": (lambda: WithBias(32), "add_1"),
}


@pytest.mark.parametrize("kind", NORMS)
def test_outliers_behind_a_norm_are_smoothed(kind: str) -> None:
    """The float model computes the same, and 8 bits on XNNPACK lose at least 6 dB less."""
    make, node = NORMS[kind]
    model = gated(make())
    exported = export(model, *BATCHES[0])
    found, step = smoothed(model, BATCHES)
    assert node in step.applied
    with torch.no_grad():
        assert sqnr(model(*BATCHES[0]), found(*BATCHES[0])) > 100
    before, after = (noise(model, converted(each, BATCHES), BATCHES) for each in (exported, found))
    assert after > before + 6
    assert all(gain.after < gain.before for gain in step.gain)


def test_the_searched_strength_is_the_best_of_those_tried() -> None:
    """No fixed strength has a smaller error than the search found."""
    model = gated(nn.LayerNorm(32))
    error = {
        alpha: next(gain.after for gain in smoothed(model, BATCHES, alpha=alpha)[1].gain)
        for alpha in (0.1, 0.5, 0.9)
    }
    searched = next(gain.after for gain in smoothed(model, BATCHES)[1].gain)
    assert searched <= min(error.values())


def test_the_error_that_is_told_is_that_of_a_plain_computation() -> None:
    """Without a pass: one linear, its input rounded per tensor and its weight per channel.

    Both batches are the same, so that the range of one is that of the other.
    """
    model = seeded(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)))
    with torch.no_grad():
        model[0].weight[3] = 40
    x = normal(20, 8)
    _, step = smoothed(model, [(x,)] * 2)
    with torch.no_grad():
        read, weight = model[0](x), model[1].weight
        scale = (read.max() - read.min()) / 255
        zero = torch.round(-read.min() / scale)
        rounded = (torch.clamp(torch.round(read / scale) + zero, 0, 255) - zero) * scale
        scales = weight.abs().amax(1, keepdim=True) / 127
        error = rounded @ (torch.round(weight / scales) * scales).T - read @ weight.T
        expected = error.square().sum() / (read @ weight.T).square().sum()
    assert step.gain[0].before == pytest.approx(float(expected), rel=1e-3)


def test_even_activations_are_left_alone() -> None:
    """If no strength lowers the error, nothing is changed."""
    model = seeded(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 64)))
    with torch.no_grad():
        model[1].weight.copy_(torch.where(normal(64, 8) > 0, 1.0, -1.0))
    signs = torch.where(normal(200, 4, seed=1) > 0, 1.0, -1.0)
    found, step = smoothed(model, [(torch.cat([signs, -signs], 1),)])
    assert step.applied == ()
    assert dict(step.left)["layer_norm"] == "no strength lowers the error of what reads it"
    assert torch.equal(found.state_dict()["1.weight"], model[1].weight)


def test_a_given_strength_is_used() -> None:
    """With alpha it is applied wherever that can be done exactly."""
    model = seeded(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)))
    found, step = smoothed(model, [(normal(20, 8),)], alpha=0.5)
    assert step.applied == ("layer_norm",)
    with torch.no_grad():
        read = model[0](normal(20, 8)).abs().amax(0)
        scales = (read / model[1].weight.abs().amax(0)) ** 0.5
        scales = scales / scales.log().mean().exp()
    torch.testing.assert_close(found.state_dict()["1.weight"], model[1].weight * scales)


#: Why a norm is left alone → the function.
REFUSED: dict[str, Callable[..., Any]] = {
    "add_1 adds a tensor that has other scales": lambda m, x: m.a(h := m.norm(x)) + h,
    "it is an output of the model": lambda m, x: ((h := m.norm(x)), m.a(h)),
    "gelu (aten.gelu.default) is not positively homogeneous": lambda m, x: m.a(functional.gelu(m.norm(x))),
    "the weight of linear is shared with linear_1": lambda m, x: m.a(m.a(m.norm(x))),
    "layer_norm has no weight": lambda m, x: m.a(functional.layer_norm(x, (8,))),
    "layer_norm normalizes over several axes": lambda m, x: m.a(functional.layer_norm(x, (3, 8))),
    "conv1d reads it": lambda m, x: m.conv(m.norm(x).transpose(1, 2)),
    "no operator with a weight reads layer_norm": lambda m, x: m.a(x * m.norm(x).shape[0]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_norm_that_is_left_alone_says_why(reason: str) -> None:
    """The step names the norm and the reason."""
    parts = {"norm": nn.LayerNorm(8), "a": nn.Linear(8, 8), "conv": nn.Conv1d(8, 2, 1)}
    _, step = smoothed(Fn(REFUSED[reason], **parts), [(normal(2, 3, 8),)], alpha=0.5)
    assert dict(step.left)["layer_norm"].replace("add adds", "add_1 adds") == reason
    assert "layer_norm" not in step.applied


def test_a_cache_starts_as_it_was() -> None:
    """Buffers that the model writes to are as they were after the batches."""

    def counted(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.count.add_(1)
        return m.a(m.norm(x)) * m.count

    model = Fn(counted, norm=nn.LayerNorm(8), a=nn.Linear(8, 4), count=torch.zeros(()))
    found, _ = smoothed(model, [(normal(2, 8),)] * 3, alpha=0.5)
    assert float(found.state_dict()["count"]) == 0


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_a_strength_out_of_range_is_refused(alpha: float) -> None:
    """Alpha is a share."""
    with pytest.raises(tq.AccuracyError, match="Alpha is a share"):
        tq.recovery.smooth(export(nn.Linear(2, 2), normal(1, 2)), [], alpha=alpha)


def test_no_batch_is_refused() -> None:
    """There is nothing to measure with."""
    with pytest.raises(tq.AccuracyError, match="There was no batch"):
        tq.recovery.smooth(export(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), normal(1, 4)), [])


def test_a_batch_that_does_not_fit_is_named() -> None:
    """The error says which."""
    exported = export(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), normal(1, 4))
    with pytest.raises(tq.AccuracyError, match="Batch 1"):
        tq.recovery.smooth(exported, [(normal(1, 4),), (normal(1, 5),)])
