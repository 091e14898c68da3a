"""convert_pt2e(use_reference_representation=True): a model in integer arithmetic, and what stays in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional

import torchquilt as tq
from strategies import (
    INT8,
    WEIGHT,
    ByFunction,
    Fn,
    RandomModel,
    calls,
    export,
    integer_outputs,
    normal,
    one_call,
    prepare,
    random_models,
    sqnr,
)
from torchquilt.graph.node_values import is_constant, is_float_tensor
from torchquilt.pt2e.reference import left_in_float
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def xnnpack(**asked: Any) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


_ACTIVATIONS = tuple(f"aten.{name}.default" for name in ("relu", "relu6", "hardtanh", "clamp"))
_FUSING = ("linear", "conv", "add")


def is_fused(node: Node) -> bool:
    """Whether a node is an activation of an operator that nothing else reads, and that takes one in."""
    source = node.all_input_nodes[0]
    return (
        str(node.target) in _ACTIVATIONS
        and len(source.users) == 1
        and any(f"aten.{name}" in str(source.target) for name in _FUSING)
    )


def everywhere(activation: tq.QuantizationSpec = INT8, weight: tq.QuantizationSpec = WEIGHT) -> ByFunction:
    """A quantizer of whatever an operator reads and gives, each tensor with parameters of its own.

    Constants of two or more dimensions are weights; those of one dimension (biases) stay in float.
    """

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if node.op != "call_function" or not is_float_tensor(node):
            return None
        inputs = {}
        for source in () if is_fused(node) else filter(is_float_tensor, node.all_input_nodes):
            if not is_constant(source):
                inputs[source] = activation
            elif source.meta["val"].dim() > 1:
                inputs[source] = weight
        output = None if any(map(is_fused, node.users)) else activation
        return tq.QuantizationAnnotation(inputs, output, allow_implicit_sharing=False)

    return ByFunction(decide)


@attrs.frozen(eq=False)
class Pair:
    """A model that was converted in both ways from one calibration."""

    converted: GraphModule
    reference: GraphModule

    def distance(self, *inputs: torch.Tensor) -> int:
        """The largest difference between the integers that both return."""
        expected, found = (integer_outputs(model)(*inputs) for model in (self.converted, self.reference))
        pairs = zip(as_tuple(expected), as_tuple(found), strict=True)
        differences = [(one.long() - other.long()).abs() for one, other in pairs if one.dtype is other.dtype]
        assert len(differences) == len(as_tuple(expected)), "both are integers of one type"
        return max(int(difference.max()) for difference in differences)


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    """The outputs of a model that returns one tensor or several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def pair_of(model: nn.Module, quantizer: object, *inputs: torch.Tensor) -> Pair:
    """Prepare, calibrate with these inputs, convert in both ways."""
    return pair_from(prepare(model, quantizer, *inputs), *inputs)


def pair_from(prepared: GraphModule, *inputs: torch.Tensor) -> Pair:
    """Calibrate with these inputs, convert in both ways."""
    tq.calibrate(prepared, [inputs])
    return Pair(tq.convert_pt2e(prepared), tq.convert_pt2e(prepared, use_reference_representation=True))


#: What an accumulator goes through as it is rescaled for an output, in float32.
_REQUANTIZATION = tuple(
    f"aten.{name}" for name in ("to.dtype", "mul.Tensor", "add.Tensor", "clamp.default", "round.default")
)


def computing_in_float(model: GraphModule) -> list[str]:
    """The operators that compute with float tensors: all but the scaling of one tensor by constants."""
    found = []
    for node in calls(model):
        reads_float = any(is_float_tensor(source) for source in node.all_input_nodes)
        name = str(node.target)
        tensors = [value for value in node.args if isinstance(value, Node) and value.op != "get_attr"]
        is_scaling = name in _REQUANTIZATION and len(tensors) == 1
        if reads_float and not is_scaling and "quantize" not in name:
            found.append(name)
    return found


# ----------------------------------------------------------------------------------------------------------
# Each operator
# ----------------------------------------------------------------------------------------------------------

ROWS = (normal(16, 12),)
SEQUENCE = (normal(4, 4, 11),)
IMAGE = (normal(4, 4, 9, 9),)
PAIR = (normal(4, 4, 6, 6), normal(4, 4, 6, 6, seed=1) * 3 + 2)


