"""Observers: what moves a range and what does not, merging, and the parameters that come of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchquilt as tq
from observed import FLOATS, INT8, PER_ROW, SMALL, observed, round_trip, same_state, squared_error
from strategies import normal, not_data, ordinary, specs, tensors
from torchquilt.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    Observer,
    PercentileObserver,
    make_observer,
    qparams_of_range,
)

both = pytest.mark.parametrize("kind", [MinMaxObserver, HistogramObserver])
MERGEABLE = [MinMaxObserver, HistogramObserver, PercentileObserver, EntropyObserver]
mergeable = pytest.mark.parametrize("kind", MERGEABLE)
every = pytest.mark.parametrize("kind", [*MERGEABLE, MovingAverageObserver])


# ----------------------------------------------------------------------------------------------------------
# What moves a range
# ----------------------------------------------------------------------------------------------------------


def test_min_max_is_the_range() -> None:
    """Smallest and largest of all that was seen."""
    low, high = observed(MinMaxObserver, torch.tensor([1.0, -2.0]), torch.tensor([[5.0], [0.5]])).range()
    assert (float(low), float(high)) == (-2.0, 5.0)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_min_max_of_each_index_of_an_axis(axis: int) -> None:
    """Per axis there is one range for each index, over all other dimensions."""
    spec = tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=axis)
    x = normal(3, 4, 5)
    low, high = observed(MinMaxObserver, x, spec=spec).range()
    others = tuple(dim for dim in range(3) if dim != axis % 3)
    assert torch.equal(low, x.amin(others))
    assert torch.equal(high, x.amax(others))


def test_min_max_of_each_group() -> None:
    """Per group there is one range for each run along the last dimension."""
    spec = tq.QuantizationSpec("int8", granularity="per_group", group_size=2)
    x = normal(3, 4)
    low, high = observed(MinMaxObserver, x, spec=spec).range()
    assert torch.equal(low, x.reshape(3, 2, 2).amin(2))
    assert torch.equal(high, x.reshape(3, 2, 2).amax(2))


@every
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "finfo.min", "finfo.max", "finfo.min + a score"])
def test_what_is_no_data_is_ignored_and_counted(kind: type[Observer], dtype: torch.dtype, value: str) -> None:
    """NaN, infinities and mask values of the tensor's own type leave parameters as they were."""
    limits = torch.finfo(dtype)
    number = {
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "finfo.min": limits.min,
        "finfo.max": limits.max,
        "finfo.min + a score": limits.min * 0.75,
    }[value]
    data = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=dtype)
    masked = torch.tensor([0.5, number, -1.0, 2.0, number, 0.25], dtype=dtype)
    clean, dirty = observed(kind, data), observed(kind, masked)
    assert (dirty.count, dirty.ignored) == (4, 2)
    assert {"nan": dirty.nan, "inf": dirty.infinite}.get(value.lstrip("-"), dirty.masked) == 2
    assert torch.equal(dirty.qparams().scale, clean.qparams().scale)
    assert torch.equal(dirty.qparams().zero_point, clean.qparams().zero_point)


@every
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_tensor_of_nothing_but_masks_is_no_data(kind: type[Observer], dtype: torch.dtype) -> None:
    """The observer says that it saw no data, and how many masks."""
    observer = observed(kind, torch.full((3, 2), torch.finfo(dtype).min, dtype=dtype))
    assert not observer.has_data
    with pytest.raises(tq.CalibrationError, match="6 NaN"):
        observer.qparams()


@every
def test_an_observer_that_saw_nothing_says_so(kind: type[Observer]) -> None:
    """No parameters are made up."""
    with pytest.raises(tq.CalibrationError, match="no data"):
        kind(INT8).qparams()


@every
@pytest.mark.parametrize(
    "tensor", [torch.empty(0), torch.empty(3, 0), torch.tensor([1, 2]), torch.tensor([True])], ids=str
)
def test_empty_and_integer_tensors_change_nothing(kind: type[Observer], tensor: torch.Tensor) -> None:
    """An empty batch is harmless, and so is what cannot be quantized."""
    observer = observed(kind, torch.tensor([1.0, 2.0]))
    reference = observed(kind, torch.tensor([1.0, 2.0]))
    observer.update(tensor)
    assert same_state(observer, reference)


