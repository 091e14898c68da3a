"""Models that write in place: what others see of it they see in the prepared and the converted model, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, export, name_of, normal, quantize, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def quantizer() -> XNNPACKQuantizer:
    """XNNPACK, dynamic: only linears are quantized."""
    return XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    )


class Average(nn.Module):
    """Adds a moving average of its inputs, which it keeps in a buffer by a chain of writes."""

    average: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("average", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """fc(x) + the average so far."""
        self.average.mul_(0.5).add_(x.mean(0))
        return self.fc(x) + self.average


def test_a_chain_of_writes_into_a_buffer_goes_on() -> None:
    """The moving average of the converted model is that of the float model, call after call."""
    x = normal(3, 6)
    float_model = export(Average(), x).module()
    model = tq.convert_pt2e(tq.prepare_pt2e(export(Average(), x), quantizer()))
    for _ in range(3):
        expected, found = float_model(x), model(x)
        assert torch.equal(model.average, float_model.average)
        assert expected.shape == found.shape


def test_what_calibration_wrote_is_not_in_the_converted_model() -> None:
    """Buffers that the model writes to start with their first values; the exported program is not touched."""
    x = normal(3, 6)
    exported = export(Average(), x)
    prepared = tq.prepare_pt2e(exported, quantizer())
    for _ in range(5):
        prepared(x)
    assert torch.equal(tq.convert_pt2e(prepared).average, torch.zeros(6))
    assert torch.equal(exported.state_dict["average"], torch.zeros(6))


def test_a_write_into_the_input_reaches_the_caller() -> None:
    """The prepared model changes its argument as the float model does."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x.mul_(0.5).add_(3.0)
        return self.fc(x)

    prepared = tq.prepare_pt2e(export(Fn(forward, fc=nn.Linear(6, 6)), torch.ones(2, 6)), _nothing())
    given = torch.ones(2, 6)
    prepared(given)
    assert torch.equal(given, torch.full((2, 6), 3.5))


def _nothing() -> tq.ComposableQuantizer:
    return tq.ComposableQuantizer([])


def test_a_write_behind_a_dropout_is_seen_by_the_residual() -> None:
    """In evaluation mode dropout returns its input itself, so relu_ behind it writes into that."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc(x)
        return self.branch(hidden) + hidden

    branch = nn.Sequential(nn.Dropout(0.1), nn.ReLU(inplace=True), nn.Linear(6, 6))
    model = Fn(forward, fc=nn.Linear(6, 6), branch=branch).eval()
    x = normal(3, 6)
    expected = model(x)
    assert torch.equal(tq.prepare_pt2e(export(model, x), _nothing())(x), expected)
    assert sqnr(expected, tq.convert_pt2e(tq.prepare_pt2e(export(model, x), quantizer()))(x)) > 30


def divide_heads(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A view of a linear is written into, and only the view is read afterwards (DeBERTa)."""
    heads = self.fc(x).view(-1, 2, 3).permute(1, 0, 2)
    heads /= 3.0
    return self.out(heads.permute(1, 0, 2).reshape(-1, 6))


def clear_what_is_masked(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Rows of a linear are set to zero behind a dropout, which returns the linear itself (wav2vec 2.0)."""
    hidden = self.dropout(self.fc(x))
    hidden[x.sum(-1) < 0] = 0
    return self.out(hidden)


@pytest.mark.parametrize("forward", [divide_heads, clear_what_is_masked], ids=name_of)
def test_a_write_into_a_view_that_nobody_else_reads_keeps_no_linear_in_float(forward: Any) -> None:
    """A write that only its own result shows needs no shared memory, so the linear is quantized."""
    x = normal(4, 6)
    model = Fn(forward, fc=nn.Linear(6, 6), out=nn.Linear(6, 6), dropout=nn.Dropout(0.1)).eval()
    static = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    ledger = tq.explain(export(model, x), static)
    assert [row.is_quantized for row in ledger if row.op == "aten.linear.default"] == [True, True]
    assert torch.equal(tq.prepare_pt2e(export(model, x), _nothing())(x), model(x))
    assert sqnr(model(x), quantize(model, static, x)(x)) > 30


def read_the_whole(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Read the tensor that the written one is a view of."""
    hidden = self.fc(x)
    hidden.view(-1, 2, 3).mul_(2.0)
    return self.out(hidden)


def read_another_view(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Read another view of the same tensor."""
    hidden = self.fc(x)
    first, other = hidden.view(-1, 2, 3), hidden.t()
    first.mul_(2.0)
    return self.out(other.t()) + first.sum()


def read_with_gaps(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Read by strides out of a slice, which has gaps that a new tensor lacks."""
    part = self.fc(x)[:, :4]
    part.mul_(2.0)
    return self.out(part.as_strided((4, 6), (6, 1)))


@pytest.mark.parametrize("forward", [read_the_whole, read_another_view, read_with_gaps], ids=name_of)
def test_a_write_that_is_seen_by_another_way_stays_one(forward: Any) -> None:
    """The prepared and the converted model read what was written, and the linear says why it is in float."""
    x = normal(4, 6)
    model = Fn(forward, fc=nn.Linear(6, 6), out=nn.Linear(6, 6)).eval()
    static = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    assert tq.explain(export(model, x), static)["linear"].code == "writes_in_place"
    assert torch.equal(tq.prepare_pt2e(export(model, x), _nothing())(x), model(x))
    assert sqnr(model(x), quantize(model, static, x)(x)) > 25


def test_a_write_keeps_the_dtype_of_what_it_writes_to() -> None:
    """Half += float stays half, as in the float model."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        half = x.half() * 2
        half += x
        return half

    x = normal(3, 6)
    found = tq.prepare_pt2e(export(Fn(forward), x), _nothing())(x)
    assert found.dtype is torch.float16


def test_a_write_between_two_linears_keeps_neither_in_float() -> None:
    """A dynamic linear leaves its output in float, and the next one quantizes what it finds there."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc(x)
        hidden[:, 0] = 0
        return self.out(hidden)

    x = normal(3, 6)
    model = Fn(forward, fc=nn.Linear(6, 6), out=nn.Linear(6, 6))
    ledger = tq.explain(export(model, x), quantizer())
    assert [row.is_quantized for row in ledger if row.op == "aten.linear.default"] == [True, True]
    assert sqnr(model(x), tq.convert_pt2e(tq.prepare_pt2e(export(model, x), quantizer()))(x)) > 30
