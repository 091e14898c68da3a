"""Memory layout of inputs and outputs: the program reads them as it was exported, whatever it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.executorch.models import converted, xnnpack
from strategies import Fn, export, normal, sqnr
from torchquilt.lowering import load

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

CHANNELS_LAST = torch.channels_last


def convolutions() -> nn.Module:
    """Two layers of three channels and more."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def grown(x: torch.Tensor) -> torch.Tensor:
    """The same numbers as a slice of a larger tensor."""
    larger = torch.zeros(*(size + 2 for size in x.shape))
    inner = tuple(slice(1, 1 + size) for size in x.shape)
    larger[inner] = x
    return larger[inner]


def reversed_order(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with the dimensions the other way round in memory."""
    order = [*reversed(range(x.dim()))]
    return x.permute(order).contiguous().permute(order)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with the channels behind the others in memory, where there are such."""
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return x.contiguous(memory_format=order)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": channels_last,
    "sliced": grown,
    "reversed": reversed_order,
}

MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "images": (convolutions, normal(2, 3, 6, 5)),
    "one channel": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), normal(1, 1, 6, 5)),
    "one pixel": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), normal(1, 3, 1, 1)),
    "signals": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh()), normal(2, 3, 8)),
    "rows": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()), normal(3, 6)),
    "volumes in float": (lambda: Fn(lambda m, x: m.fc(x).sin(), fc=nn.Linear(6, 6)), normal(2, 3, 4, 5, 6)),
}


@pytest.mark.parametrize("exported", ["channels_last", "reversed"])
@pytest.mark.parametrize("name", MODELS)
def test_a_program_computes_the_same_of_inputs_however_they_lie(name: str, exported: str) -> None:
    """Whatever the layout of the export, it is what the quantized model computes."""
    make, x = MODELS[name]
    model = converted(make(), xnnpack(), LAYOUTS[exported](x))
    program = tq.lower(model, (LAYOUTS[exported](x),))
    expected = model(LAYOUTS[exported](x))
    for given, as_given in LAYOUTS.items():
        assert (program.run(as_given(x)) - expected).abs().max() < 0.02, given


def turned(x: torch.Tensor) -> torch.Tensor:
    """An image that the model itself puts in channels_last."""
    return (x * 2).contiguous(memory_format=CHANNELS_LAST)


ON_IMAGES: dict[str, Callable[..., torch.Tensor]] = {
    "flip": lambda m, x: torch.flip(x, [1]),
    "expand": lambda m, x: x[:, :1].expand(2, 4, 6, 6),
    "join": lambda m, x: torch.column_stack([x, x]),
    "normalize": lambda m, x: m.norm(x),
    "largest": lambda m, x: x.topk(2, 1)[0],
    "gather": lambda m, x: x.gather(1, torch.ones(2, 1, 6, 6, dtype=torch.int64)),
    "roll": lambda m, x: torch.roll(x, 1, 1),
    "running sum": lambda m, x: x.cumsum(1),
    "view": lambda m, x: x.reshape(2, -1),
    "convolution": lambda m, x: m.conv(x),
    "flip of a convolution": lambda m, x: torch.flip(m.conv(x), [1]),
    "convolution of a flip": lambda m, x: m.conv(torch.flip(x, [3])),
    "put so within": lambda m, x: torch.flip(turned(m.conv(x)), [1]) + turned(x).cumsum(1),
    "linear": lambda m, x: m.fc(x),
}


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("weights", [torch.contiguous_format, CHANNELS_LAST], ids=["plain", "turned"])
def test_operators_compute_the_same_of_images_in_channels_last(
    weights: torch.memory_format, is_dynamic: bool
) -> None:
    """Kernels of the runtime that read memory as if it were contiguous get it so, and delegates their own."""
    parts = {"norm": nn.LayerNorm(6), "conv": nn.Conv2d(4, 4, 3, padding=1), "fc": nn.Linear(6, 3)}
    model = Fn(lambda m, x: {name: run(m, x) for name, run in ON_IMAGES.items()}, **parts)
    x = normal(2, 4, 6, 6).to(memory_format=CHANNELS_LAST)
    quantized = converted(model.to(memory_format=weights), xnnpack(is_dynamic=is_dynamic), x)
    program = tq.lower(quantized, (x,), verify=False)

    expected, found = quantized(x), program.run(x)

    wrong = {name: sqnr(expected[name], found[name]) for name in ON_IMAGES}
    assert min(wrong.values()) > 50, wrong
    for name in ("flip", "convolution", "put so within"):
        assert expected[name].is_contiguous(memory_format=CHANNELS_LAST), name
        assert found[name].is_contiguous(memory_format=CHANNELS_LAST), name