@mergeable
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, 1e-30, 1e-42, 1e4])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_a_constant_tensor_comes_back(kind: type[Observer], value: float, shape: tuple[int, ...]) -> None:
    """One value, or many equal ones, gives a scale above zero, and comes back within half a step of it."""
    x = torch.full(shape, value)
    found = observed(kind, x).qparams()
    assert float(found.scale) > 0
    assert torch.allclose(round_trip(x, found, INT8), x, atol=float(found.scale) * 0.501)


@every
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_float_type_of_the_data_does_not_matter(kind: type[Observer], dtype: torch.dtype) -> None:
    """The same numbers in another float type have the same parameters, which are float32."""
    x = (normal(100) * 4).to(torch.float16).to(torch.bfloat16)
    found, reference = observed(kind, x.to(dtype)).qparams(), observed(kind, x.float()).qparams()
    assert found.scale.dtype is torch.float32
    assert torch.equal(found.scale, reference.scale)
    assert torch.equal(found.zero_point, reference.zero_point)


@every
def test_float64_beyond_float32_makes_no_infinite_scale(kind: type[Observer]) -> None:
    """A number that float32 cannot hold is no data, since parameters are float32."""
    found = observed(kind, torch.tensor([1.0, 2.0, 1e300], dtype=torch.float64)).qparams()
    assert math.isfinite(float(found.scale))


def test_a_row_without_data_is_all_zero() -> None:
    """Per axis, a row of masks beside rows with data gets parameters that do no harm."""
    x = torch.tensor([[1.0, -2.0], [math.nan, math.inf]])
    observer = observed(MinMaxObserver, x, spec=PER_ROW)
    assert (observer.count, observer.ignored) == (2, 2)
    low, high = observer.range()
    assert low.tolist() == [-2.0, 0.0]
    assert high.tolist() == [1.0, 0.0]
    assert bool((observer.qparams().scale > 0).all())


# ----------------------------------------------------------------------------------------------------------
# The histogram's range
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("far", "share"),
    [(-1e4, 500), (-32768.0, 500), (-65504.0, 20), (-1e9, 1), (1e9, 1), (-1e30, 500), (1e30, 500)],
)
def test_values_that_stand_far_apart_do_not_stretch_the_range(far: float, share: int) -> None:
    """Scores with -10,000 added to the masked ones are quantized by the range of the scores."""
    scores = normal(1000)
    observer = observed(HistogramObserver, torch.cat([scores, torch.full((share,), far)]))
    low, high = observer.range()
    assert float(low) >= -5
    assert float(high) <= 5
    assert squared_error(scores, observer) < 1000 * (8 / 255) ** 2 / 6


@pytest.mark.parametrize(("far", "share"), [(9000.0, 1), (-9000.0, 1), (1e4, 500)])
def test_large_activations_are_data(far: float, share: int) -> None:
    """A few large values of either sign, as language models have them, and many positive ones stay."""
    observer = observed(HistogramObserver, torch.cat([normal(1000), torch.full((share,), far)]))
    low, high = observer.range()
    assert float(low if far < 0 else high) == pytest.approx(far)


@pytest.mark.parametrize("shape", ["most channels", "both signs", "spread"])
def test_channels_of_large_numbers_beside_a_small_one_are_data(shape: str) -> None:
    """A deep network whose activations grow: one channel stayed small, the others are ten million."""
    small = normal(1000) * 0.01
    large = {
        "most channels": torch.full((3000,), 1e7),
        "both signs": torch.cat([torch.full((300,), 1e7), torch.full((300,), -2e7)]),
        "spread": -torch.linspace(1e6, 3e7, 300),
    }[shape]
    low, high = observed(HistogramObserver, torch.cat([small, large])).range()
    assert float(low) <= float(large.min().clamp(max=0)) * 0.8
    assert float(high) >= float(large.max().clamp(min=0)) * 0.8


