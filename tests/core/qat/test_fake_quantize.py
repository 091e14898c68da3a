"""Fake quantize: its values are those of convert's operators, its gradients those of plain formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchquilt as tq
from strategies import normal, specs, tensors
from torchquilt.graph.batch_norm_folding import Fold
from torchquilt.graph.qdq import operators
from torchquilt.observers import QParams, qparams_of_range
from torchquilt.observers.qparams import as_rows
from torchquilt.pt2e.qat import fake_quantize as module
from torchquilt.pt2e.qat.computed_points import DynamicTrainingPoint
from torchquilt.pt2e.qat.fake_quantize import (
    ChannelFactor,
    as_converted,
    fake_quantize,
    fake_quantize_with_factor,
    learned_fake_quantize,
)
from torchquilt.pt2e.qat.followed_points import WeightPoint
from torchquilt.pt2e.qat.points import Standing
from torchquilt.spec.qspec import Granularity, ZeroPointDomain

SPECS = {
    "per tensor": tq.QuantizationSpec("int8"),
    "per tensor, symmetric": tq.QuantizationSpec("int8", -127, 127, symmetric=True),
    "per tensor, unsigned": tq.QuantizationSpec("uint8"),
    "per tensor, 4 bits": tq.QuantizationSpec("int8", -8, 7, symmetric=True),
    "per tensor, 16 bits": tq.QuantizationSpec("int16"),
    "per axis": tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=0, symmetric=True),
    "per axis 1, affine": tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=1),
    "per axis, float zero point": tq.QuantizationSpec(
        "uint8", granularity="per_axis", ch_axis=0, zero_point_domain="float"
    ),
    "per group, 4 bits": tq.QuantizationSpec(
        "int8", -8, 7, granularity="per_group", group_size=4, symmetric=True
    ),
    "per group, 4 bits, affine": tq.QuantizationSpec("int8", -8, 7, granularity="per_group", group_size=4),
    "per group, float zero point": tq.QuantizationSpec(
        "int8", -8, 7, granularity="per_group", group_size=4, zero_point_domain="float"
    ),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def found_for(tensor: torch.Tensor, spec: tq.QuantizationSpec, share: float = 1.0) -> QParams:
    """The parameters for a share of the range of a tensor; below 1 some values lie outside."""
    rows, shape = as_rows(tensor.float(), spec)
    return qparams_of_range(
        (rows.amin(-1) * share).reshape(shape), (rows.amax(-1) * share).reshape(shape), spec
    )


def broadcast(value: torch.Tensor, spec: tq.QuantizationSpec, shape: torch.Size) -> torch.Tensor:
    """Parameters in the shape of the tensor, one for each element."""
    if spec.group_size is not None:
        return value.repeat_interleave(spec.group_size, -1)
    if spec.ch_axis is not None:
        own = [1] * len(shape)
        own[spec.ch_axis] = -1
        return value.reshape(own).expand(shape)
    return value.expand(shape)


def steps(tensor: torch.Tensor, found: QParams, spec: tq.QuantizationSpec) -> torch.Tensor:
    """Integer of each element before it is rounded."""
    scale, zero_point = (broadcast(one, spec, tensor.shape) for one in (found.scale, found.zero_point))
    return tensor.double() / scale.double() + zero_point.double()


def is_clear(tensor: torch.Tensor, found: QParams, spec: tq.QuantizationSpec) -> torch.Tensor:
    """Mask of elements so far from the middle between two integers that no order of rounding matters."""
    exact = steps(tensor, found, spec)
    return ((exact - exact.floor()) - 0.5).abs() > 1e-2


def seeded() -> torch.Generator:
    """Random numbers that are the same in each run."""
    return torch.Generator().manual_seed(0)


# --- Values -------------------------------------------------------------------------------------------------


@dtypes
@each_spec
def test_the_fast_path_computes_the_values_of_convert(spec: tq.QuantizationSpec, dtype: torch.dtype) -> None:
    """In training the same integers as after convert, wherever no value lies between two of them."""
    tensor = normal(16, 8).to(dtype)
    found = found_for(tensor, spec, 0.7)
    trained = fake_quantize(tensor, found, spec)
    converted = as_converted(tensor, found, spec, is_constant=spec.granularity != "per_tensor")
    clear = is_clear(tensor, found, spec)
    assert trained.dtype == converted.dtype == dtype
    assert float(clear.double().mean()) > 0.9
    unit = torch.finfo(dtype).eps * float(tensor.abs().max())
    assert float((trained - converted)[clear].abs().max()) <= 2 * unit


@dtypes
@each_spec
def test_the_fast_path_is_the_traceable_one(spec: tq.QuantizationSpec, dtype: torch.dtype) -> None:
    """Values and gradients, with and without ``torch.compile``, to the last bit."""
    tensor = normal(16, 8).to(dtype)
    found = found_for(tensor, spec, 0.7)
    results = []
    for path in (fake_quantize, module._traceable):
        leaf = tensor.clone().requires_grad_()
        value = path(leaf, found, spec)
        (value * normal(16, 8, seed=1).to(dtype)).sum().backward()
        results.append((value.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@settings(max_examples=60)
@given(
    specs(("per_tensor", "per_axis", "per_group")),
    tensors((4, 6)),
    st.sampled_from([0.25, 0.9, 1.0, 1.5]),
)
def test_any_spec_has_one_meaning_in_all_paths(
    spec: tq.QuantizationSpec, tensor: torch.Tensor, share: float
) -> None:
    """Fast, traceable and converted values lie within one rounding of float32 of each other."""
    found = found_for(tensor, spec, share)
    clear = is_clear(tensor, found, spec)
    fast = fake_quantize(tensor, found, spec)[clear]
    traceable = module._traceable(tensor, found, spec)[clear]
    converted = as_converted(tensor, found, spec, is_constant=True)[clear]
    assert torch.allclose(fast, converted, rtol=1e-6, atol=1e-6 * float(found.scale.max()))
    assert torch.allclose(traceable, converted, rtol=1e-6, atol=1e-6 * float(found.scale.max()))


def written_out(tensor: torch.Tensor, found: QParams, spec: tq.QuantizationSpec) -> torch.Tensor:
    """Quantize and dequantize by the operators' names, as their documentation has them."""
    call, ends = operators(), (spec.quant_min, spec.quant_max, spec.dtype)
    if spec.granularity == "per_tensor":
        one = (float(found.scale), int(found.zero_point), *ends)
        return call.dequantize_per_tensor(call.quantize_per_tensor(tensor, *one), *one)
    if spec.granularity == "per_axis":
        many = (found.scale, found.zero_point, spec.ch_axis, *ends)
        return call.dequantize_per_channel(call.quantize_per_channel(tensor, *many), *many)
    groups = (found.scale, found.zero_point, *ends, spec.group_size)
    integers = call.quantize_per_channel_group(tensor, *groups)
    return call.dequantize_per_channel_group(integers, *groups, torch.float32)


