"""Files that the target makes: standard, with integers, in the form that the runtime's fusions take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import torchquilt as tq
from plugins.onnxruntime.programs import (
    Block,
    Network,
    constants,
    converted,
    lowered,
    model_of,
    normal,
    statuses,
)
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer

#: Writing a model as ONNX takes a second, most of it torch's.
pytestmark = pytest.mark.long
IMAGE = (normal(2, 3, 8, 8),)
TOKENS = (normal(2, 6, 32),)
BATCH = torch.export.Dim("batch")
QUANTIZERS = {
    "onnxruntime": lambda: tq.quantizer("onnxruntime", preset="static_int8_per_channel"),
    "xnnpack": lambda: XNNPACKQuantizer.from_preset("static_int8_per_channel"),
}


@pytest.fixture(scope="module", params=list(QUANTIZERS))
def network(request: pytest.FixtureRequest) -> tq.LoweredProgram:
    """Network as each backend quantizes it: uint8 activations, or int8."""
    torch.manual_seed(0)
    return lowered(Network(), IMAGE, QUANTIZERS[request.param](), dynamic_shapes=({0: BATCH},))


def test_all_that_is_quantized_runs_as_integers(network: tq.LoweredProgram) -> None:
    """Clamps, pools and layouts between do not keep anything in float, and each row finds its kernel."""
    assert set(statuses(network).values()) == {"integer_kernel"}
    assert {"com.microsoft::QLinearConv", "com.microsoft::QGemm"} <= set(network.operators)


def test_nothing_is_converted_between_but_inputs_and_outputs(network: tq.LoweredProgram) -> None:
    """One quantize of the input is left, and one dequantize of the output."""
    ops = sorted(one.op.split(".")[1] for one in network.leftovers)
    assert ops == ["dequantize_per_tensor", "quantize_per_tensor"]


def test_the_file_is_standard_onnx(network: tq.LoweredProgram) -> None:
    """The checker takes it, with shapes inferred, and each operator is one of ONNX."""
    model = model_of(network)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [one.domain for one in model.opset_import] == [""]


@pytest.mark.parametrize(
    ("module", "inputs", "quantizer"),
    [
        pytest.param(Network, IMAGE, "static_int8_per_channel", id="network"),
        pytest.param(Block, TOKENS, "static_int8_per_channel", id="block-static"),
        pytest.param(Block, TOKENS, "dynamic_int8_per_channel", id="block-dynamic"),
        pytest.param(Block, TOKENS, "weight_only_int4", id="block-int4"),
    ],
)
def test_the_reference_of_onnx_computes_the_same(
    module: type[nn.Module], inputs: tuple[torch.Tensor, ...], quantizer: str
) -> None:
    """Any implementation of the standard may run the file."""
    torch.manual_seed(0)
    program = lowered(module(), inputs, quantizer)
    reference = onnx.reference.ReferenceEvaluator(model_of(program))
    name = model_of(program).graph.input[0].name
    (expected,) = reference.run(None, {name: inputs[0].numpy()})
    found = program.run(*inputs).numpy()
    noise = np.linalg.norm(expected - found)
    assert noise == 0 or 20 * math.log10(np.linalg.norm(expected) / noise) > 35


def test_sizes_stay_dynamic(network: tq.LoweredProgram) -> None:
    """A program takes other batches than the one that it was exported with, and says which."""
    (port,) = network.io.inputs
    assert (port.shape[0].low, port.shape[0].high) == (0, 2**31 - 1)
    assert [one.low for one in port.shape[1:]] == [one.high for one in port.shape[1:]] == [3, 8, 8]
    assert network.run(normal(5, 3, 8, 8)).shape == (5, 5)
    with pytest.raises(tq.ProgramInputError, match="'x'"):
        network.run(normal(5, 3, 8, 9))


def test_names_of_the_model_are_those_of_the_file(network: tq.LoweredProgram) -> None:
    """Inputs have the names of the arguments, and nodes those of the exported program."""
    model = model_of(network)
    assert [one.name for one in model.graph.input] == ["x"]
    assert [one.name for one in model.graph.output] == ["output_0"]
    assert {"conv2d", "conv2d_1", "add"} <= {node.name for node in model.graph.node}


def test_a_file_says_what_made_it(network: tq.LoweredProgram) -> None:
    """Without the report beside it: an equal quantizer can be made of the recipe in the metadata."""
    told = {one.key: one.value for one in onnx.load_from_string(network.buffer).metadata_props}
    assert told["torchquilt.version"] == tq.__version__
    assert told["torchquilt.torch"] == str(torch.__version__)
    quantizer = QUANTIZERS[told["torchquilt.backends"]]()
    assert told["torchquilt.quantizer"] == repr(quantizer)
    again = tq.Recipe.from_toml(told["torchquilt.recipe"]).quantizer()
    assert told["torchquilt.capabilities"] == again.quantization_capabilities().content_hash


@pytest.mark.parametrize("fold_quantize", [True, False], ids=["folded", "unfolded"])
def test_weights_and_biases_are_integers(fold_quantize: bool) -> None:
    """No float tensor of a weight is in the file, whichever form convert made."""
    torch.manual_seed(0)
    program = lowered(Network(), IMAGE, fold_quantize=fold_quantize)
    found = constants(program)
    assert sorted(array.shape for array in found.values() if array.dtype == np.int8 and array.ndim == 4) == [
        (8, 3, 3, 3),
        (8, 8, 3, 3),
    ]
    assert not [name for name, array in found.items() if array.dtype == np.float32 and array.ndim > 1]
    assert sum(array.dtype == np.int32 and array.size > 1 for array in found.values()) == 3


def test_both_forms_of_convert_store_the_same_integers() -> None:
    """The integers of an unfolded weight are those that torch computes, halves included."""
    stored = []
    for fold_quantize in (True, False):
        torch.manual_seed(0)
        found = constants(lowered(Network(), IMAGE, fold_quantize=fold_quantize))
        stored.append([array for array in found.values() if array.dtype == np.int8 and array.ndim == 4])
    for one, other in zip(*stored, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("quantizer", "dtype"),
    [
        ("weight_only_int4", onnx.TensorProto.INT4),
        (XNNPACKQuantizer.from_preset("static_int8_weight_int4"), onnx.TensorProto.INT4),
    ],
    ids=["blocks", "beside-integers"],
)
def test_integers_of_four_bits_are_packed(quantizer: Any, dtype: int) -> None:
    """Two are stored in a byte; beside activations of integers they are computed as 8 bits."""
    torch.manual_seed(0)
    program = lowered(nn.Linear(64, 32), (normal(3, 64),), quantizer)
    packed = (one for one in model_of(program).graph.initializer if one.data_type == dtype)
    weight = max(packed, key=lambda one: math.prod(one.dims))
    assert len(weight.raw_data) == 64 * 32 // 2
    assert statuses(program)["linear"] == "integer_kernel"


def test_a_linear_on_tokens_is_one_kernel_of_integers() -> None:
    """Bias and quantizing are in it, so that a linear returns integers for its relu and the next linear."""
    torch.manual_seed(0)
    program = lowered(Block(), TOKENS, dynamic_shapes=({0: BATCH, 1: torch.export.Dim("length")},))
    assert {name: statuses(program)[name] for name in ("linear", "relu", "linear_1")} == dict.fromkeys(
        ("linear", "relu", "linear_1"), "integer_kernel"
    )
    assert "com.microsoft::QGemm" in program.operators
    assert program.run(normal(3, 9, 32)).shape == (3, 9, 32)


def test_dynamic_products_are_fused() -> None:
    """The runtime finds scale and zero point, quantizes and multiplies in one kernel."""
    torch.manual_seed(0)
    program = lowered(Block(), TOKENS, "dynamic_int8_per_channel")
    assert "com.microsoft::DynamicQuantizeMatMul" in program.operators
    assert (statuses(program)["linear"], program.leftovers) == ("integer_kernel", ())


def test_an_addition_before_a_norm_is_a_kernel_of_its_own() -> None:
    """The kernel that the runtime fuses of both is slower than the two."""
    torch.manual_seed(0)
    program = lowered(Block(), TOKENS)
    assert "com.microsoft::SkipLayerNormalization" not in program.operators
    assert (statuses(program)["add"], statuses(program)["layer_norm"]) == ("float_kernel", "float_kernel")


def test_a_bias_before_a_norm_stays_in_the_product() -> None:
    """It is added by the kernel that multiplies, also where nothing else is between."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32))
    program = lowered(module, TOKENS, "dynamic_int8_per_channel")
    kernels = {one.rpartition("::")[2] for one in program.operators}
    assert {"DynamicQuantizeMatMul", "LayerNormalization"} <= kernels
    assert not kernels & {"Add", "Sum"}


