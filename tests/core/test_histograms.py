"""Histograms: what they keep and read of the data, and the ranges that are read from them."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchquilt as tq
from observed import INT8, SMALL, observed, same_state, squared_error
from strategies import export, normal, ordinary, specs, tensors
from torchquilt.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    Observer,
    PercentileObserver,
    qparams_together,
    search,
)
from torchquilt.observers.subset import LARGE_MAP_STEP, STEP, step_for
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

KINDS = [HistogramObserver, PercentileObserver, EntropyObserver]
every = pytest.mark.parametrize("kind", KINDS)

# ----------------------------------------------------------------------------------------------------------
# What is kept
# ----------------------------------------------------------------------------------------------------------


def bytes_of(state: dict[str, object]) -> int:
    """Bytes of memory that a state takes, an int or a float counting as eight."""
    return sum(x.numel() * x.element_size() if isinstance(x, torch.Tensor) else 8 for x in state.values())


@every
def test_a_histogram_is_at_most_32_kib(kind: type[Observer]) -> None:
    """Whatever the data: every float32 that begins with other bits, in one tensor and in many."""
    observer = kind(INT8)
    every_bin = (torch.arange(4096, dtype=torch.int32) << 20).view(torch.float32)
    for scale in (1.0, 1.03, -1.07):
        observer.update(every_bin * scale)
    observer.update(normal(300_000) * 1e30)
    assert observer.has_data
    assert bytes_of(observer.state()) <= 32 * 1024


@every
def test_a_state_that_is_written_is_small_as_well(kind: type[Observer]) -> None:
    """No view of something larger hides in it."""
    file = io.BytesIO()
    torch.save(observed(kind, normal(100_000)).state(), file)
    assert file.tell() < 36 * 1024


# ----------------------------------------------------------------------------------------------------------
# What is read of a large tensor
# ----------------------------------------------------------------------------------------------------------

LARGE = [SMALL + 1, 131_072, 147_456, 150_528, 196_608, 128 * 768 * 4, 200_003]


@pytest.mark.parametrize("size", LARGE)
def test_the_extremes_of_a_large_tensor_are_exact(size: int) -> None:
    """Wherever the smallest and the largest value are, they are found, and every value is counted."""
    for index in (0, size // 3, size - 1):
        x = normal(size)
        x[index], x[index - 1] = 77.0, -55.0
        observer = observed(HistogramObserver, x)
        assert (float(observer.low), float(observer.high), observer.count) == (-55.0, 77.0, size)


@pytest.mark.parametrize("size", [1, 100, SMALL])
def test_a_small_tensor_is_read_as_a_whole(size: int) -> None:
    """Up to 99,999 values each counts once."""
    observer = observed(HistogramObserver, normal(size))
    assert int(observer.counts.sum()) == size
    assert int(observer.counts.max()) < max(size // 10, 2)


@pytest.mark.parametrize("size", LARGE)
def test_a_part_of_a_large_tensor_is_read_and_stands_for_all(size: int) -> None:
    """About every eighth value or more (of maps some thousands) is read, and counts for those around it."""
    for shape, most in (((size,), STEP), ((1, 1, 1, size), LARGE_MAP_STEP)):
        step = step_for(size, len(shape))
        assert step <= most + 8
        assert size // step >= 3000
        counted = int(observed(HistogramObserver, normal(*shape)).counts.sum())
        assert size - step < counted <= size


def test_of_a_map_of_features_a_smaller_part_is_read() -> None:
    """From 10,000 values on a part of some thousands, and of the largest ones never less than a 64th."""
    small = observed(HistogramObserver, torch.ones(1, 15, 25, 25))
    assert int(small.counts.sum()) == 15 * 25 * 25
    for shape in ((1, 24, 56, 56), (1, 384, 14, 14), (1, 960, 7, 7), (2, 2, 8, 28, 28), (1, 96, 112, 112)):
        size = math.prod(shape)
        assert 3000 <= size // step_for(size, len(shape)) <= 20_000
    assert size // 20_000 <= step_for(size, 4) < size // 20_000 + 8
    assert 64 <= step_for(100 * size, 4) < 64 + 8


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        (shape, dim)
        for shape in [
            *((8, 12, 4096), (96, 56, 56), (1, 128, 3072), (12, 128, 128)),
            *((1, 24, 56, 56), (1, 384, 14, 14), (1, 960, 7, 7), (2, 64, 28, 28)),
        ]
        for dim in range(len(shape))
        if shape[dim] > 1
    ],
)
def test_what_is_read_lies_evenly_over_every_dimension(shape: tuple[int, ...], dim: int) -> None:
    """A tensor that is 2.0 at some indices of one dimension and 1.0 elsewhere is counted as it is."""
    x = torch.ones(shape)
    x.movedim(dim, 0)[::4] = 2.0
    share = len(range(0, shape[dim], 4)) / shape[dim]
    observer = observed(HistogramObserver, x)
    (larger,) = (observer.counts[observer.counts.nonzero().max()].tolist(),)
    assert larger / int(observer.counts.sum()) == pytest.approx(share, rel=0.05)


def test_what_stands_at_one_place_of_every_batch_is_not_missed() -> None:
    """An outlier of the first token, as language models have them, is counted for each batch."""
    batches = [normal(1, 128, 768, seed=seed) for seed in range(64)]
    for number, batch in enumerate(batches):
        batch[0, 0, 5] = -60.0 - number / 100
        batch[0, 0, 300] = 70.0
    counts = observed(HistogramObserver, *batches).counts
    found = int(counts[2048 + (130 << 3) : 2048 + (134 << 3)].sum())  # below -8
    assert 20 <= found <= 160


@pytest.mark.parametrize("size", [40_000, 98_304])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("masks", [0, 50])
def test_large_tensors_merge_to_the_same_state(size: int, dtype: torch.dtype, masks: int) -> None:
    """The values that are read of a tensor depend on nothing but the tensor."""
    data = [(normal(size, seed=seed) * (seed + 1)).to(dtype) for seed in range(5)]
    for x in data:
        x[:masks] = torch.finfo(dtype).min
    whole = observed(HistogramObserver, *data)
    left, right = observed(HistogramObserver, data[4], data[1]), observed(HistogramObserver, data[3], data[0])
    last = observed(HistogramObserver, data[2])
    last.merge(right)
    last.merge(left)
    assert same_state(last, whole)
    assert whole.masked == 5 * masks


def test_what_is_no_data_is_counted_in_all_of_a_large_tensor() -> None:
    """Also where it is not read, and it stands for nothing where it is."""
    x = normal(98_304)
    x[::1000], x[1::1000], x[2::1000] = math.nan, math.inf, torch.finfo(torch.float32).min
    observer = observed(HistogramObserver, x)
    assert (observer.nan, observer.infinite, observer.masked) == (99, 99, 99)
    assert float(observer.low) > -6
    assert int(observer.counts.sum()) == pytest.approx(98_304 - 3 * 99, rel=0.002)


def test_a_transposed_tensor_is_read_as_it_lies_in_memory() -> None:
    """The same numbers in the same memory are the same state, whatever their dimensions are called."""
    x = normal(8, 64, 96)
    assert same_state(observed(HistogramObserver, x.permute(2, 0, 1)), observed(HistogramObserver, x))


def tails(seed: int, size: int) -> dict[str, torch.Tensor]:
    """Data with tails of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    base, other = torch.randn(2, size, generator=generator)
    uniform = torch.rand(size, generator=generator)
    channel = base.reshape(-1, 100).clone()
    channel[:, 7] *= 30
    outliers = base.clone()
    outliers[torch.randint(size, (6,), generator=generator)] *= 40
    return {
        "student": base / (other.square() + 0.05).sqrt(),
        "laplace": base.sign() * -torch.log(uniform + 1e-6),
        "lognormal": torch.exp(base),
        "normal": base,
        "uniform": uniform * 2 - 1,
        "relu": base.relu(),
        "gelu": torch.nn.functional.gelu(base),
        "softmax": torch.softmax(base.reshape(-1, 100) * 3, -1).flatten(),
        "large channel": channel.flatten(),
        "outliers": outliers,
    }