def test_large_values_that_are_all_there_is_keep_their_range() -> None:
    """Nothing is left out where there is no gap: a tensor of large numbers is quantized as it is."""
    x = normal(1000) * 1e5
    observer = observed(HistogramObserver, x)
    low, high = observer.range()
    assert float(high - low) > 3e5


def test_large_values_beside_zeros_keep_their_range() -> None:
    """Zeros do not make everything else look far away."""
    x = torch.cat([torch.zeros(1000), torch.tensor([5e4, 6e4])])
    assert float(observed(HistogramObserver, x).range()[1]) == 6e4


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("student", 1.05),
        ("laplace", 1.05),
        ("lognormal", 1.05),
        ("outlier", 1.05),
        ("normal", 1.05),
        # Without a tail there is nothing to gain, and bins do not say where in them a value is.
        ("uniform", 1.12),
        ("relu", 1.12),
    ],
)
def test_the_histogram_costs_no_more_than_min_max(
    name: str, factor: float, seed: int, bits: int, symmetric: bool
) -> None:
    """Its squared error is at most a twentieth above min-max's, without a tail to clip an eighth."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(20_000, generator=generator)
    uniform = torch.rand(20_000, generator=generator)
    x = {
        "student": base / (torch.randn(20_000, generator=generator).square() + 0.05).sqrt(),
        "laplace": base.sign() * -torch.log(uniform + 1e-6),
        "lognormal": torch.exp(base),
        "normal": base,
        "uniform": uniform * 2 - 1,
        "relu": base.relu(),
        "outlier": torch.cat([base, torch.tensor([25.0])]),
    }[name]
    half = 2 ** (bits - 1)
    spec = tq.QuantizationSpec("int8", -half, half - 1, symmetric=symmetric)
    parts = x.split(SMALL)
    histogram, minmax = observed(HistogramObserver, *parts, spec=spec), observed(MinMaxObserver, x, spec=spec)
    assert squared_error(x, histogram) <= squared_error(x, minmax) * factor * (1 + 1e-6)


@pytest.mark.parametrize(("bits", "factor"), [(4, 0.2), (8, 0.95)])
def test_the_histogram_beats_min_max_on_heavy_tails(bits: int, factor: float) -> None:
    """A few large values cost min-max most of its steps; the histogram clips them where that is cheaper."""
    x = torch.cat([normal(100_000), torch.tensor([30.0, -28.0])])
    spec = tq.QuantizationSpec("int8", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    histogram, minmax = observed(HistogramObserver, x, spec=spec), observed(MinMaxObserver, x, spec=spec)
    assert squared_error(x, histogram) < factor * squared_error(x, minmax)


@settings(max_examples=40)
@given(tensors((12,)), specs())
def test_the_histogram_stays_inside_of_what_was_seen(x: torch.Tensor, spec: tq.QuantizationSpec) -> None:
    """Its range is part of min-max's (with zero), for any data and any spec."""
    low, high = observed(HistogramObserver, x, spec=spec).range()
    assert min(float(x.min()), 0.0) <= float(low) <= 0.0 <= float(high) <= max(float(x.max()), 0.0)


# ----------------------------------------------------------------------------------------------------------
# Merging and state
# ----------------------------------------------------------------------------------------------------------

#: Of all float types; the values that are no data are those of float32, so some become ordinary in float64.
chunks = st.lists(
    st.builds(torch.Tensor.to, tensors((2, 3), ordinary | not_data), st.sampled_from(FLOATS)),
    min_size=1,
    max_size=6,
)