INTEGER_SPECS = {name: spec for name, spec in SPECS.items() if spec.zero_point_domain != "float"}


@pytest.mark.parametrize("is_constant", [False, True], ids=["activation", "constant"])
@pytest.mark.parametrize("spec", INTEGER_SPECS.values(), ids=INTEGER_SPECS)
def test_evaluation_is_the_operators_of_convert(spec: tq.QuantizationSpec, is_constant: bool) -> None:
    """Bit for bit, for values that lie right between two integers, too."""
    tensor = normal(16, 8)
    found = found_for(tensor, spec, 0.7)
    scale, zero_point = (broadcast(one, spec, tensor.shape) for one in (found.scale, found.zero_point))
    between = (normal(16, 8, seed=1).mul(3).round() + 0.5 - zero_point) * scale
    for values in (tensor, between):
        expected = written_out(values, found, spec)
        assert torch.equal(as_converted(values, found, spec, is_constant=is_constant), expected)


@pytest.mark.parametrize("name", ["per axis, float zero point", "per group, float zero point"])
def test_a_table_with_float_zero_points_has_the_nearest_integers(name: str) -> None:
    """``round(x / scale + zero_point)``, and back, without a detour over a rounded zero point."""
    spec, tensor = SPECS[name], normal(16, 8)
    found = found_for(tensor, spec)
    scale, zero_point = (broadcast(one, spec, tensor.shape) for one in (found.scale, found.zero_point))
    integers = (tensor / scale + zero_point).round().clamp(spec.quant_min, spec.quant_max)
    expected = (integers - zero_point) * scale
    assert torch.equal(as_converted(tensor, found, spec, is_constant=True), expected)
    assert float((expected - tensor).abs().max()) <= float(scale.max()) * 0.5001


