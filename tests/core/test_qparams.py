"""Quantization parameters whose scale is raised, and tensors as rows of one set of parameters each."""

from __future__ import annotations

import math

import pytest
import torch

import torchquilt as tq
from torchquilt.observers.qparams import QParams, as_rows, raised_to

AFFINE = tq.QuantizationSpec("int8", -128, 127)
SYMMETRIC = tq.QuantizationSpec("int8", -127, 127, symmetric=True)


def qparams(scale: list[float], zero_point: list[int]) -> QParams:
    """Parameters of several rows."""
    return QParams(torch.tensor(scale), torch.tensor(zero_point))


def test_a_raised_range_begins_where_it_began() -> None:
    """The smallest value stays, and the zero point moves with it; a scale that is large enough stays."""
    found = raised_to(qparams([0.5, 0.5], [-28, -28]), torch.tensor([1.0, 0.25]), AFFINE)
    assert found.scale.tolist() == [1.0, 0.5]
    assert found.zero_point.tolist() == [-78, -28]  # (-128 + 28) * 0.5 = (-128 + 78) * 1.0
    smallest = (AFFINE.quant_min - found.zero_point) * found.scale
    assert smallest.tolist() == [-50.0, -50.0]


def test_a_raised_zero_point_stays_within_the_integers() -> None:
    """A range that is all below zero ends at the largest integer."""
    found = raised_to(qparams([1.0], [127]), torch.tensor([1000.0]), AFFINE)
    assert found.zero_point.item() == -128
    assert raised_to(qparams([1.0], [500]), torch.tensor([1.0]), AFFINE).zero_point.item() == 127


def test_a_symmetric_zero_point_does_not_move() -> None:
    """Only the scale is raised."""
    found = raised_to(qparams([0.5], [0]), torch.tensor([2.0]), SYMMETRIC)
    assert (found.scale.item(), found.zero_point.item()) == (2.0, 0)


@pytest.mark.parametrize("least", [0.1, 1 / 3, 1e-3, 7.123456789e4])
def test_a_raised_scale_is_never_below_what_was_asked(least: float) -> None:
    """The limit is a double; the nearest float32 may be smaller than it, and then the next one is taken."""
    scale = raised_to(qparams([1e-9], [0]), torch.tensor([least], dtype=torch.float64), SYMMETRIC).scale
    assert scale.dtype == torch.float32
    assert least <= scale.double().item() < least * (1 + 2e-7)
    below = torch.nextafter(scale, torch.tensor([-math.inf]))
    assert below.double().item() < least


def test_rows_of_each_granularity() -> None:
    """One row for a tensor, for each index of an axis (also from behind), for each group."""
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert [part.shape if isinstance(part, torch.Tensor) else part for part in as_rows(x, AFFINE)] == [
        (1, 24),
        (),
    ]
    for axis, size in ((0, 2), (1, 3), (-1, 4), (-3, 2)):
        spec = tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=axis)
        rows, shape = as_rows(x, spec)
        assert (tuple(rows.shape), shape) == ((size, 24 // size), (size,))
        assert torch.equal(rows[1], x.movedim(axis, 0)[1].reshape(-1))
    rows, shape = as_rows(x.reshape(6, 4), tq.QuantizationSpec("int8", granularity="per_group", group_size=2))
    assert (rows.tolist()[1], shape) == ([2.0, 3.0], (6, 2))


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=2), (3, 4)),
        (tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=-3), (3, 4)),
        (tq.QuantizationSpec("int8", granularity="per_group", group_size=3), (3, 4)),
        (tq.QuantizationSpec("int8", granularity="per_group", group_size=2), (3, 4, 4)),
    ],
    ids=str,
)
def test_a_tensor_without_such_rows_is_refused(spec: tq.QuantizationSpec, shape: tuple[int, ...]) -> None:
    """An axis that is not there, rows that do not divide, no matrix."""
    with pytest.raises(ValueError, match=r"a tensor of shape|no matrix"):
        as_rows(torch.zeros(shape), spec)