@mergeable
@settings(max_examples=40)
@given(chunks, st.data())
def test_any_split_in_any_order_merges_to_the_same_state(
    kind: type[Observer], data: list[torch.Tensor], draw: st.DataObject
) -> None:
    """However the data is split over observers, and in whatever order they are merged: the same bits."""
    spec = PER_ROW if kind is MinMaxObserver and draw.draw(st.booleans()) else INT8
    whole = observed(kind, *data, spec=spec)
    order = draw.draw(st.permutations(data))
    shards = draw.draw(st.lists(st.integers(0, 3), min_size=len(data), max_size=len(data)))
    parts = [
        observed(kind, *(x for x, shard in zip(order, shards, strict=True) if shard == number), spec=spec)
        for number in range(4)
    ]
    merged = parts[0]
    for part in draw.draw(st.permutations(parts[1:])):
        merged.merge(part)
    assert same_state(merged, whole)


@mergeable
@settings(max_examples=25)
@given(chunks, chunks, chunks)
def test_merging_is_associative(
    kind: type[Observer], a: list[torch.Tensor], b: list[torch.Tensor], c: list[torch.Tensor]
) -> None:
    """(a + b) + c is a + (b + c)."""
    left, tail = observed(kind, *a), observed(kind, *b)
    left.merge(observed(kind, *b))
    left.merge(observed(kind, *c))
    tail.merge(observed(kind, *c))
    right = observed(kind, *a)
    right.merge(tail)
    assert same_state(left, right)


@mergeable
def test_merging_leaves_the_other_one_alone(kind: type[Observer]) -> None:
    """An observer that was merged in goes on by itself, and the first one does not follow it."""
    one, other = observed(kind, torch.tensor([1.0])), observed(kind, torch.tensor([2.0]))
    one.merge(other)
    reference = kind.from_state(INT8, one.state())
    other.update(torch.tensor([100.0, -100.0]))
    assert same_state(one, reference)
    one.update(torch.tensor([-3.0]))
    assert float(other.low) == -100.0


@pytest.mark.parametrize(
    "other",
    [MinMaxObserver(tq.QuantizationSpec("uint8")), HistogramObserver(INT8)],
    ids=["another spec", "another kind"],
)
def test_different_observers_are_not_merged(other: Any) -> None:
    """The error says what both of them are."""
    with pytest.raises(tq.CalibrationError) as caught:
        MinMaxObserver(INT8).merge(other)
    assert "MinMaxObserver for int8" in str(caught.value.expected)
    assert type(other).__name__ in str(caught.value.got)


def test_a_moving_average_is_not_merged() -> None:
    """The order of the data is not known any more: the error says what can be merged."""
    x = torch.tensor([1.0, 2.0])
    with pytest.raises(tq.CalibrationError, match="order of the data") as caught:
        observed(MovingAverageObserver, x).merge(observed(MovingAverageObserver, x))
    assert "histogram" in str(caught.value.remedy)


@pytest.mark.parametrize("spec", [INT8, PER_ROW], ids=str)
def test_the_moving_average_is_torchs(spec: tq.QuantizationSpec) -> None:
    """Low and high move as torch's own do; a tensor of nothing but masks moves nothing."""
    from torch.ao.quantization import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

    reference = (
        MovingAverageMinMaxObserver(averaging_constant=0.1)
        if spec is INT8
        else MovingAveragePerChannelMinMaxObserver(averaging_constant=0.1, ch_axis=0)
    )
    observer = MovingAverageObserver(spec, 0.1)
    for seed in range(5):
        x = normal(3, 7, seed=seed) * (seed + 1)
        observer.update(x)
        observer.update(torch.full((3, 7), -torch.inf))
        reference(x)
    assert torch.allclose(observer.low, reference.min_val)
    assert torch.allclose(observer.high, reference.max_val)


@every
def test_an_observer_goes_on_from_its_state(kind: type[Observer]) -> None:
    """state, from_state and more data is the same as all the data at once; the state is plain values."""
    first, second = normal(50), normal(50, seed=1) * 3
    state = observed(kind, first).state()
    assert all(isinstance(value, (int, float, torch.Tensor)) for value in state.values())
    resumed = kind.from_state(INT8, state)
    resumed.update(second)
    assert same_state(resumed, observed(kind, first, second))