class Mean(nn.Module):
    """The mean over an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return x.mean((2, 3))


def test_the_mean_of_an_image_in_channels_last_runs_as_integers() -> None:
    """Strides that torch changes behind it are none of ONNX."""
    image = normal(1, 4, 6, 6).to(memory_format=torch.channels_last)
    program = lowered(Mean(), (image,))
    assert statuses(program) == {"mean": "integer_kernel"}


class Clamped(nn.Module):
    """A linear, clamped where its quantized values reach beyond."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.low, self.high = low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return nn.functional.hardtanh(self.linear(x), self.low, self.high)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.25), (0.0, 6.0), (-100.0, 100.0), (0.1, 0.2)])
def test_clamps_are_exact_on_other_inputs(low: float, high: float) -> None:
    """A clamp that is left out, or is one of integers, is so for values that calibration never saw."""
    torch.manual_seed(0)
    inputs = (normal(8, 16),)
    model = converted(Clamped(low, high), inputs)
    program = tq.lower(model, inputs, target="onnxruntime", verify=True)
    beyond = 20 * normal(8, 16, seed=1)
    expected, found = model(beyond), program.run(beyond)
    step = max(program.verification.outputs[0].step or 0.0, 1e-6) if program.verification else 1e-6
    assert (expected - found).abs().max() <= 1.001 * step
    assert found.min() >= low - step
    assert found.max() <= high + step


