"""Casts, paddings and squeezes between what is quantized, on ExecuTorch's runtime: many in one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, export, normal, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

ROWS, IMAGE = normal(3, 16), normal(2, 3, 12, 12)

Step = Callable[[torch.Tensor], torch.Tensor]

CASTS: dict[str, Step] = {
    "float": lambda y: y.float(),
    "half": lambda y: y.half(),
    "double": lambda y: y.double(),
    "a copy": lambda y: y.to(torch.float32, copy=True),
    "to a device": lambda y: y.to("cpu"),
    "to another": lambda y: y.to(y.new_zeros(1)),
    "type": lambda y: y.type(torch.float32),
    "type_as": lambda y: y.type_as(torch.zeros(1)),
    "there and back": lambda y: y.bfloat16().float(),
    "and the tensor": lambda y: y.float() + y,
    "of a mask": lambda y: (y > 0).float(),
    "contiguous": lambda y: y.t().contiguous().t(),
}
PADS: dict[str, Step] = {
    "pad": lambda y: functional.pad(y, (1, 2)),
    "is zero": lambda y: (functional.pad(y, (1, 2)) == 0).float(),
    "abs": lambda y: functional.pad(y, (0, 0, 1, 1)).abs(),
    "two readers": lambda y: (lambda p: p.abs() + p)(functional.pad(y, (2, 2))),
    "twice": lambda y: functional.pad(functional.pad(y, (1, 1)), (0, 0, 1, 0)).abs(),
    "before softmax": lambda y: functional.pad(y, (1, 1)).softmax(-1),
    "with a number": lambda y: functional.pad(y, (1, 1), value=1.0).abs(),
}
SQUEEZES: dict[str, Step] = {
    "squeeze": lambda y: y.unsqueeze(1).squeeze(),
    "squeeze of a dim": lambda y: y.unsqueeze(1).squeeze(1),
    "of two": lambda y: y[None, :, None].squeeze((0, 2)),
    "then scaled": lambda y: torch.cat([y.unsqueeze(0).squeeze(), y * 10], 1)[:, :8],
    "unsqueeze": lambda y: y.unsqueeze(2).flatten(1),
}


class Heads(nn.Module):
    """A linear, a step and another linear for each step; what the step returns is returned as well."""

    def __init__(self, steps: dict[str, Step], *, ends: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.ends = steps, ends
        self.first = nn.ModuleList(nn.Linear(16, 8) for _ in steps)
        self.last = nn.ModuleList(nn.Linear(8, 4) for _ in steps)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """One output for each step, or one behind each."""
        made = [step(layer(x)) for step, layer in zip(self.steps.values(), self.first, strict=True)]
        if self.ends:
            return made
        return [layer(y.float()) for y, layer in zip(made, self.last, strict=True)]


def asked(*names: str, is_dynamic: bool = False) -> XNNPACKQuantizer:
    """These modules, or all there is."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    quantizer = XNNPACKQuantizer()
    if not names:
        return quantizer.set_global(config)
    for name in names:
        quantizer = quantizer.set_module_name(name, config)
    return quantizer


def runs(model: nn.Module, x: torch.Tensor, quantizer: XNNPACKQuantizer, dims: Any = None) -> Any:
    """Quantize and lower, hold that the program computes what the converted model does, and return it."""
    options = {} if dims is None else {"dynamic_shapes": dims}
    with torch.no_grad():
        prepared = tq.prepare_pt2e(export(model, x, **options), quantizer, strict=False)
        converted = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
        program = tq.lower(converted, (x,), verify=True)
        found, expected = program.run(x), model(x)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert sqnr(other.double(), one.double()) > 25
    return program


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("ends", "is_dynamic"), [(True, False), (False, False), (False, True)], ids=["ends", "between", "dynamic"]
)
def test_what_is_cast_is_computed_with_integers(ends: bool, is_dynamic: bool) -> None:
    """No assertion about a tensor has the delegate compute it in float."""
    program = runs(Heads(CASTS, ends=ends), ROWS, asked(is_dynamic=is_dynamic))
    linears = [row for row in program.ledger.rows if row.op == "aten.linear.default"]
    assert len(linears) == len(CASTS) * (1 if ends else 2)
    assert {row.lowered.code for row in linears} == {"delegated_as_integers"}
    kernels = [str(kernel) for kernel in program.kernels if kernel.name == "FullyConnected"]
    assert len(kernels) == len(linears)
    assert not any("(fp32" in kernel for kernel in kernels)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("names", [("first",), ()], ids=["not asked", "asked"])