@every
def test_a_state_is_what_was_seen_when_it_was_taken(kind: type[Observer]) -> None:
    """An observer that goes on does not change a state that it gave before."""
    x = torch.tensor([1.0, -1.0])
    observer = observed(kind, x)
    state = observer.state()
    observer.update(x * 100)
    assert same_state(kind.from_state(INT8, state), observed(kind, x))


@every
def test_two_observers_of_one_state_are_apart(kind: type[Observer]) -> None:
    """from_state copies."""
    state = observed(kind, torch.tensor([1.0])).state()
    one, other = kind.from_state(INT8, state), kind.from_state(INT8, state)
    one.update(torch.tensor([50.0]))
    assert float(other.high) == 1.0
    assert other.count == 1


@both
def test_the_caller_may_write_to_a_tensor_that_was_observed(kind: type[Observer]) -> None:
    """Observers keep what they saw by value."""
    x = torch.tensor([4.0])
    observer = observed(kind, x)
    x.fill_(1000.0)
    assert float(observer.range()[1]) == 4.0


# ----------------------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------------------

ranges = st.tuples(ordinary, ordinary).map(sorted)


@settings(max_examples=150)
@given(specs(), ranges)
def test_parameters_make_sense(spec: tq.QuantizationSpec, ends: list[float]) -> None:
    """Scale at least eps and finite, zero point an integer of the range, and 0.0 comes back exactly."""
    found = qparams_of_range(torch.tensor(ends[0]), torch.tensor(ends[1]), spec)
    assert found.scale.dtype is torch.float32
    assert found.zero_point.dtype is torch.int64
    assert spec.eps <= float(found.scale) < math.inf
    assert spec.quant_min <= int(found.zero_point) <= spec.quant_max
    assert float(round_trip(torch.zeros(1), found, spec)) == 0.0
    if spec.symmetric:
        assert int(found.zero_point) == spec.zero_point


@settings(max_examples=150)
@given(specs(), ranges, st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_inside_the_range_the_error_is_half_a_step(
    spec: tq.QuantizationSpec, ends: list[float], positions: list[float]
) -> None:
    """Quantize → dequantize moves a value within the range by half a scale at most."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    found = qparams_of_range(torch.tensor(low), torch.tensor(high), spec)
    scale, zero_point = float(found.scale), int(found.zero_point)
    # Within the range: the rounding of the zero point may move an end by half a step.
    reached = [(end - zero_point) * scale for end in (spec.quant_min, spec.quant_max)]
    x = torch.tensor([low + (high - low) * position for position in positions], dtype=torch.float32)
    x = x.clamp(*reached)
    error = (round_trip(x, found, spec) - x).abs()
    assert bool((error <= scale / 2 + 1e-6 * x.abs() + 1e-30).all())


@settings(max_examples=60)
@given(specs(), ranges)
def test_integers_cover_the_whole_range(spec: tq.QuantizationSpec, ends: list[float]) -> None:
    """Affine integers cover low … high up to half a step, symmetric ones up to the middle of its range."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    found = qparams_of_range(torch.tensor(low), torch.tensor(high), spec)
    scale, zero_point = float(found.scale), int(found.zero_point)
    if not spec.symmetric:
        slack = 0.5 * scale * (1 + 1e-4) + 1e-6 * (high - low)
        assert (spec.quant_min - zero_point) * scale <= low + slack
        assert (spec.quant_max - zero_point) * scale >= high - slack


@settings(max_examples=60)
@given(specs(granularities=("per_axis",)), tensors((3, 4)))
def test_each_row_has_the_parameters_of_that_row_alone(spec: tq.QuantizationSpec, x: torch.Tensor) -> None:
    """Per axis is per tensor for each index of the axis, in the bits of scale and zero point."""
    found = observed(MinMaxObserver, x, spec=spec).qparams()
    alone = tq.QuantizationSpec(
        spec.dtype, spec.quant_min, spec.quant_max, symmetric=spec.symmetric, eps=spec.eps
    )
    for row in range(3):
        single = observed(MinMaxObserver, x[row], spec=alone).qparams()
        assert torch.equal(found.scale[row], single.scale)
        assert torch.equal(found.zero_point[row], single.zero_point)


def test_a_float_zero_point_keeps_the_range_as_it_is() -> None:
    """An embedding row from 3 to 4 uses all steps between 3 and 4: no integer need stand for 0.0."""
    spec = tq.QuantizationSpec("uint8", granularity="per_axis", ch_axis=0, zero_point_domain="float")
    found = qparams_of_range(torch.tensor([3.0]), torch.tensor([4.0]), spec)
    assert float(found.scale) == pytest.approx(1 / 255)
    assert float((0 - found.zero_point) * found.scale) == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        tq.QuantizationSpec("int8"),
        tq.QuantizationSpec("int8", symmetric=True),
        tq.QuantizationSpec("int8", -127, 127, symmetric=True),
        tq.QuantizationSpec("uint8", symmetric=True),
        tq.QuantizationSpec("uint8", 0, 127),
    ],
    ids=str,
)
def test_parameters_agree_with_torch(spec: tq.QuantizationSpec) -> None:
    """The formulas are those of torch's own observers, to the last bit."""
    from torch.ao.quantization import MinMaxObserver as Reference

    scheme = torch.per_tensor_symmetric if spec.symmetric else torch.per_tensor_affine
    for seed in range(20):
        x = normal(30, seed=seed) * 10 ** (seed % 5 - 2) + seed % 3
        # A range that is given explicitly moves torch's symmetric zero point of uint8 to 127.
        whole = spec.quant_max - spec.quant_min == 255
        limits = {} if whole else {"quant_min": spec.quant_min, "quant_max": spec.quant_max}
        reference = Reference(spec.dtype, scheme, **limits)
        reference(x)
        scale, zero_point = reference.calculate_qparams()
        observer = make_observer("minmax", spec)
        observer.update(x)
        found = observer.qparams()
        assert torch.equal(found.scale, scale.reshape(()))
        assert int(found.zero_point) == int(zero_point)


