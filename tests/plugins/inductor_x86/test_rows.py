"""Rows, together in one program, and foreign graphs: what is claimed is computed by kernels of integers."""

from collections.abc import Iterator

import pytest
import torch
from tests.plugins.inductor_x86.models import Of, Together, quantized
from torch import nn
from torch.nn import functional

import torchquilt as tq
from torchquilt_inductor_x86 import (
    X86InductorQuantizer,
    canonical,
    get_default_x86_inductor_quantization_config,
    get_weight_only_config,
)
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

pytestmark = pytest.mark.long

#: What these patterns match is written in the form of others.
WRITTEN_OTHERWISE = {"addmm", "matmul", "conv1d_clamp", "conv2d_clamp"}
STATIC = get_default_x86_inductor_quantization_config()
DYNAMIC = get_default_x86_inductor_quantization_config(is_dynamic=True)


class Added(nn.Module):
    """A convolution to which its input is added."""

    def __init__(self, module: nn.Module, *, relu: bool, swapped: bool) -> None:
        super().__init__()
        self.module, self.relu, self.swapped = module, relu, swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        made = self.module(x)
        found = x + made if self.swapped else made + x
        return torch.relu(found) if self.relu else found


class Product(nn.Module):
    """A product with a constant matrix."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(8, 6)),
            nn.Parameter(torch.randn(6)) if bias else None,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


def convolutions(layer: type[nn.Conv1d | nn.Conv2d]) -> Iterator[nn.Module]:
    """A convolution in each way in which the table claims one."""
    for function in (
        torch.relu,
        functional.relu6,
        functional.hardswish,
        functional.silu,
        lambda x: functional.hardtanh(x, -0.5, 0.75),
        lambda x: torch.clamp(x, -0.5, 0.5),
    ):
        yield Of(layer(4, 6, 3), function)
    yield Of(layer(4, 6, 3, padding="same"), torch.sigmoid)
    yield layer(4, 4, 3, stride=2, padding=1, bias=False)
    yield layer(4, 4, 3, groups=4, dilation=2)
    for relu, swapped in ((True, False), (False, True)):
        yield Added(layer(4, 4, 3, padding=1), relu=relu, swapped=swapped)


def linears() -> Iterator[nn.Module]:
    """A linear layer in each way in which the table claims one."""
    yield nn.Linear(8, 6)
    yield nn.Linear(8, 6, bias=False)
    yield Of(nn.Linear(8, 6), torch.relu)
    yield Of(nn.Linear(8, 6), functional.gelu)
    yield Of(nn.Linear(8, 6), lambda x: functional.gelu(x, approximate="tanh"))
    yield Product(bias=False)
    yield Product(bias=True)


def fallen_back(program: tq.LoweredProgram) -> list[str]:
    """The quantized operators that no kernel of integers computes."""
    assert program.ledger is not None
    return [
        f"{row.node} ({row.pattern}): {row.lowered}"
        for row in program.ledger.rows
        if row.is_quantized and row.lowered is not None and row.lowered.code != "integer_kernel"
    ]


def agreement(program: tq.LoweredProgram) -> float:
    """The smallest ratio of its outputs."""
    assert program.verification
    return program.verification.sqnr


class Unbatched(nn.Module):
    """A signal of two samples that an operator in float takes for one image of two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.signal, self.image = nn.Conv1d(4, 4, 3), nn.Conv2d(2, 2, 3, padding="same")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return functional.conv2d(self.image(torch.relu(self.signal(x))), self.image.weight) + 1.0


class Concatenated(nn.Module):
    """Two convolutions whose results another one reads together."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        left = functional.max_pool2d(torch.relu(self.left(x)), 2)
        return self.last(torch.cat([left, functional.max_pool2d(self.right(x), 2)], 1))


class Turned(nn.Module):
    """A linear layer that reads the columns of its input."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return torch.relu(self.layer(x.transpose(-1, -2)))


