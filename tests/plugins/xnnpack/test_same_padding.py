"""Convolutions with ``padding="same"``: also where that is more on one side, which no kernel knows by itself.

Export leaves them as one operator. In a static model ExecuTorch makes padding of its own in front of them,
which the delegate takes in; a dynamic one is quantized where both sides are padded alike, and else stays in
float with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.oracle import Model
from plugins.xnnpack.cases import Case, case_of, in_float, largest_step
from strategies import export, normal, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

IMAGE = (normal(2, 4, 7, 6),)
ONE_IMAGE = (IMAGE[0][:1],)
SEQUENCE = (normal(2, 4, 9),)


def conv(outputs: int, kernel: int | tuple[int, int], **options: int | tuple[int, int]) -> nn.Module:
    """A convolution of images with four channels that keeps their size."""
    return nn.Conv2d(4, outputs, kernel, padding="same", **options)  # type: ignore[arg-type]


EVEN: dict[str, Callable[[], Model]] = {
    "dilated": lambda: Model(conv(6, 3, dilation=2), IMAGE),
    "dilated, even kernel by even steps": lambda: Model(conv(6, 4, dilation=2), IMAGE),
    "in groups": lambda: Model(conv(6, 3, groups=2), IMAGE),
    "in groups, dilated": lambda: Model(conv(8, (3, 5), groups=2, dilation=(2, 1)), IMAGE),
    "depthwise": lambda: Model(conv(8, 3, groups=4, dilation=2), IMAGE),
    "signal, dilated": lambda: Model(nn.Conv1d(4, 6, 3, padding="same", dilation=3), SEQUENCE),
}
UNEVEN: dict[str, Callable[[], Model]] = {
    "even kernel": lambda: Model(conv(6, 4), IMAGE),
    "even in one dimension": lambda: Model(conv(6, (3, 2)), IMAGE),
    "even kernel, dilated": lambda: Model(conv(6, 4, dilation=3), IMAGE),
    "even kernel, in groups": lambda: Model(conv(6, 2, groups=2), IMAGE),
    "even kernel, in groups, dilated": lambda: Model(conv(6, (2, 4), groups=2, dilation=(3, 1)), IMAGE),
    "even kernel, depthwise": lambda: Model(conv(8, 2, groups=4), IMAGE),
    "even kernel, fused": lambda: Model(nn.Sequential(conv(6, 4), nn.BatchNorm2d(6), nn.ReLU()), IMAGE),
    "even kernel, between others": lambda: Model(
        nn.Sequential(conv(4, 3), nn.ReLU(), conv(4, 2), nn.ReLU6(), conv(4, 3)), IMAGE
    ),
    "signal, even kernel": lambda: Model(nn.Conv1d(4, 6, 4, padding="same"), SEQUENCE),
    "signal, even kernel, dilated": lambda: Model(
        nn.Conv1d(4, 6, 2, padding="same", dilation=3, groups=2), SEQUENCE
    ),
}
STATIC = {**EVEN, **UNEVEN}


@cache
def static(name: str) -> Case:
    """A model, lowered once."""
    torch.manual_seed(0)
    return case_of(STATIC[name]())


@pytest.mark.parametrize("name", STATIC)
def test_a_static_one_computes_with_integers(name: str) -> None:
    """Nothing is left outside of the delegate, and inside of it nothing computes in float."""
    lowered = static(name).lowered

    assert lowered.outside == ()
    assert any("Conv2d(qint8, qcint8) -> qint8" in kernel for kernel in lowered.computing)
    assert [kernel for kernel in lowered.computing if in_float(kernel)] == []


@pytest.mark.parametrize("name", STATIC)
def test_a_static_one_returns_what_the_converted_model_returns(name: str) -> None:
    """Within one quantization step: what is put around the image is the integer that stands for zero."""
    case = static(name)
    ((expected, found),) = case.differences()

    assert (expected - found).abs().max() <= 1.001 * largest_step(case.converted)


@pytest.mark.parametrize("kernel", [3, (5, 3)])
@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"groups": 2}])
def test_a_dynamic_one_that_is_padded_evenly_runs(
    kernel: int | tuple[int, int], options: dict[str, int]
) -> None:
    """The delegate runs it with integers that it makes of the whole image."""
    torch.manual_seed(0)
    case = case_of(Model(conv(6, kernel, **options), ONE_IMAGE), is_dynamic=True)
    ((expected, found),) = case.differences()

    assert case.lowered.outside == ()
    assert any("Conv2d(qd" in name for name in case.lowered.kernels)
    assert sqnr(expected, found) > 60


@pytest.mark.parametrize(("kernel", "dilation"), [(4, 1), ((3, 2), 1), (2, 3), (4, (2, 1))])
def test_a_dynamic_one_that_is_not_stays_in_float_with_the_reason(
    kernel: int | tuple[int, int], dilation: int | tuple[int, int]
) -> None:
    """The padding in front of it would stand between the dynamic quantize and the kernel that needs it."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    exported = export(conv(6, kernel, dilation=dilation), *ONE_IMAGE)
    with pytest.warns(UserWarning, match="even_padding"):
        ledger = tq.explain(exported, XNNPACKQuantizer().set_global(config), strict=False)
    (row,) = ledger

    assert row.code == "constraint:even_padding"