def of_pair(function: Callable[..., Any]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A function of two tensors of different ranges."""
    return Fn(lambda m, x, y: function(x, y)), PAIR


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "linear": lambda: (nn.Linear(12, 7), ROWS),
    "linear without bias": lambda: (nn.Linear(12, 7, bias=False), ROWS),
    "linear of one dimension": lambda: (nn.Linear(12, 7), (normal(12),)),
    "linear, relu": lambda: (nn.Sequential(nn.Linear(12, 7), nn.ReLU()), ROWS),
    "conv1d": lambda: (nn.Conv1d(4, 6, 4, stride=3, padding=2), SEQUENCE),
    "conv2d": lambda: (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 1)), IMAGE),
    "conv2d, dilated": lambda: (nn.Conv2d(4, 6, 3, padding=3, dilation=(2, 1), groups=2), IMAGE),
    "conv2d, same": lambda: (nn.Conv2d(4, 6, 3, padding="same", bias=False), IMAGE),
    "depthwise, relu6": lambda: (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU6()), IMAGE),
    "conv2d, hardtanh": lambda: (nn.Sequential(nn.Conv2d(4, 6, 3), nn.Hardtanh(-0.4, 0.3)), IMAGE),
    "conv2d, clamp": lambda: (Fn(lambda m, x: m.c(x).clamp(max=0.1), c=nn.Conv2d(4, 6, 3)), IMAGE),
    "conv2d of one image": lambda: (nn.Conv2d(4, 6, 3), (normal(4, 9, 9),)),
    "add": lambda: of_pair(torch.add),
    "add, relu": lambda: of_pair(lambda x, y: (x + y).relu()),
    "add of itself": lambda: of_pair(lambda x, y: (x + x, y + y)),
    "add of different shapes": lambda: (Fn(lambda m, x, y: x + y), (normal(3, 4, 5), normal(4, 1, seed=1))),
    "mul": lambda: of_pair(torch.mul),
    "cat": lambda: of_pair(lambda x, y: torch.cat([x, y, x], 1)),
    "max_pool2d": lambda: of_pair(lambda x, y: functional.max_pool2d(x + y, 3, 2, 1, ceil_mode=True)),
    "mean": lambda: of_pair(lambda x, y: (x + y).mean((3, -2))),
    "adaptive_avg_pool2d": lambda: (nn.AdaptiveAvgPool2d(1), IMAGE),
    "view": lambda: of_pair(lambda x, y: (x + y).view(4, 12, 12)),
    "reshape": lambda: of_pair(lambda x, y: (x + y).transpose(1, 2).reshape(4, -1)),
    "permute": lambda: of_pair(lambda x, y: (x + y).permute(0, 3, 1, 2)),
    "slice": lambda: of_pair(lambda x, y: (x + y)[:, 1:3]),
    "flatten": lambda: of_pair(lambda x, y: (x + y).flatten(1)),
    "squeeze": lambda: of_pair(lambda x, y: (x + y).unsqueeze(1).squeeze(1)),
    "dropout": lambda: of_pair(lambda x, y: functional.dropout(x + y, training=False)),
    "relu behind a cat": lambda: of_pair(lambda x, y: torch.cat([x, y], 1).relu()),
    "clamp behind a view": lambda: of_pair(lambda x, y: (x + y).view(4, -1).clamp(-1, 2)),
}
models = pytest.mark.parametrize("name", MODELS)


@pytest.mark.parametrize("is_per_channel", [False, True], ids=["per tensor", "per channel"])
@models
def test_operator_in_integer_arithmetic(name: str, is_per_channel: bool) -> None:
    """Only constants scale in float between the quantized inputs and the integer outputs, which agree."""
    model, inputs = MODELS[name]()
    # No part of XNNPACK's table, so that input and output have different scales everywhere.
    weight = WEIGHT if is_per_channel else tq.QuantizationSpec("int8", symmetric=True)
    pair = pair_of(model, everywhere(weight=weight), *inputs)

    assert left_in_float(pair.reference) == {}
    assert computing_in_float(integer_outputs(pair.reference)) == []
    assert computing_in_float(integer_outputs(pair.converted)) != []
    assert pair.distance(*inputs) <= 1


@pytest.mark.parametrize("fields", [("uint8", 0, 255), ("int8", -100, 90), ("int16",)], ids=str)
@pytest.mark.parametrize("name", ["add, relu", "mul", "cat", "max_pool2d", "mean", "permute"])
def test_operator_on_other_scales(name: str, fields: tuple[Any, ...]) -> None:
    """Bytes, a part of int8, and 16 bits, whose sums and products need not fit into int32."""
    model, inputs = MODELS[name]()
    pair = pair_of(model, everywhere(tq.QuantizationSpec(*fields)), *inputs)

    assert left_in_float(pair.reference) == {}
    assert pair.distance(*inputs) <= 1


@pytest.mark.parametrize(
    "activation",
    [
        torch.relu,
        functional.relu6,
        lambda x: functional.hardtanh(x, -0.5, 0.25),
        lambda x: x.clamp(max=0.3),
        lambda x: x.clamp(0.5, -0.5),
    ],
    ids=["relu", "relu6", "hardtanh", "clamp", "clamp with bounds that cross"],
)
@pytest.mark.parametrize("is_fused", [False, True], ids=["alone", "fused"])
def test_activation_cuts_off_within_the_range(
    is_fused: bool, activation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Integers end where the activation does if the range goes further."""
    fixed = tq.FixedQParamsQuantizationSpec("int8", scale=0.05, zero_point=-11)

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" in str(node.target):
            output = None if is_fused else fixed
            return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: WEIGHT}, output)
        return tq.QuantizationAnnotation({}, fixed) if node.op == "call_function" else None

    x = normal(16, 12) * 5
    pair = pair_of(Fn(lambda m, x: activation(m.fc(x)), fc=nn.Linear(12, 7)), ByFunction(decide), x)

    assert left_in_float(pair.reference) == {}
    assert pair.distance(x) <= 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2])
