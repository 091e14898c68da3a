"""Masks behind a layer: they stretch no range, or a warning says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, export, normal
from torchquilt.observers import make_observer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

LARGEST = torch.finfo(torch.float32).max
X = normal(64, 16)
SPEC = tq.QuantizationSpec("int8")

#: What a model may do with a tensor some of whose rows are masked.
LAYERS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "linear": lambda m, x: m.fc(x),
    "linear and relu": lambda m, x: m.fc(x).relu(),
    "two linears": lambda m, x: m.out(m.fc(x).clamp(-1e38, 1e38) / 16),
    "sum": lambda m, x: (x + x.flip(1)) / 4 + m.fc(x),
    "product": lambda m, x: m.fc(x) * 0.1 * torch.linspace(-1, 1, 16),
    "pooled": lambda m, x: nn.functional.avg_pool1d(m.fc(x), 2),
    "convolution": lambda m, x: m.conv(x[:, None]),
}


def static() -> XNNPACKQuantizer:
    """XNNPACK, static, everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def masked(value: float, rows: int = 16) -> torch.Tensor:
    """The data with some values of a quarter of its rows filled with a number."""
    x = X.clone()
    x[:rows, ::4] = value
    return x


def sqnr(expected: torch.Tensor, found: torch.Tensor) -> float:
    """In dB."""
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("layers", LAYERS)
def test_ranges_are_those_of_the_data_beside_a_mask(layers: str, share: float) -> None:
    """The rows that are not masked are as near to the float model as without any masked rows."""
    parts = {"fc": nn.Linear(16, 16), "out": nn.Linear(16, 16), "conv": nn.Conv1d(1, 4, 3)}
    model = Fn(LAYERS[layers], **parts).eval()
    exported = export(model, X)
    found = []
    for batch in (X, masked(-LARGEST * share)):
        prepared = tq.calibrate(tq.prepare_pt2e(exported, static(), strict=False), [batch])
        found.append(sqnr(model(X[16:]), tq.convert_pt2e(prepared)(X)[16:]))
    clean, with_mask = found
    assert clean > 25
    assert with_mask > clean - 2


@pytest.mark.parametrize(
    "data",
    [
        X * 1e25,  # large altogether
        torch.distributions.StudentT(1.2).rsample((1000, 64)) * 1e10,  # a heavy tail, and no gap
        torch.exp(normal(4096) * 15),  # from 1e-20 to 1e20, and more
        torch.cat([X.flatten(), normal(40) * 1e17]),  # far, and not that far
    ],
    ids=["large", "heavy tail", "exponents", "far"],
)
def test_large_values_are_data(data: torch.Tensor) -> None:
    """Values that are large together, or have no gap to the others, are no mask."""
    histogram = make_observer("percentile:100", SPEC)
    histogram.update(data)
    low, high = histogram.range()
    assert float(high) == data.max()
    assert float(low) == min(float(data.min()), 0.0)


def warned(data: torch.Tensor, observer: str = "histogram") -> tuple[tq.ledger.Caution, ...]:
    """Warnings of convert for a sum that has seen some data."""
    exported = export(Fn(lambda m, x: m.fc(x), fc=nn.Linear(16, 16, bias=False)), X)
    prepared = tq.prepare_pt2e(exported, static(), activation_observer=observer)
    tq.calibrate(prepared, [data])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = tq.convert_pt2e(prepared)
    found = tq.ledger_of(converted).warnings
    texts = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    assert len(texts) == (len(found) > 0)
    assert all(str(caution) in texts[0] for caution in found[:1])
    return found


@pytest.mark.parametrize(
    ("data", "observer", "code"),
    [
        (masked(-65504.0), "histogram", "far_apart"),  # both signs behind the linear: it might be data
        (masked(-1e9), "histogram", "far_apart"),
        (masked(-LARGEST), "minmax", "mask_values"),  # min-max cannot tell
        (masked(-LARGEST), "moving_average", "mask_values"),
        (X * 1e25, "histogram", "mask_values"),  # nothing else to compare with
    ],
)
def test_a_range_that_may_be_that_of_a_mask_is_warned_of(
    data: torch.Tensor, observer: str, code: str
) -> None:
    """In the ledger and on the console; the warning names the tensor and says what to do."""
    found = warned(data, observer)
    behind = [caution for caution in found if caution.edges.startswith("linear")]
    assert [caution.code for caution in behind] == [code]
    assert "leave the tensor in float" in behind[0].text


@pytest.mark.parametrize("data", [X, X * 1e4, masked(-LARGEST), masked(30.0, rows=1)])
def test_a_range_that_is_that_of_the_data_is_not_warned_of(data: torch.Tensor) -> None:
    """Data of one kind, large or not, and masks that are told from it."""
    assert warned(data) == ()
