"""The facts about ONNX Runtime on which the support table rests, measured with Q/DQ models made by hand.

torchquilt has no part in these: where one fails with another ONNX Runtime, the table is to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plugins.onnxruntime.qdq_models import Builder, kernels

_CONVERT = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape"}
_IMAGE = (1, 8, 6, 6)


def _computing(make: Callable[[Builder], str | list[str]]) -> list[str]:
    """The kernels that neither convert nor change the layout."""
    return [name for name in kernels(make) if name not in _CONVERT]


def _conv(
    rank: int = 2,
    activation: str = "uint8",
    weight: str = "int8",
    axis: int | None = 0,
    groups: int = 1,
    after: Callable[[Builder, str], str] | None = None,
    zero_point: int | None = None,
    scale: float = 0.05,
) -> list[str]:
    def make(b: Builder) -> str:
        x = b.quantized(b.input(1, 8, *[6] * rank), activation)
        w = b.weight(8, 8 // groups, *[3] * rank, axis=axis, dtype=weight)
        y = b.call("Conv", x, w, b.bias(8), group=groups)
        y = after(b, y) if after is not None else y
        return b.quantized(y, activation, scale, zero_point)

    return _computing(make)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("axis", [None, 0])
def test_a_convolution_of_8_bits_is_one_kernel_of_integers(rank: int, groups: int, axis: int | None) -> None:
    """One, two and three dimensions, in groups and depthwise, one scale or one for each channel."""
    assert _conv(rank, axis=axis, groups=groups) == ["QLinearConv"]


@pytest.mark.parametrize("activation", ["uint16", "int16"])
def test_a_convolution_of_16_bits_is_float(activation: str) -> None:
    """So no row takes activations of 16 bits."""
    assert "QLinearConv" not in _conv(activation=activation)


def test_a_transposed_convolution_is_float() -> None:
    """So the table refuses it."""

    def make(b: Builder) -> str:
        x, w = b.quantized(b.input(*_IMAGE)), b.weight(8, 8, 3, 3, axis=1)
        return b.quantized(b.call("ConvTranspose", x, w))

    assert _computing(make) == ["ConvTranspose"]


def _clip(b: Builder, y: str) -> str:
    return b.call("Clip", y, b.constant(np.float32(0)), b.constant(np.float32(6)))


@pytest.mark.parametrize("after", [lambda b, y: b.call("Relu", y), _clip], ids=["relu", "clip"])
def test_an_activation_is_fused_if_it_cuts_off_what_the_integers_cut_off(
    after: Callable[[Builder, str], str],
) -> None:
    """With the range of the integers that calibration finds behind it; not with a wider one."""
    assert _conv(after=after, zero_point=0, scale=5.9 / 255) == ["QLinearConv"]
    assert "QLinearConv" not in _conv(after=after, zero_point=128)


def test_padding_with_zeros_is_fused_with_the_convolution() -> None:
    """As no quantize stands between."""

    def make(b: Builder) -> str:
        x = b.quantized(b.input(*_IMAGE))
        padded = b.call("Pad", x, b.constant(np.array([0, 0, 0, 1, 0, 0, 1, 0])))
        return b.quantized(b.call("Conv", padded, b.weight(8, 8, 3, 3, axis=0), b.bias(8)))

    assert _computing(make) == ["QLinearConv"]


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_of_8_bits_is_one_kernel_of_integers(axis: int | None, has_bias: bool) -> None:
    """Of matrices, and of stacks of them."""

    def gemm(b: Builder) -> str:
        bias = [b.bias(16)] if has_bias else []
        x, w = b.quantized(b.input(4, 8)), b.weight(8, 16, axis=axis)
        return b.quantized(b.call("Gemm", x, w, *bias))

    def matmul(b: Builder) -> str:
        y = b.call("MatMul", b.quantized(b.input(2, 4, 8)), b.weight(8, 16, axis=axis))
        return b.quantized(b.call("Add", y, b.bias(16)) if has_bias else y)

    assert _computing(gemm) == ["QGemm"]
    assert _computing(matmul) == ["QGemm" if has_bias else "QLinearMatMul"]


def test_a_product_of_two_activations_is_one_kernel_of_integers() -> None:
    """Both with one scale."""

    def make(b: Builder) -> str:
        x, y = b.quantized(b.input(2, 4, 8)), b.quantized(b.input(2, 8, 5))
        return b.quantized(b.call("MatMul", x, y))

    assert _computing(make) == ["QLinearMatMul"]


@pytest.mark.parametrize("size", [1, 16], ids=["per tensor", "per channel"])
def test_a_product_of_a_tensor_that_is_quantized_at_run_time_is_one_kernel(size: int) -> None:
    """With its bias."""

    def make(b: Builder) -> str:
        integers, scale, zero_point = b.call("DynamicQuantizeLinear", b.input(2, 4, 8), outputs=3)
        weight = b.constant((np.arange(128).reshape(8, 16) % 129 - 64).astype(np.int8))
        sums = b.call("MatMulInteger", integers, weight, zero_point, b.constant(np.zeros(size, np.int8)))
        scales = b.call("Mul", scale, b.constant(np.full(size, 0.01, np.float32)))
        y = b.call("Mul", b.call("Cast", sums, to=1), scales)
        return str(b.call("Add", y, b.constant(np.ones(16, np.float32))))

    assert _computing(make) == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("block", [0, 16, 32, 64, 128])
def test_a_product_with_a_weight_of_integers_is_one_kernel(dtype: str, block: int) -> None:
    """With a scale for each channel, or for each block of at least 16; so the table has such groups."""

    def make(b: Builder) -> str:
        weight = b.weight(256, 16, axis=0 if block else 1, dtype=dtype, block=block)
        return str(b.call("MatMul", b.input(2, 3, 256), weight))

    assert _computing(make) == ["MatMulNBits"]


@pytest.mark.parametrize("block", [8, 24])
def test_a_product_with_a_weight_in_other_blocks_is_float(block: int) -> None:
    """Smaller than 16, or no power of two."""

    def make(b: Builder) -> str:
        return str(b.call("MatMul", b.input(2, 3, 48), b.weight(48, 16, axis=0, dtype="int4", block=block)))

    assert _computing(make) == ["MatMul"]


def test_a_convolution_with_a_weight_of_integers_is_float() -> None:
    """So weights alone are quantized in products alone."""
    assert _computing(lambda b: str(b.call("Conv", b.input(*_IMAGE), b.weight(8, 8, 3, 3, axis=0)))) == [
        "Conv"
    ]


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_elementwise_operators_of_integers(operator: str) -> None:
    """Each tensor has a scale of its own; one may be broadcast, or a constant."""

    def of_tensors(b: Builder) -> str:
        x, y = b.quantized(b.input(*_IMAGE)), b.quantized(b.input(1, 8, 1, 1), scale=0.04)
        return b.quantized(b.call(operator, x, y), scale=0.07)

    def of_a_constant(b: Builder) -> str:
        number = b.call("DequantizeLinear", b.constant(np.uint8(255)), b.constant(np.float32(0.01)))
        return b.quantized(b.call(operator, b.quantized(b.input(*_IMAGE)), number), scale=0.07)

    assert _computing(of_tensors) == [f"QLinear{operator}"]
    assert _computing(of_a_constant) == [f"QLinear{operator}"]


@pytest.mark.parametrize("operator", ["Sub", "Div", "Max", "Min"])
def test_elementwise_operators_of_floats(operator: str) -> None:
    """So the table has rows for them only in another form, or none."""

    def make(b: Builder) -> str:
        return b.quantized(b.call(operator, b.quantized(b.input(4, 8)), b.quantized(b.input(4, 8))))

    assert _computing(make) == [operator]


def _of_image(
    operator: str, is_same: bool = False, more: tuple[object, ...] = (), **options: object
) -> list[str]:
    def make(b: Builder) -> str:
        inputs = [b.constant(value) for value in more]
        y = b.call(operator, b.quantized(b.input(*_IMAGE)), *inputs, **options)
        return b.quantized(y, scale=0.05 if is_same else 0.07)

    return kernels(make)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("Sigmoid", {}),
        ("LeakyRelu", {"alpha": 0.1}),
        ("Softmax", {"axis": -1}),
        ("AveragePool", {"kernel_shape": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 0}),
        ("GlobalAveragePool", {}),
    ],
)
def test_operators_of_one_tensor_of_integers(operator: str, options: dict[str, object]) -> None:
    """The output has a scale of its own."""
    assert _of_image(operator, **options) == ["QuantizeLinear", f"QLinear{operator}", "DequantizeLinear"]


@pytest.mark.parametrize("operator", ["Tanh", "HardSigmoid", "Gelu", "Elu", "Erf", "Exp", "Sqrt", "Neg"])
def test_operators_of_one_tensor_of_floats(operator: str) -> None:
    """So the table has no rows for them."""
    assert operator in _of_image(operator)


def test_a_mean_over_an_image_is_float_unless_it_is_pooling() -> None:
    """So means are written as pooling."""
    assert "ReduceMean" in _of_image("ReduceMean", more=(np.array([2, 3]),))


_MOVING = [
    ("Transpose", (), {"perm": [0, 2, 3, 1]}),
    ("Reshape", (np.array([1, -1]),), {}),
    ("Slice", (np.array([0]), np.array([4]), np.array([1]), np.array([2])), {}),
    ("Gather", (np.array([1, 0]),), {"axis": 1}),
    ("Expand", (np.array([3, 8, 6, 6]),), {}),
    ("MaxPool", (), {"kernel_shape": [2, 2]}),
]


@pytest.mark.parametrize(("operator", "more", "options"), _MOVING, ids=[name for name, _, _ in _MOVING])
def test_data_is_moved_as_integers_between_the_same_parameters(
    operator: str, more: tuple[object, ...], options: dict[str, object]
) -> None:
    """And as floats between others; so these operators share the parameters of their input."""
    assert _of_image(operator, True, more, **options) == ["QuantizeLinear", operator, "DequantizeLinear"]
    assert len(_of_image(operator, False, more, **options)) == 5


@pytest.mark.parametrize("scale", [0.05, 0.07], ids=["one scale", "two scales"])
def test_tensors_are_joined_and_chosen_as_integers(scale: float) -> None:
    """With scales of their own, so they need not share parameters."""

    def joined(b: Builder) -> str:
        tensors = [b.quantized(b.input(4, 8)), b.quantized(b.input(4, 8), scale=scale)]
        return b.quantized(b.call("Concat", *tensors, axis=0))

    def chosen(b: Builder) -> str:
        is_kept = b.constant(np.arange(32).reshape(4, 8) % 3 == 0)
        tensors = [b.quantized(b.input(4, 8)), b.quantized(b.input(4, 8), scale=scale)]
        return b.quantized(b.call("Where", is_kept, *tensors))

    assert _computing(joined) == ["QLinearConcat"]
    assert _computing(chosen) == ["QLinearWhere"]