def test_transposed_convolution(dims: int, groups: int) -> None:
    """A weight has its channels in the second axis, and a scale serves the same channel of each group."""
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
    model = kind(4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups)
    model.weight.data *= torch.arange(1, 6 // groups + 1).reshape(1, -1, *[1] * dims)
    x = normal(2, 4, *[5] * dims)
    pair = pair_of(model, everywhere(weight=attrs.evolve(WEIGHT, ch_axis=1)), x)

    assert left_in_float(pair.reference) == {}
    assert pair.distance(x) <= 1


def test_view_of_another_memory_format() -> None:
    """A view that the memory format of the floats allows is one that the integers' allows, too."""
    x = normal(2, 4, 6, 6).to(memory_format=torch.channels_last)
    model = Fn(lambda m, x: m.conv(x).permute(0, 2, 3, 1).view(2, -1), conv=nn.Conv2d(4, 8, 3))
    pair = pair_of(model, everywhere(), x)

    assert left_in_float(pair.reference) == {}
    assert pair.distance(x) <= 1


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor, tq.QuantizationSpec, tq.QuantizationSpec]:
    """A linear layer or a convolution of any kind, an input for it, and specs for activations and weight."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    has_bias = draw(st.booleans())
    dims = draw(st.integers(0, 2))
    sizes = [draw(st.integers(5, 8)) for _ in range(dims)]
    if dims == 0:
        model: nn.Module = nn.Linear(inputs, outputs, bias=has_bias)
    else:
        is_transposed = draw(st.booleans())
        options = {
            "stride": tuple(draw(st.integers(1, 3)) for _ in range(dims)),
            "padding": tuple(draw(st.integers(0, 2)) for _ in range(dims)),
            "dilation": tuple(draw(st.integers(1, 2)) for _ in range(dims)),
            "groups": groups,
            "bias": has_bias,
        }
        kernel = tuple(draw(st.integers(2, 3)) for _ in range(dims))
        kind = getattr(nn, f"Conv{'Transpose' if is_transposed else ''}{dims}d")
        model = kind(inputs, outputs, kernel, **options)
    activation = draw(st.sampled_from([None, nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.25, 0.5)]))
    model = model if activation is None else nn.Sequential(model, activation)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    offset = draw(st.sampled_from([-2.0, 0.0, 1.0]))  # moves the zero point
    example = torch.randn(3, inputs, *sizes, generator=generator) + offset
    axis = None if draw(st.booleans()) else int("Transpose" in str(model))
    drawn = draw(
        st.sampled_from([("int8", -127, 127, True), ("int8", -128, 127, False), ("uint8", 0, 255, False)])
    )
    dtype, low, high, symmetric = drawn
    granularity = "per_tensor" if axis is None else "per_axis"
    weight = tq.QuantizationSpec(dtype, low, high, granularity, ch_axis=axis, symmetric=symmetric)
    activations = draw(
        st.sampled_from(
            [("int8", -128, 127), ("int8", -100, 90), ("uint8", 0, 255), ("int16", -(2**15), 2**15 - 1)]
        )
    )
    return model, example, tq.QuantizationSpec(*activations), weight


def steps_lost_with_the_bias(model: GraphModule) -> int:
    """Largest error of rounding the bias, in quantization steps of the output, in a converted layer.

    Kernels add the bias as int32, in steps of input scale times weight scale. Where hardly anything comes out
    of a ReLU, the scale of the output is finer than that.
    """
    quantizing = calls(model, ".quantize_per_tensor")
    source, output = (float(node.args[1]) for node in (quantizing[0], quantizing[-1]))
    (weight,) = (node for node in calls(model, ".dequantize_per") if node.args[0].op == "get_attr")
    scale = weight.args[1]
    largest = float(model.get_buffer(scale.target).max()) if isinstance(scale, Node) else float(scale)
    return int(source * largest / output / 2)


@settings(max_examples=60)
@given(layers())
def test_any_layer_agrees(
    drawn: tuple[nn.Module, torch.Tensor, tq.QuantizationSpec, tq.QuantizationSpec],
) -> None:
    """Whatever strides, groups and scales are, the integers differ by 1 at most, and the bias's rounding."""
    model, example, activation, weight = drawn
    pair = pair_of(model, everywhere(activation, weight), example)
    allowed = 1 + steps_lost_with_the_bias(pair.converted)

    assert left_in_float(pair.reference) == {}
    assert pair.distance(example) <= allowed
    assert pair.distance(example * 3 - 1) <= allowed  # beyond what was calibrated: cut off at the same ends