class Masked(nn.Module):
    """Attention whose mask hides all keys of some queries."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_query_without_keys_gets_zeros(dtype: torch.dtype) -> None:
    """As torch's attention does; torch's own translation gives it the mean of all values."""
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(-1)
    given = mask if dtype is torch.bool else torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    inputs = (normal(1, 2, 4, 8), given)
    program = tq.lower(
        torch.export.export(Masked(), inputs), inputs, target="onnxruntime", backends=[], verify=True
    )
    assert not program.run(*inputs)[:, :, 0].any()


@pytest.mark.parametrize("preset", ["byte_per_row", "int4_group32", "int2_per_row"])
def test_rows_of_a_table_are_dequantized_after_they_are_looked_up(preset: str) -> None:
    """The table stays as integers, with the float zero points that embeddings have."""
    torch.manual_seed(0)
    ids = (torch.tensor([[1, 5, 0], [7, 7, 2]]),)
    quantizer = ExecuTorchEmbeddingQuantizer.from_preset(preset)
    program = lowered(nn.Embedding(10, 64), ids, quantizer)
    tables = [
        array for array in constants(program).values() if array.shape[:1] == (10,) and array.size >= 640
    ]
    assert [array.dtype.itemsize for array in tables] == [1]
    assert statuses(program) == {"embedding": "integer_kernel"}


def test_integers_of_inputs_and_outputs_stay() -> None:
    """A program with ``io_dtype`` takes and returns the integers that were asked for."""
    torch.manual_seed(0)
    quantizer = XNNPACKQuantizer.from_preset("static_int8_per_channel")
    model = converted(nn.Linear(8, 8), (normal(3, 8),), quantizer)
    program = tq.lower(
        model, (normal(3, 8),), target="onnxruntime", backends=[], io_dtype=torch.int8, verify=True
    )
    assert [port.dtype for port in (*program.io.inputs, *program.io.outputs)] == ["int8", "int8"]


class Returning(nn.Module):
    """A function of an input and a linear, as a model."""

    def __init__(self, function: Callable[[nn.Linear, torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        """Run it."""
        return self.function(self.linear, x)


RETURNED: dict[str, Callable[[nn.Linear, torch.Tensor], Any]] = {
    "input": lambda linear, x: (linear(x), x),
    "input alone": lambda _, x: x,
    "input twice": lambda linear, x: (x, x, linear(x)),
    "view of the input": lambda linear, x: (x.view(-1), x, linear(x)),
    "number and None": lambda linear, x: (linear(x), 3, None, x),
    "one tensor twice": lambda linear, x: (lambda y: {"a": y, "b": (y, y)})(linear(x)),
}


@pytest.mark.parametrize("name", RETURNED)
@pytest.mark.parametrize("preset", ["static_int8_per_channel", None], ids=["static", "float"])
def test_outputs_are_what_the_model_returns(name: str, preset: str | None) -> None:
    """Also inputs, numbers, and one tensor several times."""
    torch.manual_seed(0)
    inputs = (normal(4, 8),)
    module = Returning(RETURNED[name]).eval()
    model: Any = torch.export.export(module, inputs)
    if preset is not None and name != "input alone":  # which has nothing to quantize
        model = converted(module, inputs, preset)
    program = tq.lower(model, inputs, target="onnxruntime", backends=[], verify=True)
    expected, found = (pytree.tree_flatten(one) for one in (module(*inputs), program.run(*inputs)))
    assert found[1] == expected[1]
    onnx.checker.check_model(model_of(program), full_check=True)


class Named(nn.Module):
    """A linear whose argument has the name that outputs get."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, output_0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run it."""
        return self.linear(output_0), output_0