def others() -> Iterator[tuple[nn.Module, torch.Tensor]]:
    """Models, each with an input, that are what they are for its sake: how it lies, and how large it is."""
    yield nn.Linear(9, 6), torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    yield nn.Conv2d(4, 4, 3), torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    yield nn.Conv1d(4, 4, 3), torch.randn(2, 4, 34)[..., ::2]
    yield nn.Linear(5, 6), torch.randn(5, 8).t()
    yield nn.Linear(8, 6), torch.randn(1, 8).expand(3, 8)
    yield Turned(nn.Linear(5, 6)), torch.randn(2, 5, 8)
    yield Turned(nn.Linear(5, 6, bias=False)), torch.randn(2, 3, 5, 8)
    yield nn.Linear(17, 2), torch.randn(1, 17)
    yield nn.Linear(2, 17, bias=False), torch.randn(1, 1, 2)
    yield nn.Linear(2, 1), torch.randn(2, 2)
    yield Concatenated(), torch.randn(2, 4, 9, 9)
    yield Unbatched(), torch.randn(2, 4, 17)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    """One for each model of the program."""
    torch.manual_seed(1)
    return (
        *(torch.randn(2, 4, 9, 9) for _ in convolutions(nn.Conv2d)),
        *(torch.randn(2, 4, 17) for _ in convolutions(nn.Conv1d)),
        *(torch.randn(5, 8) for _ in linears()),
        *(x for _, x in others()),
        *(torch.randn(5, 8) for _ in linears()),
        torch.randn(2, 3, 32).bfloat16(),
    )


@pytest.fixture(scope="module")
def program(inputs: tuple[torch.Tensor, ...]) -> tq.LoweredProgram:
    """Every row at once: static ones, dynamic ones, and weights of integers beside bfloat16."""
    torch.manual_seed(0)
    static = [*convolutions(nn.Conv2d), *convolutions(nn.Conv1d), *linears(), *(one for one, _ in others())]
    at_run_time = [*linears()]
    weights_alone = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 9, bias=False)).bfloat16()
    quantizer = X86InductorQuantizer().set_global(STATIC)
    last = len(static) + len(at_run_time)
    for number in range(len(static), last):
        quantizer.set_module_name(f"models.{number}", DYNAMIC)
    quantizer.set_module_name(f"models.{last}", get_weight_only_config())
    quantizer.set_module_name(f"models.{len(static) - 1}.image", None)
    model = Together([*static, *at_run_time, weights_alone])
    return tq.lower(quantized(model, inputs, quantizer), inputs, target="inductor_x86", verify=30)


def test_each_row_is_computed_by_kernels_of_integers(program: tq.LoweredProgram) -> None:
    """The table claims nothing else, and each row is there."""
    assert fallen_back(program) == []
    assert program.ledger is not None
    seen = {row.pattern for row in program.ledger.rows if row.is_quantized}
    capabilities = X86InductorQuantizer.backend_capabilities()
    assert seen == {row.pattern for row in capabilities.rows} - WRITTEN_OTHERWISE
    assert any("_weight_int8pack_mm" in name for name in program.operators)


def test_no_operator_of_a_product_is_computed_twice(program: tq.LoweredProgram) -> None:
    """There is a kernel for each product, and no other."""
    assert program.ledger is not None
    products = [row for row in program.ledger.rows if row.macs and "onednn" in str(row.lowered)]
    kernels = [
        one for one in program.kernels if one.arithmetic == "integer" and one.name.startswith("onednn")
    ]
    assert len(kernels) == len(products)
    assert sum(".binary" in one.name for one in kernels) == 2


def test_what_moves_data_between_products_moves_integers(program: tq.LoweredProgram) -> None:
    """Pooling and concatenation read the integers that a convolution returns."""
    assert program.ledger is not None
    told = {row.node: row.lowered for row in program.ledger.rows if row.lowered is not None}
    for node in ("max_pool2d", "max_pool2d_1"):
        assert told[node].text.startswith("Inductor moves integers"), told[node]
    assert "aten.cat.default(uint8, uint8)" in told["cat"].text


def test_inputs_may_lie_in_any_way(program: tq.LoweredProgram, inputs: tuple[torch.Tensor, ...]) -> None:
    """A program is compiled for one order of the dimensions in memory, and given that."""
    expected = program.run(*inputs)
    turned = [one.transpose(0, -1).contiguous().transpose(0, -1) for one in inputs]
    for given in (turned, [one.contiguous() for one in inputs]):
        assert all(map(torch.equal, program.run(*given), expected))


