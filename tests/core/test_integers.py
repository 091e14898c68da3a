"""The integers of constants: those of torch's operators, whatever the size, layout and granularity."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torchquilt as tq
from strategies import normal
from torchquilt.pt2e import integer_constants as integers
from torchquilt.pt2e.integer_constants import integers_of

OPS = torch.ops.quantized_decomposed
PER_TENSOR = tq.QuantizationSpec("int8", -128, 127)
LAYOUTS = {
    "contiguous": lambda value: value,
    "transposed": lambda value: value.transpose(0, 1),
    "channels last": lambda value: value.contiguous(memory_format=torch.channels_last),
    "a slice": lambda value: value[:, 1:, ::2],
}


def per_axis(axis: int) -> tq.QuantizationSpec:
    """A spec for each slice along an axis."""
    return tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=axis, symmetric=True)


@pytest.mark.parametrize("part", [1, 100, 2**18])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_integers_for_each_channel_are_those_of_the_operator(axis: int, layout: str, part: int) -> None:
    """Quantized part by part and in place, a weight has the integers that the operator gives all of it."""
    value = LAYOUTS[layout](normal(6, 7, 5, 4))
    channels = value.shape[axis]
    scale, zero_point = normal(channels).abs() / 50 + 1e-3, torch.arange(channels) - 3
    arguments = (scale, zero_point, axis, -127, 127, torch.int8)
    with mock.patch.object(integers, "PART", part):
        found = integers_of(value, per_axis(axis), OPS.quantize_per_channel.default, arguments)
    assert torch.equal(found, OPS.quantize_per_channel.default(value, *arguments))


@pytest.mark.parametrize("part", [1, 100, 2**18])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_integers_for_a_whole_tensor_are_those_of_the_operator(layout: str, part: int) -> None:
    """Likewise with one scale."""
    value, arguments = LAYOUTS[layout](normal(6, 7, 5, 4)), (0.0173, 5, -128, 127, torch.int8)
    with mock.patch.object(integers, "PART", part):
        found = integers_of(value, PER_TENSOR, OPS.quantize_per_tensor.default, arguments)
    assert torch.equal(found, OPS.quantize_per_tensor.default(value, *arguments))


class Allocated(TorchDispatchMode):
    """Adds up the bytes of the memory that operators allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}  # held, so that none is counted for another

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note the memory of what it returns."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            self.storages[storage._cdata] = storage
        return result

    def bytes(self, *known: torch.Tensor) -> int:
        """Of all that was made beside what was known."""
        ids = {tensor.untyped_storage()._cdata for tensor in known}
        return sum(storage.nbytes() for key, storage in self.storages.items() if key not in ids)


def test_a_large_weight_is_quantized_with_little_memory_beside_its_integers() -> None:
    """Beside the result there is one part of it in float, however many parts there are."""
    value, axis = normal(64, 1024), 0
    arguments = (torch.full((64,), 0.02), torch.zeros(64, dtype=torch.int64), axis, -127, 127, torch.int8)
    with mock.patch.object(integers, "PART", 2**12), Allocated() as allocated:
        integers_of(value, per_axis(axis), OPS.quantize_per_channel.default, arguments)
    integer_bytes, part_bytes = value.numel(), 4 * 2**12
    assert allocated.bytes(value, *arguments[:2]) < integer_bytes + 1.5 * part_bytes