@pytest.mark.filterwarnings("ignore:Something was asked for in this model")
@settings(max_examples=30)
@given(
    random_models(), st.sampled_from([everywhere(), xnnpack(is_per_channel=True), xnnpack(is_dynamic=True)])
)
def test_any_model_agrees(model: RandomModel, quantizer: tq.Quantizer) -> None:
    """A reference model is as near to the float model as its Q/DQ model is, but for a few steps."""
    exported = export(model, model.example)
    # Where nothing is quantized that is no error: the model is random.
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
    pair = pair_from(prepared, model.example)
    step = max((float(node.args[1]) for node in calls(pair.converted, ".quantize_per_tensor")), default=0.0)
    with torch.no_grad():
        outputs = [each(model.example) for each in (model, pair.converted, pair.reference)]
    for wanted, converted, reference in zip(*outputs, strict=True):
        assert reference.shape == wanted.shape
        assert reference.dtype is wanted.dtype
        error = float((converted - wanted).abs().max())
        assert float((reference - wanted).abs().max()) <= 2 * error + 2 * step


# ----------------------------------------------------------------------------------------------------------
# Float outputs: dynamic quantization, weights alone, embeddings
# ----------------------------------------------------------------------------------------------------------


def types_read(model: GraphModule, part: str) -> set[torch.dtype]:
    """The types of all tensors that an operator reads."""
    return {source.meta["val"].dtype for node in calls(model, part) for source in node.all_input_nodes}


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (12,)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
def test_dynamic_linear_multiplies_integers(shape: tuple[int, ...], has_bias: bool) -> None:
    """Each row is quantized by itself, integers are multiplied, and the float output agrees to 100 dB."""
    x = normal(*shape)
    pair = pair_of(nn.Linear(12, 7, bias=has_bias), xnnpack(is_dynamic=True), x)

    assert left_in_float(pair.reference) == {}
    assert types_read(pair.reference, "aten.linear") == {torch.int32}
    assert sqnr(pair.converted(x), pair.reference(x)) > 100