# --- Gradients ----------------------------------------------------------------------------------------------


def plain(tensor: torch.Tensor, found: QParams, spec: tq.QuantizationSpec) -> torch.Tensor:
    """Clamp to what is rounded to an integer of the range, then round straight through."""
    scale, zero_point = (broadcast(one, spec, tensor.shape) for one in (found.scale, found.zero_point))
    low = (spec.quant_min - 0.5 - zero_point) * scale
    high = (spec.quant_max + 0.5 - zero_point) * scale
    inside = tensor.float().clamp(low, high)
    integers = (inside / scale + zero_point).round().clamp(spec.quant_min, spec.quant_max)
    value = (integers - zero_point) * scale
    return (inside + (value - inside).detach()).to(tensor.dtype)


@dtypes
@each_spec
def test_gradients_are_those_of_a_plain_formula(spec: tq.QuantizationSpec, dtype: torch.dtype) -> None:
    """In training and in evaluation: autograd of clamp and round, as anybody would write them."""
    tensor = normal(16, 8).to(dtype)
    found = found_for(tensor, spec, 0.5)
    weight = normal(16, 8, seed=1).to(dtype)
    gradients = []
    for path in (plain, fake_quantize, as_converted):
        leaf = tensor.clone().requires_grad_()
        (path(leaf, found, spec) * weight).sum().backward()
        gradients.append(leaf.grad)
    expected, trained, converted = gradients
    assert 0.05 < float((expected == 0).double().mean()) < 0.9
    assert torch.equal(trained, expected)
    assert torch.equal(converted, expected)


@each_spec
def test_gradients_are_finite_differences_over_whole_steps(spec: tq.QuantizationSpec) -> None:
    """Rounding is flat but for its jumps; over one whole step its slope is 1 within the range, 0 beyond."""
    tensor = normal(16, 8)
    found = found_for(tensor, spec, 0.5)
    scale = broadcast(found.scale, spec, tensor.shape)
    exact = steps(tensor, found, spec)
    within = (exact > spec.quant_min + 1) & (exact < spec.quant_max - 1)
    beyond = (exact < spec.quant_min - 1.6) | (exact > spec.quant_max + 1.6)
    leaf = tensor.clone().requires_grad_()
    fake_quantize(leaf, found, spec).sum().backward()
    difference = fake_quantize(tensor + scale, found, spec) - fake_quantize(tensor - scale, found, spec)
    slope = difference / (2 * scale)
    clear = is_clear(tensor, found, spec)
    assert leaf.grad is not None
    assert bool((within & clear).any())
    rounding = float(tensor.abs().max() / scale.min()) * 2.0**-22  # of float32, in steps
    assert torch.allclose(slope[within & clear], leaf.grad[within & clear], atol=rounding)
    assert bool(beyond.any())
    assert torch.equal(slope[beyond], torch.zeros_like(slope[beyond]))
    assert torch.equal(leaf.grad[beyond], torch.zeros_like(slope[beyond]))


def test_where_nothing_can_lie_outside_the_whole_gradient_goes_through() -> None:
    """``clips=False`` says so: no element is looked at."""
    spec, tensor = SPECS["per axis"], normal(16, 8).requires_grad_()
    value = fake_quantize(tensor, found_for(tensor.detach(), spec), spec, clips=False)
    value.backward(normal(16, 8, seed=1))
    assert tensor.grad is not None
    assert torch.equal(tensor.grad, normal(16, 8, seed=1))


