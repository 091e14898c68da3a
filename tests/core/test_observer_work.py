"""Cost of one update: operators, not time. And that no device is waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torchquilt as tq
from observed import FLOATS, INT8, PER_ROW, observed, same_state
from strategies import normal
from torchquilt.observers import Observer, make_observer

NAMES = ["minmax", "histogram", "percentile", "entropy", "moving_average"]
names = pytest.mark.parametrize("name", NAMES)


class Counting(TorchDispatchMode):
    """Notes the operators that run, and how many values the largest of their results has."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def operators_for(observer: Observer, x: torch.Tensor) -> list[str]:
    """The operators of one update."""
    with Counting() as counting:
        observer.update(x)
    return counting.operators


@names
@pytest.mark.parametrize("spec", [INT8, PER_ROW], ids=str)
def test_the_work_does_not_grow_with_the_tensor(name: str, spec: tq.QuantizationSpec) -> None:
    """A million values take the operators of a quarter of a million; all are read of 80,000, as of 20,000."""
    observer = make_observer(name, spec)
    observer.update(normal(4, 8))
    found = [operators_for(observer, normal(4, size)) for size in (5_000, 20_000, 62_500, 250_000)]
    assert found[0] == found[1]
    assert found[2] == found[3]


@pytest.mark.parametrize(("name", "most"), [("minmax", 8), ("histogram", 18)])
def test_one_update_is_few_operators(name: str, most: int) -> None:
    """A small tensor, which a chain of small blocks has many of."""
    observer = make_observer(name, INT8)
    observer.update(normal(8))
    assert len(operators_for(observer, normal(64))) <= most


@names
@pytest.mark.parametrize("layout", ["transposed", "channels last"])
def test_a_dense_tensor_is_not_copied(name: str, layout: str) -> None:
    """Heads that were swapped with positions, and images with channels last, are read where they lie."""
    x = normal(2, 64, 12, 32)
    x = x.transpose(1, 2) if layout == "transposed" else x.to(memory_format=torch.channels_last)
    found = operators_for(make_observer(name, INT8), x)
    assert not any(part in operator for operator in found for part in ("clone", "copy", "contiguous"))


@names
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [64, 100_000])
def test_no_device_is_waited_for(name: str, dtype: torch.dtype, size: int) -> None:
    """Tensors without data stand for those of a device: reading a value of one fails."""
    observer = make_observer(name, INT8)
    for _ in range(2):
        observer.update(torch.empty(size, dtype=dtype, device="meta"))
    assert observer.low.device.type == "meta"
    assert observer.count.device.type == "meta"


@pytest.mark.parametrize("name", ["minmax", "moving_average"])
@pytest.mark.parametrize("axis", [0, 1])
def test_no_device_is_waited_for_per_axis(name: str, axis: int) -> None:
    """Nor where each index has parameters of its own."""
    observer = make_observer(name, tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=axis))
    for _ in range(2):
        observer.update(torch.empty(4, 5, device="meta"))
    assert observer.low.device.type == "meta"


def test_a_look_at_a_device_would_be_seen() -> None:
    """The tests above can fail."""
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty(3, device="meta").sum().item()


class Elsewhere(torch.Tensor):
    """A tensor that says it is not on the CPU, so that what is done on devices is done here, with data."""

    @property
    def is_cpu(self) -> bool:
        """No."""
        return False


@names
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [64, 100_000])
def test_a_device_gives_the_same_state(name: str, dtype: torch.dtype, size: int) -> None:
    """To tell what is no data apart without looking ends in the same bits, and the same offsets."""
    kind = lambda spec: make_observer(name, spec)  # noqa: E731
    data = [(normal(size, seed=seed) - seed).to(dtype) for seed in range(3)]
    data[1][:3] = torch.tensor([torch.nan, torch.inf, torch.finfo(dtype).min], dtype=dtype)
    here = observed(kind, *data)
    there = observed(kind, *(x.as_subclass(Elsewhere) for x in data))
    assert same_state(there, here)
    assert (here.nan, here.infinite, here.masked) == (1, 1, 1)