@pytest.mark.parametrize("output", [None, INT8], ids=["float output", "integer output"])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(9, 5), lambda: nn.Conv2d(4, 5, 3, padding=1)], ids=["linear", "conv2d"]
)
def test_input_with_one_dynamic_scale(make: Callable[[], nn.Module], output: Any) -> None:
    """One scale for the whole input, found at run time, does for convolutions, too."""
    dynamic = tq.QuantizationSpec("int8", is_dynamic=True)

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "aten" not in str(node.target):
            return None
        return tq.QuantizationAnnotation({node.args[0]: dynamic, node.args[1]: WEIGHT}, output)

    x = normal(2, 4, 9, 9) + 1
    pair = pair_of(make(), ByFunction(decide), x)

    assert left_in_float(pair.reference) == {}
    assert types_read(pair.reference, "linear") | types_read(pair.reference, "conv2d") == {torch.int32}
    assert sqnr(pair.converted(x), pair.reference(x)) > (100 if output is None else 40)


def test_static_input_with_a_float_output() -> None:
    """The accumulator is scaled to float if the output is not quantized."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        is_linear = "linear" in str(node.target)
        return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: WEIGHT}) if is_linear else None

    model = nn.Sequential(nn.Linear(12, 7), nn.Sigmoid())
    pair = pair_of(model, ByFunction(decide), *ROWS)

    assert left_in_float(pair.reference) == {}
    assert types_read(pair.reference, "aten.linear") == {torch.int32}
    assert sqnr(pair.converted(*ROWS), pair.reference(*ROWS)) > 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_comes_out_in_its_own_type(dtype: torch.dtype) -> None:
    """A model in half precision has the same integers inside and the same type outside."""
    x = normal(6, 12).to(dtype)

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        is_linear = "linear" in str(node.target)
        return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: WEIGHT}) if is_linear else None

    pair = pair_of(nn.Linear(12, 7).to(dtype), ByFunction(decide), x)

    assert types_read(pair.reference, "aten.linear") == {torch.int32}
    assert pair.reference(x).dtype is dtype
    assert sqnr(pair.converted(x).float(), pair.reference(x).float()) > 40


@pytest.mark.parametrize(
    "ids",
    [torch.tensor([[0, 3, 19]]), torch.tensor(7), torch.zeros(0, 2, dtype=torch.int64)],
    ids=["matrix", "scalar", "empty"],
)
def test_embedding_scales_the_rows_it_picks(ids: torch.Tensor) -> None:
    """Rows are picked as bytes and then scaled, to the floats of the Q/DQ model; no float table is made."""
    pair = pair_of(nn.Embedding(20, 8, padding_idx=3), ExecuTorchEmbeddingQuantizer(), ids)

    assert left_in_float(pair.reference) == {}
    (table,) = (
        node for node in one_call(pair.reference, "aten.embedding").all_input_nodes if node.op == "get_attr"
    )
    assert table.meta["val"].dtype is torch.uint8
    assert not [node for node in calls(pair.reference) if node.meta["val"].shape == (20, 8)]
    assert torch.equal(pair.converted(ids), pair.reference(ids))


# ----------------------------------------------------------------------------------------------------------
# Accumulators
# ----------------------------------------------------------------------------------------------------------


def accumulator_of(model: GraphModule, part: str) -> torch.dtype:
    """The type that an operator sums up in."""
    dtype: torch.dtype = one_call(model, part).meta["val"].dtype
    return dtype


def test_long_sums_that_int32_cannot_hold() -> None:
    """A sum of 70,000 products is accumulated in int64 and comes out right; one of 1,000 is in int32."""
    x = torch.ones(1, 70_000)
    model = nn.Linear(70_000, 2, bias=False)
    model.weight.data.fill_(1.0)
    pair = pair_of(model, everywhere(), x)

    assert accumulator_of(pair.reference, "aten.linear") is torch.int64
    assert pair.distance(x) <= 1
    torch.testing.assert_close(pair.reference(x), model(x).detach(), rtol=1e-2, atol=0)
    short = pair_of(nn.Linear(1_000, 2), everywhere(), x[:, :1_000])
    assert accumulator_of(short.reference, "aten.linear") is torch.int32


# ----------------------------------------------------------------------------------------------------------
# Scales that do not fit together
# ----------------------------------------------------------------------------------------------------------


def test_a_tensor_that_is_quantized_anew() -> None:
    """From one scale straight to another one, integers are rescaled without a float tensor between."""
    narrow = tq.FixedQParamsQuantizationSpec("uint8", scale=0.02, zero_point=100)

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "add" in str(node.target):
            return tq.QuantizationAnnotation(dict.fromkeys(node.args, INT8), INT8)
        if "relu" in str(node.target):
            return tq.QuantizationAnnotation({node.args[0]: narrow}, narrow, allow_implicit_sharing=False)
        return None

    model, inputs = Fn(lambda m, x, y: ((z := x + y), z.relu())), PAIR
    pair = pair_of(model, ByFunction(decide), *inputs)

    assert left_in_float(pair.reference) == {}
    assert computing_in_float(integer_outputs(pair.reference)) == []
    assert pair.distance(*inputs) <= 1


def test_one_output_with_two_scales() -> None:
    """Users that quantize one tensor each in their own way read two roundings of it."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        name = str(node.target)
        if "linear" in name:
            return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: WEIGHT})
        spec = INT8 if "relu" in name else tq.QuantizationSpec("uint8")
        return tq.QuantizationAnnotation({node.args[0]: spec}, spec) if "aten" in name else None

    model = Fn(lambda m, x: ((y := m.fc(x)).relu(), y.view(-1)), fc=nn.Linear(12, 7))
    pair = pair_of(model, ByFunction(decide), *ROWS)

    assert left_in_float(pair.reference) == {}
    assert computing_in_float(integer_outputs(pair.reference)) == []
    assert pair.distance(*ROWS) <= 1