def test_most_of_the_time_is_that_of_operators_of_the_model(
    program: tq.LoweredProgram, inputs: tuple[torch.Tensor, ...]
) -> None:
    """Each kernel of integers that ran is told with the operators that it computes."""
    profile = program.profile(inputs, runs=3)
    assert profile.attributed > 0.9
    assert program.ledger is not None
    products = {row.node for row in program.ledger.rows if row.macs and row.is_quantized}
    assert products <= set(profile.by_node())
    for one in profile.kernels:
        if "_qconv" in one.kernel or "_qlinear" in one.kernel:
            assert len(products.intersection(one.nodes)) == 1


def test_a_graph_of_xnnpack_is_refused_or_made_right() -> None:
    """It names no such target; without its contribution its int8 activations become uint8, exactly."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
            self.up = nn.ConvTranspose2d(8, 8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.linear(self.up(x).flatten(2).transpose(1, 2))

    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 12)
    config = get_symmetric_quantization_config(is_per_channel=False)
    made = quantized(Mixed(), (x,), XNNPACKQuantizer().set_global(config))
    with pytest.raises(tq.LoweringError, match="does not say how it is lowered to 'inductor_x86'"):
        tq.lower(made, (x,), target="inductor_x86")
    program = tq.lower(made, (x,), target="inductor_x86", backends=[], verify=True)
    assert program.ledger is not None
    told = {row.node: row.lowered.code for row in program.ledger.rows if row.lowered is not None}
    assert told["conv2d"] == told["linear"] == "integer_kernel"
    assert told["conv_transpose2d"] == "fell_back_to_float"


class Refused(nn.Module):
    """A signal, and linear layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.signal, self.linear = nn.Conv1d(4, 4, 3), nn.Sequential(nn.Linear(16, 24), nn.ReLU())
        self.last = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.last(self.linear(functional.hardtanh(self.signal(x))))


def test_what_inductor_refuses_is_left_to_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are in the ledger, whether it refuses to compile or to run; the rest runs as integers."""
    from torch._inductor.lowering import lowerings

    kernel = torch.ops.onednn.qlinear_pointwise.default
    known = lowerings[kernel]

    def refuses(x: object, *rest: object, **named: object) -> object:
        if x.get_size()[-1] == 24:
            raise NotImplementedError("no kernel for 24 features")
        return known(x, *rest, **named)

    monkeypatch.setitem(lowerings, kernel, refuses)
    # Its kernel for signals refuses to run what torch fuses there.
    monkeypatch.setattr(canonical, "_signals_as_images", lambda model: None)
    torch.manual_seed(0)
    x = torch.randn(2, 4, 18)
    made = quantized(Refused(), (x,))
    with pytest.raises(tq.LoweringError, match="refuses"):
        tq.lower(made, (x,), target="inductor_x86", strict=True)
    program = tq.lower(made, (x,), target="inductor_x86")
    assert program.verification
    assert program.verification.sqnr > 40
    assert program.ledger is not None
    told = {row.node: row.lowered for row in program.ledger.rows if row.lowered is not None}
    assert told["linear"].code == told["relu"].code == "integer_kernel"
    assert told["linear_1"].code == told["conv1d"].code == "refused_by_delegate"
    assert "no kernel for 24 features" in told["linear_1"].text
    assert "Unsupported post op hardtanh" in told["conv1d"].text


def test_an_embedding_backend_is_refused_with_the_reason() -> None:
    """Its kernels are ExecuTorch's: the error names it before anything is compiled."""
    from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer

    tokens = torch.randint(0, 10, (2, 3))
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))
    both = tq.ComposableQuantizer(
        [ExecuTorchEmbeddingQuantizer(), X86InductorQuantizer.from_preset("dynamic_int8_per_channel")]
    )
    assert not both.quantization_capabilities().supports(
        "embedding",
        tq.quantizer("executorch_embedding", preset="byte_per_row").intent.rules[0].config,
        target="inductor_x86",
    )
    made = quantized(model, (tokens,), both)
    with pytest.raises(tq.LoweringError, match="'executorch_embedding' does not say how it is lowered"):
        tq.lower(made, (tokens,), target="inductor_x86")