def test_a_view_orders_no_memory() -> None:
    """A result that only a view turned is returned as the runtime orders it, without another copy."""
    model = Fn(lambda m, x: m.fc(x).permute(0, 3, 1, 2), fc=nn.Linear(6, 4))
    x = normal(2, 5, 5, 6)
    program = tq.lower(converted(model, xnnpack(), x), (x,), verify=True)
    assert "dim_order_ops::_clone_dim_order.out" not in program.operators
    assert not program.io.outputs[0].dim_order or program.io.outputs[0].dim_order == (0, 1, 2, 3)


def test_expanded_inputs_are_taken() -> None:
    """One number that stands for many, when the model is exported and when it is run."""
    x = normal(3, 1).expand(3, 6)
    model = converted(nn.Linear(6, 4), xnnpack(), x)
    program = tq.lower(model, (x,), verify=True)
    assert torch.equal(program.run(x), program.run(x.contiguous()))


def test_sizes_that_change_keep_the_order() -> None:
    """A channels_last model runs at another batch and size, those of one element included."""
    batch, height = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("height", min=1, max=16)
    x = normal(4, 3, 8, 5).to(memory_format=CHANNELS_LAST)
    model = converted(convolutions(), xnnpack(), x, dynamic_shapes=({0: batch, 2: height},))
    program = tq.lower(model, (x,), verify=True)
    for shape in ((2, 3, 16, 5), (1, 3, 8, 5), (1, 3, 1, 5)):
        other = normal(*shape)
        assert (program.run(other) - model(other)).abs().max() < 0.02, shape


def test_an_exported_program_is_lowered_in_its_own_layout() -> None:
    """One that was exported with strides that the runtime does not know stays as it was."""
    x = reversed_order(normal(3, 6))
    program = export(converted(nn.Linear(6, 4), xnnpack(), x), x)
    strides = [node.meta["val"].stride() for node in program.graph.find_nodes(op="placeholder")]
    assert tq.lower(program, (x,), backends=["xnnpack"], verify=True).verification
    assert [node.meta["val"].stride() for node in program.graph.find_nodes(op="placeholder")] == strides


def test_outputs_have_the_layout_of_the_model() -> None:
    """The program returns channels_last where the model does."""
    x = normal(2, 3, 6, 5).to(memory_format=CHANNELS_LAST)
    program = tq.lower(converted(convolutions(), xnnpack(), x), (x,))
    assert program.run(x).is_contiguous(memory_format=CHANNELS_LAST)


def test_the_order_is_told(tmp_path: Path) -> None:
    """By the program, its report, and one that is loaded without a report."""
    x = normal(2, 3, 6, 5).to(memory_format=CHANNELS_LAST)
    program = tq.lower(converted(convolutions(), xnnpack(), x), (x,))
    program.save(tmp_path / "with.pte")
    (tmp_path / "without.pte").write_bytes(program.buffer)
    for found in (program, load(tmp_path / "with.pte"), load(tmp_path / "without.pte")):
        (port,) = found.io.inputs
        assert port.dim_order == (0, 2, 3, 1)
        assert str(port).endswith("float32[2, 3, 6, 5], channels_last")
        assert torch.equal(found.run(x.contiguous()), program.run(x))