@pytest.mark.parametrize(
    ("shape", "dearer"), [((100_000,), 1.6), ((1, 10, 100, 100), 1.8)], ids=["vector", "map"]
)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", tails(0, 100))
def test_to_read_a_part_costs_no_accuracy(
    name: str, bits: int, shape: tuple[int, ...], dearer: float
) -> None:
    """Ten batches: no dearer than min-max, and by 2 dB (of maps 2.5) at most than to read all."""
    spec = tq.QuantizationSpec("int8", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    batches = [tails(seed, 100_000)[name].reshape(shape) for seed in range(10)]
    x = torch.cat([batch.flatten() for batch in batches])
    part = observed(HistogramObserver, *batches, spec=spec)
    whole = observed(HistogramObserver, *x.split(SMALL), spec=spec)
    assert squared_error(x, part) <= squared_error(x, whole) * dearer
    no_tail = name in ("uniform", "relu", "gelu")
    most = squared_error(x, observed(MinMaxObserver, x, spec=spec)) * (1.12 if no_tail else 1.0)
    assert squared_error(x, part) <= most


@pytest.mark.parametrize(
    "spec",
    [
        tq.QuantizationSpec("int8", -128, 127),
        tq.QuantizationSpec("int8", -127, 127, symmetric=True),
        tq.QuantizationSpec("int8", -8, 7, eps=2.0**-12),
    ],
    ids=str,
)
def test_what_is_found_together_is_what_is_found_alone(spec: tq.QuantizationSpec) -> None:
    """Of whatever magnitude and sign, beside massive values or not, and in any company: the same bits."""
    tensors = [values * 10.0**power for values in tails(0, 2000).values() for power in (-36, -6, 0, 5)]
    tensors += [-tensors[0].abs(), torch.zeros(5), torch.ones(1), torch.tensor([1e-45]), normal(160)]
    massive = normal(30_000)
    massive[7] = 5000.0
    observers = [observed(HistogramObserver, x, spec=spec) for x in (massive, *tensors)]
    found = qparams_together([*observers, HistogramObserver(spec), PercentileObserver(spec)])
    assert [*found] == observers
    for observer in observers:
        alone = observer.qparams()
        assert torch.equal(found[observer].scale, alone.scale)
        assert torch.equal(found[observer].zero_point, alone.zero_point)


@pytest.mark.parametrize("size", [1.0, 1e5])
def test_convert_searches_for_ranges_together(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred tensors take a few searches, each of as many as stay in the cache.

    Also where values are so large that they may be masks, and it is to be said whether any are outliers.
    """
    sizes: list[int] = []
    original = search._search
    monkeypatch.setattr(
        search, "_search", lambda tables, spec: sizes.append(len(tables)) or original(tables, spec)
    )
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(50))).eval()
    for weight in model.parameters():
        weight.data *= size
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    prepared = tq.prepare_pt2e(export(model, normal(4, 6)), quantizer)
    tq.convert_pt2e(tq.calibrate(prepared, [normal(4, 6)]))
    assert sum(sizes) == 100
    assert len(sizes) == 4


@pytest.mark.parametrize("seed", range(6))
def test_of_few_values_the_largest_is_kept(seed: int) -> None:
    """Once among 160 values it says little about what is rare; of a thousand times as many it is clipped."""
    spec = tq.QuantizationSpec("int8", -8, 7)
    x = normal(160, seed=seed)
    x[7] = 4.5
    few, many = (observed(HistogramObserver, *batches, spec=spec) for batches in ([x], [x] * 1000))
    assert float(few.range()[1]) == 4.5
    assert float(many.range()[1]) < 4.4


@pytest.mark.parametrize(("bits", "times"), [(8, 3.0), (4, 1.0), (10, 3.0)])
def test_from_8_bits_on_clipping_counts_three_times(bits: int, times: float) -> None:
    """No other high end has a smaller error, roundings once and clipping so often."""
    x = torch.cat([normal(200_000), 2 * normal(3_000, seed=1).abs() ** 3])
    spec = tq.QuantizationSpec("int16", 0, 2**bits - 1)
    observer = observed(HistogramObserver, *x.relu().split(SMALL), spec=spec)
    high = float(observer.range()[1])

    def error(end: float, counts: float) -> float:
        kept = x.relu()[x <= end].double()
        beyond = x.double()[x > end] - end
        step = end / (2**bits - 1)
        return float((kept - step * (kept / step).round()).square().sum() + counts * beyond.square().sum())

    ends = [float(x.max()) * part / 200 for part in range(20, 201)]
    least = min(error(end, times) for end in ends)
    assert error(high, times) < 1.04 * least


# ----------------------------------------------------------------------------------------------------------
# Massive values
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_one_massive_value_a_sequence_does_not_take_the_range(sign: int) -> None:
    """Seven values of 200 among 344,064 others: the range is theirs, and reaches twice as far at most."""
    batches = [normal(128, 384, seed=seed) for seed in range(7)]
    for batch in batches:
        batch[0, 99] = 200.0 * sign
    low, high = observed(HistogramObserver, *batches).range()
    far, near = (high, -low) if sign > 0 else (-low, high)
    assert 4 < float(near) < 6
    assert 8 < float(far) < 12


@pytest.mark.parametrize(
    "values",
    [[200.0] * 100, [20.0], [5.0 * 1.5**step for step in range(10)]],
    ids=["not rare", "not far", "no gap"],
)
def test_what_is_not_massive_is_judged_by_its_error(values: list[float]) -> None:
    """Values that are more than one in 10,000, or near the others, or in a row with them."""
    x = torch.cat([*normal(200_000).split(SMALL), torch.tensor(values)])
    observer = observed(HistogramObserver, *x.split(SMALL))
    minmax = observed(MinMaxObserver, x)
    assert squared_error(x, observer) <= squared_error(x, minmax)


# ----------------------------------------------------------------------------------------------------------
# Percentile
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
@pytest.mark.parametrize("name", ["student", "laplace", "normal", "uniform", "lognormal"])
def test_a_percentile_leaves_out_its_share_at_either_end(name: str, percentile: float) -> None:
    """It is torch.quantile, to within a part of a bin, with zero in the range."""
    x = tails(0, 100_000)[name]
    observer = PercentileObserver(INT8, percentile)
    for part in x.split(SMALL):
        observer.update(part)
    low, high = observer.range()
    share = percentile / 100
    assert float(high) == pytest.approx(float(x.quantile(share)), rel=0.07)
    assert float(low) == pytest.approx(min(float(x.quantile(1 - share)), 0.0), rel=0.07)


@settings(max_examples=40)
@given(tensors((12,), st.floats(-1000, 1000, width=32)))
def test_the_percentile_of_a_hundred_is_min_max(x: torch.Tensor) -> None:
    """Nothing is left out, and zero is in the range."""
    observer = PercentileObserver(INT8, 100)
    observer.update(x)
    low, high = observer.range()
    assert (float(low), float(high)) == (min(float(x.min()), 0.0), max(float(x.max()), 0.0))


def test_a_percentile_is_not_stretched_by_masked_scores() -> None:
    """One percent of the scores has -10,000 added; the range is that of the others."""
    x = torch.cat([normal(1000), torch.full((500,), -1e4)])
    low, _ = observed(PercentileObserver, x).range()
    assert float(low) > -5


@pytest.mark.parametrize("percentile", [50.0, 100.5, -1.0, math.nan])
def test_what_is_no_percentile_is_refused(percentile: float) -> None:
    """The error says what is one."""
    with pytest.raises(tq.CalibrationError, match="percentile"):
        PercentileObserver(INT8, percentile)


def test_the_percentile_is_part_of_the_state() -> None:
    """An observer that goes on leaves out what the one before it did."""
    observer = PercentileObserver(INT8, 99.0)
    observer.update(normal(5000))
    again = PercentileObserver.from_state(INT8, observer.state())
    assert torch.equal(again.qparams().scale, observer.qparams().scale)


# ----------------------------------------------------------------------------------------------------------
# Entropy
# ----------------------------------------------------------------------------------------------------------


def test_entropy_keeps_what_has_no_tail() -> None:
    """The range of evenly spread values, and of those behind a relu, is all of it."""
    for name in ("uniform", "relu"):
        x = tails(0, 16_000)[name]
        low, high = observed(EntropyObserver, x).range()
        assert (float(low), float(high)) == (min(float(x.min()), 0.0), float(x.max()))


@pytest.mark.parametrize("name", ["student", "laplace", "normal", "relu"])
def test_entropy_gains_where_there_are_few_levels(name: str) -> None:
    """With four bits it clips the tail, and costs less than min-max."""
    spec = tq.QuantizationSpec("int8", -8, 7)
    x = tails(0, 16_000)[name]
    entropy, minmax = observed(EntropyObserver, x, spec=spec), observed(MinMaxObserver, x, spec=spec)
    assert squared_error(x, entropy) < 0.7 * squared_error(x, minmax)


@every
@settings(max_examples=30)
@given(st.lists(ordinary, min_size=1, max_size=12), specs())
def test_a_range_stays_inside_of_what_was_seen(
    kind: type[Observer], values: list[float], spec: tq.QuantizationSpec
) -> None:
    """It is part of min-max's (with zero), for any data and any spec."""
    x = torch.tensor(values)
    low, high = observed(kind, x, spec=spec).range()
    assert min(float(x.min()), 0.0) <= float(low) <= 0.0 <= float(high) <= max(float(x.max()), 0.0)


@every
def test_a_spec_of_32_bits_is_no_burden(kind: type[Observer]) -> None:
    """Levels are not gone through one by one."""
    observer = observed(kind, normal(1000), spec=tq.QuantizationSpec("int32"))
    assert float(observer.qparams().scale) > 0


# ----------------------------------------------------------------------------------------------------------
# Outliers
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "is_far"), [(50.0, False), (9000.0, True), (-9000.0, True)])
def test_a_range_that_an_outlier_takes_shows(value: float, is_far: bool) -> None:
    """The ratio to the 99.9th percentile says how much of the range is for next to nothing."""
    x = torch.cat([normal(10_000), torch.tensor([value, value])])
    ratio = observed(HistogramObserver, x).outlier_ratio()
    assert ratio is not None
    assert (ratio > 1000) is is_far