# ----------------------------------------------------------------------------------------------------------
# What stays in float
# ----------------------------------------------------------------------------------------------------------


def computed_weight(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear layer whose weight comes from the input."""
    return functional.linear(x, torch.relu(x))


def computed_bias(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear layer whose bias comes from the input."""
    return functional.linear(x, m.weight, x[0, :7])


def along_inputs(node: Node) -> tq.QuantizationAnnotation | None:
    """A weight with one scale for each input, which no accumulator can be multiplied by."""
    if "linear" not in str(node.target):
        return None
    weight = tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=1, symmetric=True)
    return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: weight}, INT8)


def in_groups(node: Node) -> tq.QuantizationAnnotation | None:
    """A weight with a scale for each group of inputs."""
    if "linear" not in str(node.target):
        return None
    weight = tq.QuantizationSpec("int8", granularity="per_group", group_size=4, symmetric=True)
    return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: weight}, INT8)


def by_token(node: Node) -> tq.QuantizationAnnotation | None:
    """An input with a scale for each row, for whatever reads it."""
    if "conv1d" not in str(node.target):
        return None
    rows = tq.QuantizationSpec("int8", granularity="per_token", is_dynamic=True)
    return tq.QuantizationAnnotation({node.args[0]: rows, node.args[1]: WEIGHT})


def float_zero_points(node: Node) -> tq.QuantizationAnnotation | None:
    """A weight whose zeros are between two integers."""
    if "linear" not in str(node.target):
        return None
    spec = tq.QuantizationSpec("uint8", granularity="per_axis", ch_axis=0, zero_point_domain="float")
    return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: spec}, INT8)


def weight_alone(node: Node) -> tq.QuantizationAnnotation | None:
    """A weight that is quantized where the input is not."""
    return tq.QuantizationAnnotation({node.args[1]: WEIGHT}) if "linear" in str(node.target) else None


def first_operand(node: Node) -> tq.QuantizationAnnotation | None:
    """One operand of two, and the output."""
    return tq.QuantizationAnnotation({node.args[0]: INT8}, INT8) if "add" in str(node.target) else None


def input_alone(node: Node) -> tq.QuantizationAnnotation | None:
    """The input of a view, whose output is read in float."""
    return tq.QuantizationAnnotation({node.args[0]: INT8}) if "view" in str(node.target) else None