def test_paddings_behind_what_is_quantized_load(names: tuple[str, ...]) -> None:
    """Whether they are quantized or stay in float, with the zeros that they have."""
    runs(Heads(PADS, ends=True), ROWS, asked(*names))


def test_a_padding_in_float_before_a_convolution_loads() -> None:
    """The convolution behind it may be one of floats, of integers, or one of two, with a size not known."""

    def run(m: Any, x: torch.Tensor) -> Any:
        y = functional.pad(m.first(x), (1, 1, 1, 1))
        return m.integers(y), m.floats(functional.pad(m.first(x), (0, 1, 0, 1))), m.integers(y) + m.again(y)

    torch.manual_seed(0)
    convs = {name: nn.Conv2d(3, 3, 3) for name in ("first", "integers", "floats", "again")}
    batch = torch.export.Dim("batch", min=1, max=8)
    runs(Fn(run, **convs), IMAGE, asked("first", "integers", "again"), (({0: batch},),))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("names", [("first", "last"), ()], ids=["not asked", "asked"])
def test_squeezes_between_what_is_quantized_load(names: tuple[str, ...]) -> None:
    """Whether they are quantized or stay in float, also between tensors of two scales."""
    program = runs(Heads(SQUEEZES, ends=False), ROWS, asked(*names))
    squeezes = [row for row in program.ledger.rows if row.op.startswith("aten.squeeze")]
    assert squeezes
    assert all(row.is_quantized is not bool(names) for row in squeezes)


def test_squeezes_with_two_unknown_sizes_load() -> None:
    """A view can infer one size alone, so these stay what they are."""

    def run(m: Any, x: torch.Tensor) -> Any:
        y = m.first(x)
        return m.last(y.squeeze(1)), m.last(y.squeeze(1).unsqueeze(2)), m.last(y.squeeze())

    torch.manual_seed(0)
    model = Fn(run, first=nn.Linear(16, 8), last=nn.Linear(8, 4))
    sizes = {0: torch.export.Dim("batch", max=8), 2: torch.export.Dim("tokens", max=64)}
    runs(model, normal(2, 1, 5, 16), asked(), ((sizes,),))


# ----------------------------------------------------------------------------------------------------------
# Whole models
# ----------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """The end of a decoder: attention with a padded mask, a norm that casts, and a head that casts."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 20, bias=False)
        self.scale = nn.Parameter(torch.ones(16))

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """Root mean square, in float32 whatever comes in."""
        y = x.to(torch.float32)
        return self.scale * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Scores of the next token."""
        mask = functional.pad(x[:, 1:, 0].abs() > 0.1, (1, 0), value=True)[
            :, None
        ]  # the first is always seen
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        y = self.norm(x + scores.softmax(-1, dtype=torch.float32).to(x.dtype) @ self.v(x))
        return [self.head(y + self.down(functional.silu(self.up(y)))).float()]


class Pooled(nn.Module):
    """Convolutions, global pooling that is squeezed, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Class scores."""
        y = torch.relu(self.again(torch.relu(self.conv(functional.pad(x, (0, 1, 0, 1))))))
        return [self.fc(functional.adaptive_avg_pool2d(y, 1).squeeze()).float()]


class Unet(nn.Module):
    """One level of a U-net whose decoder pads what it upsampled to the size of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.low = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.dec = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """A map of the size of the image."""
        skip = torch.relu(self.enc(functional.pad(x, (1, 0, 1, 0))))  # 13 by 13
        y = self.up(torch.relu(self.low(functional.max_pool2d(skip, 2))))
        y = functional.pad(y, (0, skip.shape[3] - y.shape[3], 0, skip.shape[2] - y.shape[2]))
        return [self.dec(torch.cat([skip, y], 1))]


MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "decoder": (Decoder, normal(2, 6, 16)),
    "pooled": (Pooled, IMAGE),
    "u-net": (Unet, IMAGE),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_run_as_they_are_converted(name: str) -> None:
    """Lowered with ``verify=True``, and near to the float model."""
    make, x = MODELS[name]
    torch.manual_seed(0)
    runs(make(), x, asked())
