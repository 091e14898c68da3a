"""Cross-layer equalization: exact where it is applied, and each refusal says why."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from planted import converted, noise, seeded
from strategies import Fn, calls, export, normal, sqnr
from torchquilt.graph.invariants import checking_invariants

X = normal(2, 4, 8, 8)


def equalized(model: nn.Module, *inputs: Any, **options: Any) -> tuple[Any, tq.recovery.RecoveryStep]:
    """The equalized model, under the invariants, and the record of the pass."""
    with checking_invariants():
        found = tq.recovery.equalize(export(model, *inputs, **options))
    (step,) = tq.recovery.steps_of(found)
    return found, step


def assert_equal(model: nn.Module, found: Any, *inputs: Any) -> None:
    """Equal up to the rounding of float32, relative to the output."""
    with torch.no_grad():
        assert sqnr(model(*inputs), found(*inputs)) > 100


class Chain(nn.Module):
    """A random chain of operators that scales go through, with unequal channels, read by two convolutions."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        width, layers = 4, []
        for number in range(4):
            wide = chance.choice([4, 8])
            layers += chance.choice(
                [
                    [nn.Conv2d(width, wide, 3, padding=1)],
                    [nn.Conv2d(width, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)],
                    [nn.Conv2d(width, wide, 1, groups=2), nn.Conv2d(wide, wide, 3, padding=1, groups=wide)],
                    [nn.ConvTranspose2d(width, wide, 3, padding=1, groups=2)],
                ]
            )
            pool = [nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(5), nn.ZeroPad2d(1)]
            bent = [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.PReLU(wide)]
            layers.append(chance.choice(bent))
            if number < 2:
                more = [nn.PixelShuffle(2)] if wide == 8 else [nn.Dropout(), nn.Upsample(scale_factor=2)]
                layers.append(chance.choice([*pool, *more]))
            width = wide // 4 if isinstance(layers[-1], nn.PixelShuffle) else wide
        self.layers = nn.Sequential(*layers)
        self.left, self.right = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 6, 3)
        seeded(self, seed)
        with torch.no_grad():
            for layer in layers:
                if isinstance(layer, nn.modules.conv._ConvNd):
                    # Channel by channel, up to a factor of 100 either way.
                    axis = 1 if layer.transposed else 0
                    sizes = torch.logspace(-2, 2, layer.weight.shape[axis])
                    layer.weight.mul_(sizes.reshape([-1 if n == axis else 1 for n in range(4)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to numbers."""
        x = self.layers(x)
        return torch.cat([self.left(x).flatten(1), self.right(torch.relu(x)).flatten(1)], 1)


@pytest.mark.parametrize("seed", range(10))
def test_a_random_chain_computes_the_same(seed: int) -> None:
    """Every operator that scales go through, in random order; the original keeps its bits."""
    model = Chain(seed)
    exported = export(model, normal(2, 4, 16, 16))
    before = {name: value.clone() for name, value in exported.state_dict.items()}
    with checking_invariants():
        found = tq.recovery.equalize(exported)
    (step,) = tq.recovery.steps_of(found)
    assert step.applied
    assert_equal(model, found, normal(2, 4, 16, 16, seed=1))
    assert all(torch.equal(value, before[name]) for name, value in exported.state_dict.items())


def test_channels_that_make_up_for_each_other_get_equal_ranges() -> None:
    """A channel of 1,000 that the next weight divides again: 20 dB and more are got back on XNNPACK."""
    model = seeded(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    with torch.no_grad():
        model[0].weight[3] *= 1000
        model[0].bias[3] *= 1000
        model[2].weight[:, 3] /= 1000
    batches = [(normal(2, 4, 8, 8, seed=seed),) for seed in range(2)]
    exported = export(model, *batches[0])
    found = tq.recovery.equalize(exported)
    assert_equal(model, found, X)
    before, after = (noise(model, converted(each, batches), batches) for each in (exported, found))
    assert before < 15
    assert after > before + 20
    (gain,) = tq.recovery.steps_of(found)[0].gain
    assert gain.node == "conv2d"
    assert gain.after < gain.before


def test_channels_of_about_one_size_are_left_alone() -> None:
    """A quotient of factors of less than 4, unless a smaller one is asked for."""
    exported = export(seeded(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))), normal(2, 8))
    (step,) = tq.recovery.steps_of(tq.recovery.equalize(exported))
    assert dict(step.left)["linear"] == "its channels have ranges of about one size"
    (step,) = tq.recovery.steps_of(tq.recovery.equalize(exported, least=1))
    assert step.applied == ("linear",)


def test_each_equalized_channel_has_one_range_on_both_sides() -> None:
    """As a plain computation says: the root of the product of both ranges."""
    model = seeded(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    with torch.no_grad():
        model[0].weight[2] *= 1000
    written, read = model[0].weight.abs().amax(1), model[2].weight.abs().amax(0)
    found, _ = equalized(model, normal(2, 8))
    state = found.state_dict()
    expected = (written * read).sqrt()
    torch.testing.assert_close(state["0.weight"].abs().amax(1), expected.detach(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(state["2.weight"].abs().amax(0), expected.detach(), rtol=1e-3, atol=1e-6)


def test_a_linear_behind_flatten_reads_each_channel_several_times() -> None:
    """The columns of a channel lie side by side in the linear's weight."""
    model = seeded(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)))
    with torch.no_grad():
        model[0].weight[2] *= 50
    found, step = equalized(model, X)
    assert step.applied == ("conv2d",)
    assert_equal(model, found, X)


def test_a_gate_that_is_not_scaled_is_let_through() -> None:
    """The product of a linear with the activation of another: only the first one has scales."""
    model = seeded(
        Fn(
            lambda m, x: m.down(m.up(x) * functional.silu(m.gate(x))),
            up=nn.Linear(8, 16), gate=nn.Linear(8, 16), down=nn.Linear(16, 8),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.up.weight[5] *= 80
    found, step = equalized(model, normal(3, 5, 8))
    assert step.applied == ("linear",)
    assert dict(step.left)["linear_1"] == "silu (aten.silu.default) is not positively homogeneous"
    assert_equal(model, found, normal(3, 5, 8))


def test_concatenated_channels_have_the_scales_of_their_operators() -> None:
    """Two convolutions before one concatenation, which a third one reads."""
    model = seeded(
        Fn(
            lambda m, x: m.out(torch.cat([torch.relu(m.a(x)), torch.relu(m.b(x))], 1)),
            a=nn.Conv2d(4, 6, 1), b=nn.Conv2d(4, 3, 1), out=nn.Conv2d(9, 2, 1),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.a.weight[1] *= 70
        model.b.weight[2] *= 30
    found, step = equalized(model, X)
    assert step.applied == ("conv2d", "conv2d_1")
    assert_equal(model, found, X)


def test_sizes_stay_dynamic_and_names_stay() -> None:
    """A free batch, the names of the inputs and of the stored tensors."""
    model = seeded(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)))
    with torch.no_grad():
        model[0].weight[0] *= 40
    exported = export(model, X, dynamic_shapes=({0: torch.export.Dim("batch")},))
    found = tq.recovery.equalize(exported)
    assert_equal(model, found, normal(5, 4, 8, 8))
    assert {*found.state_dict()} == {*exported.state_dict}
    assert [node.name for node in found.graph.nodes] == [node.name for node in exported.module().graph.nodes]
    converted(found, [(normal(5, 4, 8, 8),)])


def test_half_precision_stays_finite() -> None:
    """Factors are bounded, so that no weight overflows."""
    model = seeded(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))).half()
    with torch.no_grad():
        model[0].weight[1] = 6e-8
        model[2].weight[:, 1] = 2e4
    found, _ = equalized(model, normal(2, 8).half())
    assert all(bool(value.isfinite().all()) for value in found.state_dict().values())


def subgraph(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear in a branch."""
    return torch.cond(x.sum() > 0, lambda x: m.b(torch.relu(m.a(x))), lambda x: m.b(x), (x,))


def residual(m: Any, x: torch.Tensor) -> torch.Tensor:
    """The output is added to the input."""
    return m.b(torch.relu(m.a(x) + x))


#: Why it is not applied → the function, and the node.
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "relu6 clips at a fixed value, so a scale does not go through it": (
        lambda m, x: m.b(functional.relu6(m.a(x))), "linear",
    ),
    "clamp clips at a fixed value, so a scale does not go through it": (
        lambda m, x: m.b(m.a(x).clamp(0, 2)), "linear",
    ),
    "gelu (aten.gelu.default) is not positively homogeneous": (
        lambda m, x: m.b(functional.gelu(m.a(x))), "linear",
    ),
    "add adds a tensor that has other scales": (residual, "linear"),
    "mul multiplies two tensors that would both be scaled": (
        lambda m, x: m.b((h := m.a(x)) * torch.relu(h)), "linear",
    ),
    "mul_ writes it into a tensor that has other scales": (
        lambda m, x: m.b((h := x + 1).mul_(m.a(x))) + h, "linear",
    ),
    "it is an output of the model": (lambda m, x: (h := m.a(x), m.b(h)), "linear"),
    "softmax (aten.softmax.int) is not positively homogeneous": (
        lambda m, x: m.b(h := m.a(x)) + h.softmax(-1), "linear",
    ),
    "the weight of linear is shared with linear_1": (lambda m, x: m.a(torch.relu(m.a(x))), "linear"),
    "the weight of linear_1 is shared with linear_2": (
        lambda m, x: m.b(torch.relu(m.a(x))) + m.b(x), "linear",
    ),
    "the weight of linear is no constant": (
        lambda m, x: m.b(functional.linear(x, x.new_ones(6, 6) * x.sum())), "linear",
    ),
    "sum_1 reduces over the channels": (lambda m, x: m.b(m.a(x).sum(-1, keepdim=True) * x), "linear"),
    "view mixes channels with another axis": (
        lambda m, x: m.b(torch.relu(m.a(x)).view(6, 3).view(3, 6)), "linear",
    ),
    "linear_1 reads the channels on an axis that its weight does not have": (
        lambda m, x: m.b(torch.relu(m.a(x[:, None].expand(3, 6, 6))).transpose(1, 2)), "linear",
    ),
    "linear_1 has it for a weight": (
        lambda m, x: functional.linear(x, torch.relu(m.a(x))), "linear",
    ),
    "no operator with a weight reads linear": (lambda m, x: m.b(x + m.a(x).shape[0]), "linear"),
    "it is in a subgraph, whose weights are handed in": (subgraph, "true_graph_0.linear"),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_whatever_is_left_alone_says_why(reason: str) -> None:
    """The step names the node and the reason, and the model computes the same bits."""
    function, node = REFUSED[reason]
    model = seeded(Fn(function, a=nn.Linear(6, 6), b=nn.Linear(6, 6)))
    x = normal(3, 6)
    with torch.no_grad():
        model.a.weight[2] *= 100
    _, step = equalized(model, x)
    assert dict(step.left).get(node) == reason
    assert node not in step.applied


def test_a_slice_of_a_weight_is_shared_with_the_whole() -> None:
    """Two stored tensors over the same memory are one."""
    whole = normal(12, 6)
    model = Fn(
        lambda m, x: functional.linear(torch.relu(functional.linear(x, m.first)), m.second),
        first=whole[:6], second=whole[3:9],
    )  # fmt: skip
    found, step = equalized(model, normal(3, 6))
    assert dict(step.left)["linear"] == "the weight of linear is shared with linear_1"
    assert torch.equal(found(X[0, 0, :3, :6]), model(X[0, 0, :3, :6]))


def test_only_a_float_model_is_taken() -> None:
    """A converted model is refused."""
    model = converted(export(seeded(nn.Linear(4, 4)), normal(2, 4)), [(normal(2, 4),)])
    with pytest.raises(tq.ModelError, match="has been converted already"):
        tq.recovery.equalize(model)


def test_batch_norm_is_folded_first() -> None:
    """With a BatchNorm between them, two convolutions are equalized; none is left."""
    model = seeded(
        nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    )
    with torch.no_grad():
        model[1].weight[3] = 100.0
    found, step = equalized(model, X)
    assert step.applied == ("conv2d",)
    assert not calls(found, "batch_norm")
    assert_equal(model, found, X)