def test_an_input_may_be_named_like_an_output() -> None:
    """The input keeps its name, and the output gets another one."""
    torch.manual_seed(0)
    program = lowered(Named(), (normal(4, 8),))
    names = [one.name for one in (*model_of(program).graph.input, *model_of(program).graph.output)]
    assert names[0] == "output_0"
    assert len(set(names)) == len(names) == 3


class Shared(nn.Module):
    """A linear that is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run it."""
        return self.linear(torch.relu(self.linear(x))), self.linear(y)


class Residual(nn.Module):
    """A linear whose bias, sum with its input and norm ONNX Runtime makes one kernel of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        found: torch.Tensor = self.norm(self.linear(x) + x)
        return found


class Clamps(nn.Module):
    """Products that a clamp reads, with and without a bias, of vectors and of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.biased = nn.Linear(64, 64, bias=False), nn.Linear(64, 64)
        self.last = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        x = torch.relu(self.biased(nn.functional.relu6(self.plain(x))))
        x = torch.relu(x @ self.plain.weight.T + self.biased.bias)
        found: torch.Tensor = self.last(torch.clamp(x, -1, 1))
        return found


@pytest.mark.parametrize("preset", ["weight_only_int8", "weight_only_int4", "dynamic_int8_per_channel"])
@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        pytest.param(Shared, (normal(3, 64), normal(2, 64)), id="shared"),
        pytest.param(Clamps, (normal(3, 64),), id="clamps"),
        pytest.param(Clamps, (normal(2, 3, 64),), id="clamps-of-tokens"),
        pytest.param(Residual, (normal(2, 5, 64),), id="residual"),
    ],
)
def test_products_read_integers_wherever_their_weight_and_bias_go(
    module: type[nn.Module], inputs: tuple[torch.Tensor, ...], preset: str
) -> None:
    """Those that share a weight, that a clamp reads, and whose bias another kernel adds."""
    torch.manual_seed(0)
    found = statuses(lowered(module(), inputs, preset))
    linears = {node: code for node, code in found.items() if node.startswith("linear")}
    assert set(linears.values()) == {"integer_kernel"}


@pytest.mark.parametrize("quantizer", [None, "static_int8"])
@pytest.mark.parametrize("dims", [0, -1, (0, 2), (1, -1)], ids=str)
def test_a_squeeze_of_what_has_more_elements_leaves_it(
    dims: int | tuple[int, ...], quantizer: str | None
) -> None:
    """As in torch; ONNX has no such Squeeze, and the runtime refuses to load one."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(2, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).squeeze(dims)

    x = normal(2, 2, 1, 3)
    torch.manual_seed(0)
    model = Squeezed().eval()
    given: Any = torch.export.export(model, (x,))
    if quantizer is not None:
        given = converted(model, (x,), quantizer)
    program = tq.lower(given, (x,), target="onnxruntime", backends=[], verify=True)
    assert program.run(x).shape == model(x).shape