@pytest.mark.parametrize("name", ["histogram", "percentile", "percentile:99.99", "entropy"])
def test_a_histogram_asked_for_rows_is_min_max(name: str) -> None:
    """make_observer falls back to min-max where a tensor has several sets of parameters."""
    assert type(make_observer(name, PER_ROW)) is MinMaxObserver
    assert isinstance(make_observer(name, INT8), HistogramObserver)


@pytest.mark.parametrize("spec", [INT8, PER_ROW], ids=str)
def test_the_number_behind_a_name_is_used(spec: tq.QuantizationSpec) -> None:
    """percentile:99.99 and moving_average:0.5 make what they say."""
    made = make_observer("percentile:99.99", INT8), make_observer("moving_average:0.5", spec)
    assert isinstance(made[0], PercentileObserver)
    assert isinstance(made[1], MovingAverageObserver)
    assert (made[0].percentile, made[1].share) == (99.99, 0.5)


@pytest.mark.parametrize("spec", [INT8, PER_ROW], ids=str)
@pytest.mark.parametrize(
    "name", ["mse", "minmax:3", "percentile:", "percentile:many", "percentile:101", "moving_average:0", None]
)
def test_a_name_that_makes_no_observer_is_refused(name: Any, spec: tq.QuantizationSpec) -> None:
    """Whatever is wrong with it, and for whatever tensor, the error says what would do."""
    with pytest.raises(tq.CalibrationError) as caught:
        make_observer(name, spec)
    assert caught.value.expected is not None


def test_a_histogram_of_rows_is_refused() -> None:
    """Asked for by its class, it says that it is per tensor, instead of mixing the rows up."""
    with pytest.raises(tq.CalibrationError, match="whole tensor"):
        HistogramObserver(PER_ROW)


def test_a_function_may_make_the_observer() -> None:
    """It is given the spec, and what it makes is used."""
    made = make_observer(MinMaxObserver, PER_ROW)
    assert made.spec == PER_ROW