@every
def test_whether_a_range_is_for_outliers_is_what_the_ratio_says(kind: type[Observer]) -> None:
    """It is mostly found out without a search; of small and of large values, beside masks and without."""
    common, masks = normal(10_000), torch.full((100,), -10_000.0)
    far = [torch.cat([common, torch.tensor([end, end])]) for end in (50.0, 900.0, 4500.0, -9000.0, 9e5)]
    masked = [torch.cat([x, masks]) for x in (common * 1e-3, common, common * 5000, *far)]
    nearly_zero = [torch.cat([torch.zeros(5000), torch.tensor([end])]) for end in (3.0, 9000.0)]
    said = []
    for x in [*far, *masked, *(x * 1e4 for x in far), torch.zeros(9), *nearly_zero]:
        observer = observed(kind, x)
        ratio = observer.outlier_ratio()
        assert ratio is not None
        said.append(observer.has_outliers())
        assert said[-1] is (ratio > 1000)
    assert False in said
    assert (True in said) is (kind is not PercentileObserver)  # which cuts them off


def test_what_is_cut_off_is_no_outlier() -> None:
    """It is about the range that is chosen: a percentile leaves the value out."""
    x = torch.cat([normal(10_000), torch.tensor([9000.0])])
    ratio = observed(PercentileObserver, x).outlier_ratio()
    assert ratio is not None
    assert ratio < 2


def test_zeros_alone_have_no_outlier() -> None:
    """Nothing is as many times nothing as one likes, but no range."""
    assert observed(HistogramObserver, torch.zeros(100)).outlier_ratio() == 0.0


def test_min_max_does_not_know_of_outliers() -> None:
    """It keeps two numbers, which do not say how many values lie where."""
    assert observed(MinMaxObserver, normal(10)).outlier_ratio() is None