# --- Learned scales -----------------------------------------------------------------------------------------


def lsq(
    tensor: torch.Tensor, found: QParams, spec: tq.QuantizationSpec, upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Esser et al. 2020, equations 1 to 3, element by element: the value and the gradient of the step size.

    With a zero point z the range of the paper is shifted: from Q_N = z - quant_min to Q_P = quant_max - z.
    The gradient of each step size is multiplied by 1 / sqrt(N * Q), N the elements that share it.
    """
    rows, _ = as_rows(tensor, spec)
    ups, _ = as_rows(upstream, spec)
    value, gradient = torch.empty(rows.shape), torch.zeros(rows.shape[0])
    for row, (s, z) in enumerate(zip(found.scale.reshape(-1), found.zero_point.reshape(-1), strict=True)):
        below, above = float(z) - spec.quant_min, spec.quant_max - float(z)
        for index, v in enumerate(rows[row] / s):
            if v <= -below:
                value[row, index], slope = -below * s, -below
            elif v >= above:
                value[row, index], slope = above * s, above
            else:
                value[row, index], slope = v.round() * s, float(v.round() - v)
            gradient[row] += ups[row, index] * slope
    return value, gradient


LEARNED = {name: spec for name, spec in INTEGER_SPECS.items() if "16" not in name}


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_of_a_scale_is_that_of_the_paper(name: str) -> None:
    """Value, gradient of the scale with its factor, and the gradient of the tensor, zero where it is cut."""
    spec, tensor, upstream = LEARNED[name], normal(6, 8), normal(6, 8, seed=1)
    found = found_for(tensor, spec, 0.6)
    value, gradient = lsq(tensor, found, spec, upstream)
    leaf, scale = tensor.clone().requires_grad_(), found.scale.clone().requires_grad_()
    result = learned_fake_quantize(leaf, QParams(scale, found.zero_point), spec, is_constant=True)
    result.backward(upstream)

    elements = value.shape[1]
    largest = spec.quant_max if spec.symmetric else spec.quant_max - spec.quant_min
    assert scale.grad is not None
    assert leaf.grad is not None
    rows, _ = as_rows(result.detach(), spec)
    assert torch.allclose(rows, value, rtol=1e-5)
    expected = gradient / math.sqrt(elements * largest)
    assert torch.allclose(scale.grad.reshape(-1), expected, rtol=1e-4, atol=1e-5)
    exact = steps(tensor, found, spec)
    inside = (exact > spec.quant_min) & (exact < spec.quant_max)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.allclose(leaf.grad, torch.where(inside, upstream, 0.0), atol=1e-6)


def test_the_factor_of_an_activation_counts_the_elements_of_one_sample() -> None:
    """So the gradient does not depend on how many samples are in a batch."""
    spec = SPECS["per tensor, symmetric"]
    sample, upstream = normal(1, 32), normal(1, 32, seed=1)
    found = found_for(sample, spec, 0.5)
    gradients = []
    for rows in (1, 4):
        scale = found.scale.clone().requires_grad_()
        value = learned_fake_quantize(sample.repeat(rows, 1), QParams(scale, found.zero_point), spec)
        (value * upstream / rows).sum().backward()
        gradients.append(scale.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5)
    _, expected = lsq(sample, found, spec, upstream)
    assert torch.allclose(gradients[0].reshape(-1), expected / math.sqrt(32 * 127), rtol=1e-4)


@pytest.mark.parametrize("name", ["per tensor", "per axis", "per tensor, 4 bits"])
def test_the_gradient_of_a_scale_beyond_the_range_is_a_finite_difference(name: str) -> None:
    """A value that is cut off is the last integer times the scale: its slope is exact."""
    spec = LEARNED[name]
    tensor = normal(6, 8).sign() * 100
    found = found_for(normal(6, 8), spec)
    h = 1e-2
    outputs = [
        learned_fake_quantize(tensor, QParams(found.scale * (1 + sign * h), found.zero_point), spec)
        for sign in (1, -1)
    ]
    slope = (outputs[0] - outputs[1]) / broadcast(found.scale * 2 * h, spec, tensor.shape)
    leaf = found.scale.clone().requires_grad_()
    result = learned_fake_quantize(tensor, QParams(leaf, found.zero_point), spec, is_constant=True)
    result.sum().backward()
    rows, _ = as_rows(slope, spec)
    largest = spec.quant_max if spec.symmetric else spec.quant_max - spec.quant_min
    assert leaf.grad is not None
    expected = rows.sum(-1) / math.sqrt(rows.shape[1] * largest)
    assert torch.allclose(leaf.grad.reshape(-1), expected, rtol=1e-3)


# --- Dynamic ------------------------------------------------------------------------------------------------


@dtypes
def test_dynamic_per_token_is_the_operators_of_convert(dtype: torch.dtype) -> None:
    """In training and in evaluation: each row by its own range, and the whole gradient goes through."""
    spec = tq.QuantizationSpec("int8", granularity="per_token", is_dynamic=True)
    point = DynamicTrainingPoint(spec, Standing(("x",), ()))
    tensor = (normal(3, 5, 8) * torch.tensor([1.0, 10.0, 0.1]).reshape(3, 1, 1)).to(dtype)
    call = operators()
    found = call.choose_qparams_per_token_asymmetric(tensor.float(), torch.int8)
    expected = call.dequantize_per_token(
        call.quantize_per_token(tensor, *found, -128, 127, torch.int8), *found, -128, 127, torch.int8, dtype
    )
    for is_training in (True, False):
        leaf = tensor.clone().requires_grad_()
        value = point.train(is_training)(leaf)
        assert torch.equal(value, expected)
        value.backward(normal(3, 5, 8, seed=1).to(dtype))
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, normal(3, 5, 8, seed=1).to(dtype))


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_dynamic_per_tensor_is_the_operators_of_convert(symmetric: bool) -> None:
    """The range of the whole input, anew each time."""
    ends: Any = (-127, 127) if symmetric else (-128, 127)
    spec = tq.QuantizationSpec("int8", *ends, is_dynamic=True, symmetric=symmetric)
    point = DynamicTrainingPoint(spec, Standing(("x",), ()))
    call = operators()
    choose = call.choose_qparams_symmetric.tensor if symmetric else call.choose_qparams.tensor
    for size in (1.0, 30.0):
        tensor = normal(4, 8) * size
        found = choose(tensor, *ends, spec.eps, torch.int8)
        integers = call.quantize_per_tensor.tensor(tensor, *found, *ends, torch.int8)
        expected = call.dequantize_per_tensor.tensor(integers, *found, *ends, torch.int8)
        assert torch.equal(point.train()(tensor), expected)
        assert torch.equal(point.eval()(tensor), expected)


@pytest.mark.parametrize("name", ["per axis 1, affine", "per group, 4 bits, affine", "per tensor"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_ends_of_the_range_are_found_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """The last integer of a range goes on to learn: half precision is not what tells inside from outside."""
    spec = SPECS[name]
    tensor = (
        (torch.linspace(-1, 0.9, 64 * 8)[torch.randperm(512, generator=seeded())]).reshape(64, 8).to(dtype)
    )
    found = found_for(tensor, spec, 0.97)
    leaf = tensor.clone().requires_grad_()
    fake_quantize(leaf, found, spec).sum().backward()
    exact = steps(tensor, found, spec)
    inside = (exact > spec.quant_min - 0.5) & (exact < spec.quant_max + 0.5)
    assert leaf.grad is not None
    clear = is_clear(tensor, found, spec)
    assert 0 < int((inside & clear).sum()) < int(clear.sum())
    assert torch.equal((leaf.grad != 0)[clear], inside[clear])


def test_specs_here_cover_each_granularity_and_domain() -> None:
    """A granularity or a domain that is new has to get a row in the table of this file."""
    assert {spec.granularity for spec in SPECS.values()} == {*Granularity} - {Granularity.PER_TOKEN}
    assert {spec.zero_point_domain for spec in SPECS.values()} == {*ZeroPointDomain}


ROWS = {
    "per axis": (SPECS["per axis"], 0),
    "per axis, fewer integers below zero": (
        tq.QuantizationSpec("int8", -8, 7, "per_axis", ch_axis=0, symmetric=True),
        0,
    ),
    "per axis, transposed": (
        tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=1, symmetric=True),
        1,
    ),
    "per tensor": (SPECS["per tensor, symmetric"], 0),
}


def weight_and_factor() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and a factor for each of its channels, some of them negative."""
    random = seeded()
    weight = torch.randn(6, 6, 3, 3, generator=random, requires_grad=True)
    factor = torch.linspace(-2.0, 2.0, 6) + 0.1
    return weight, factor.requires_grad_()


@pytest.mark.parametrize("share", [1.0, 0.6], ids=["own range", "clipped"])
@pytest.mark.parametrize("name", ROWS)
def test_a_factor_around_rounding_is_that_of_the_plain_formula(name: str, share: float) -> None:
    """Values, and the gradients of weight and factor, of ``fake_quantize(W * s) / s``."""
    spec, groups = ROWS[name]
    around_of = Fold(1e-5, groups)
    given = torch.randn(6, 6, 3, 3, generator=seeded())
    found = []
    for is_fused in (True, False):
        weight, factor = weight_and_factor()
        around = ChannelFactor(around_of, factor)
        qparams = found_for(around.put_in(weight.detach()).detach(), spec, share)
        if is_fused:
            value = fake_quantize_with_factor(weight, qparams, spec, around)
        else:
            value = around.take_out(fake_quantize(around.put_in(weight), qparams, spec))
        value.backward(given)
        found.append((value.detach(), weight.grad, factor.grad))

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_factor_around_rounding_keeps_no_tensor_of_the_size_of_the_weight_but_the_result() -> None:
    """For the backward pass: a model may have more weights than activations."""
    weight, factor = weight_and_factor()
    around, kept = ChannelFactor(Fold(1e-5), factor), []
    qparams = found_for(around.put_in(weight.detach()).detach(), SPECS["per axis"])
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        value = fake_quantize_with_factor(weight, qparams, SPECS["per axis"], around)

    large = {one.data_ptr() for one in kept if one.numel() == weight.numel()}
    assert large == {weight.data_ptr(), value.data_ptr()}


@pytest.mark.parametrize("name", ROWS)
def test_the_range_of_a_weight_with_a_factor_is_that_of_their_product(name: str) -> None:
    """Bit for bit, though the product of all elements need not be computed for it."""
    spec, groups = ROWS[name]
    weight, factor = weight_and_factor()
    around = ChannelFactor(Fold(1e-5, groups), factor)
    shape = () if spec.ch_axis is None else (6,)
    points = [WeightPoint(spec, Standing((), ()), shape) for _ in range(2)]
    points[0].observe_with(weight.detach(), around)
    points[1].observe_with(around.put_in(weight).detach(), None)

    assert torch.equal(points[0].scale, points[1].scale)
    assert float(points[0].scale.min()) > 0


@pytest.mark.parametrize("name", [name for name in SPECS if name != "per tensor, 16 bits"])
def test_a_scale_that_moves_before_the_backward_pass_does_not_move_the_gradient(name: str) -> None:
    """As of a model that is called twice for one loss: points move their parameters in place."""
    spec = SPECS[name]
    tensor = torch.randn(6, 8, generator=seeded(), requires_grad=True)
    found = found_for(tensor.detach(), spec, 0.5)
    (expected,) = torch.autograd.grad(fake_quantize(tensor, found, spec).sum(), tensor)
    value = fake_quantize(tensor, found, spec)
    found.scale.mul_(10.0)
    found.zero_point.add_(1)
    (gradient,) = torch.autograd.grad(value.sum(), tensor)

    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(gradient, expected)