def as_uint16(node: Node) -> tq.QuantizationAnnotation | None:
    """A type that torch computes little with."""
    spec = tq.QuantizationSpec("uint16")
    return tq.QuantizationAnnotation({node.args[0]: spec}, spec) if "view" in str(node.target) else None


def tiny_steps(node: Node) -> tq.QuantizationAnnotation | None:
    """A bias of millions in steps of 1e-12."""
    if "linear" not in str(node.target):
        return None
    tiny = tq.FixedQParamsQuantizationSpec("int8", scale=1e-12, zero_point=0)
    return tq.QuantizationAnnotation({node.args[0]: tiny, node.args[1]: WEIGHT}, INT8)


def far_apart(node: Node) -> tq.QuantizationAnnotation | None:
    """A sum whose quantization steps are a million times those of its operands."""
    coarse = tq.FixedQParamsQuantizationSpec("int8", scale=1e6, zero_point=0)
    return (
        tq.QuantizationAnnotation(dict.fromkeys(node.args, INT8), coarse)
        if "add" in str(node.target)
        else None
    )


LEFT: dict[str, tuple[str, Callable[[Node], Any], Callable[[], nn.Module]]] = {
    "scales along the inputs": ("axis", along_inputs, lambda: nn.Linear(12, 7)),
    "scales of groups": ("weight", in_groups, lambda: nn.Linear(12, 7)),
    "rows in a convolution": ("per_token", by_token, lambda: nn.Conv1d(16, 4, 3)),
    "float zero points of a weight": ("zero_point", float_zero_points, lambda: nn.Linear(12, 7)),
    "a float input": ("input_not_quantized", weight_alone, lambda: nn.Linear(12, 7)),
    "a float operand": ("input_not_quantized", first_operand, lambda: Fn(lambda m, x: x + x.exp())),
    "a float output": ("output_not_quantized", input_alone, lambda: Fn(lambda m, x: x.view(-1))),
    "a number": ("scalar", first_operand, lambda: Fn(lambda m, x: x + 2)),
    "a factor": ("alpha", everywhere().decide, lambda: Fn(lambda m, x: torch.add(x, x.relu(), alpha=2))),
    "a computed weight": ("weight", everywhere().decide, lambda: Fn(computed_weight)),
    "a computed bias": ("bias", everywhere().decide, lambda: Fn(computed_bias, weight=normal(7, 12))),
    "a bias beyond int32": ("bias", tiny_steps, lambda: nn.Linear(12, 7)),
    "steps that are far apart": ("scales", far_apart, lambda: Fn(lambda m, x: x + x)),
    "a type that torch cannot clamp": (
        "output_not_quantized",
        as_uint16,
        lambda: Fn(lambda m, x: x.view(-1)),
    ),
    "an operator without a rule": ("no_rule", everywhere().decide, lambda: Fn(lambda m, x: x.softmax(-1))),
    "a mean in a type of its own": (
        "dtype",
        everywhere().decide,
        lambda: Fn(lambda m, x: x.mean(1, dtype=torch.float32)),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_no_rule_takes_stays_as_it_was(name: str) -> None:
    """It reads and gives what it did, to the last bit, and the reason is told."""
    code, decide, make = LEFT[name]
    pair = pair_of(make(), ByFunction(decide), *ROWS)
    reasons = left_in_float(pair.reference)

    assert code in {reason.code for reason in reasons.values()}
    assert all(reason.text and node in pair.reference.graph.nodes for node, reason in reasons.items())
    assert torch.equal(pair.converted(*ROWS), pair.reference(*ROWS))


def test_average_of_a_number_of_pixels_that_is_not_fixed() -> None:
    """A mean over a dynamic dimension divides by what is known when it runs; it stays in float."""
    x = normal(4, 3, 6, 6)
    width = torch.export.Dim("width", min=2, max=64)
    exported = export(nn.AdaptiveAvgPool2d(1), x, dynamic_shapes=({3: width},))
    pair = pair_from(tq.prepare_pt2e(exported, everywhere()), x)
    ((node, reason),) = left_in_float(pair.reference).items()

    assert (node.name, reason.code) == ("adaptive_avg_pool2d", "dynamic_shape")
    assert torch.equal(pair.converted(x[..., :3]), pair.reference(x[..., :3]))
