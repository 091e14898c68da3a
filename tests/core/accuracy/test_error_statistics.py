"""Statistics of the error of a tensor: the same figures however the data is split."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from strategies import normal
from torchquilt.accuracy.comparison_values import ErrorFigures
from torchquilt.accuracy.error_statistics import ErrorStatistics, decibels

VALUES = st.floats(-1000, 1000, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors of one length, that differ everywhere or hardly."""
    count = draw(st.integers(1, 40))
    expected = torch.from_numpy(draw(arrays("float32", count, elements=VALUES)))
    noise = torch.from_numpy(draw(arrays("float32", count, elements=VALUES)))
    return expected, expected + noise * draw(st.sampled_from([0.0, 1e-3, 1.0]))


def statistics_of(*parts: tuple[torch.Tensor, torch.Tensor]) -> ErrorStatistics:
    """Statistics that took in all parts."""
    found = ErrorStatistics()
    for expected, other in parts:
        found.update(expected, other)
    return found


def near(found: ErrorFigures, expected: ErrorFigures) -> bool:
    """Equal but for the order of sums in float32."""
    both_infinite = found.sqnr == expected.sqnr
    return (
        (both_infinite or found.sqnr == pytest.approx(expected.sqnr, abs=1e-3))
        and found.cosine == pytest.approx(expected.cosine, abs=1e-5)
        and found.mean_error == pytest.approx(expected.mean_error, rel=1e-4, abs=1e-3)
        and found.max_error == expected.max_error
    )


@given(pairs(), st.lists(st.integers(0, 40)))
def test_any_split_of_the_data_gives_the_same_figures(
    pair: tuple[torch.Tensor, torch.Tensor], cuts: list[int]
) -> None:
    """Parts may be empty."""
    whole = statistics_of(pair)
    ends = sorted(min(cut, len(pair[0])) for cut in cuts)
    pieces = [part.tensor_split(ends) for part in pair]
    split = statistics_of(*zip(*pieces, strict=True))
    assert split.count == whole.count
    assert near(split.figures(), whole.figures())


@given(pairs(), pairs())
def test_to_merge_is_to_take_in_what_the_other_one_saw(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Sums are added in the same order, so the figures have the same bits."""
    merged = statistics_of(one)
    merged.merge(statistics_of(other))
    assert merged.figures() == statistics_of(one, other).figures()


@given(pairs())
def test_the_figures_are_those_of_the_formulas(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """In float64 and from all values at once."""
    expected, found = (one.double() for one in pair)
    noise = found - expected
    power, both = float(noise.square().sum()), float(expected.norm() * found.norm())
    figures = statistics_of(pair).figures()
    if power == 0:
        assert figures == ErrorFigures(math.inf, 1.0, 0.0, 0.0)
        return
    signal = float(expected.square().sum())
    if signal > 1e-30 and power > 1e-30:
        assert figures.sqnr == pytest.approx(10 * math.log10(signal / power), abs=1e-3)
    if both > 1e-30:
        assert figures.cosine == pytest.approx(float(expected @ found) / both, abs=1e-4)
    assert figures.mean_error == pytest.approx(float(noise.mean()), rel=1e-4, abs=1e-3)
    assert figures.max_error == pytest.approx(float(noise.abs().max()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_squares_that_overflow_the_dtype_are_summed(dtype: torch.dtype) -> None:
    """Up to half the largest number of a dtype everything is data."""
    top = min(torch.finfo(dtype).max / 4, 1e150)  # the sum of squares itself is a float64
    expected = torch.full((8,), top, dtype=dtype)
    figures = statistics_of((expected, expected * 0.75)).figures()
    assert figures.sqnr == pytest.approx(20 * math.log10(4), abs=0.1)
    assert figures.max_error == pytest.approx(top / 4, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("share", [1.0, 1.0 / 2, -1.0])
def test_masks_are_no_data(dtype: torch.dtype, share: float) -> None:
    """Neither are infinities and NaN of the float model; what the quantized model has there is no error."""
    mask = torch.finfo(dtype).max * share
    expected = torch.tensor([1.0, 2.0, mask, -math.inf, math.inf, math.nan], dtype=dtype)
    found = torch.tensor([1.0, 2.5, 7.0, -3.0, math.nan, 5.0], dtype=dtype)
    figures = statistics_of((expected, found)).figures()
    assert figures.sqnr == pytest.approx(10 * math.log10(5 / 0.25))
    assert (figures.mean_error, figures.max_error) == (0.25, 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_where_the_float_model_has_one_is_the_worst_error(value: float) -> None:
    """In one place of many, in one batch of two."""
    good = (normal(100), normal(100, seed=1))
    found = good[0].clone()
    found[17] = value
    for parts in ([good, (good[0], found)], [(good[0], found), good]):
        figures = statistics_of(*parts).figures()
        assert (figures.sqnr, figures.max_error) == (-math.inf, math.inf)
        assert math.isfinite(figures.cosine)
        assert math.isfinite(figures.mean_error)


def test_nothing_has_no_error() -> None:
    """Neither a tensor without values, nor no tensor at all."""
    nothing = ErrorFigures(math.inf, 1.0, 0.0, 0.0)
    assert ErrorStatistics().figures() == statistics_of((normal(0), normal(0))).figures() == nothing


def test_zeros_are_zero() -> None:
    """A zero that stays zero has no error; one that does not has the largest."""
    zeros = torch.zeros(4)
    assert statistics_of((zeros, zeros)).figures() == ErrorFigures(math.inf, 1.0, 0.0, 0.0)
    figures = statistics_of((zeros, zeros + 0.5)).figures()
    assert figures.sqnr < -100
    assert (figures.cosine, figures.mean_error, figures.max_error) == (0.0, 0.5, 0.5)
    figures = statistics_of((zeros + 0.5, zeros)).figures()
    assert (figures.sqnr, figures.cosine) == (0.0, 0.0)


def test_decibels_of_powers() -> None:
    """Of powers, not of amplitudes."""
    assert decibels(100.0, 1.0) == pytest.approx(20.0)
    assert decibels(1.0, 0.0) == math.inf
    assert decibels(0.0, 0.0) == math.inf


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-38])
def test_errors_of_tiny_numbers_are_errors(size: float) -> None:
    """Squares of tiny numbers are zero in float32; that does not make two tensors the same."""
    expected = torch.full((4,), 1e-25)
    figures = statistics_of((expected, torch.full((4,), -size))).figures()
    assert figures.sqnr < 1
    assert figures.max_error > 0
