"""Ready rewrites: what a match is written as computes the same, bit for bit or nearly so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, calls, normal
from torchquilt.backend import FLOAT32, OperatorPattern, is_split, rewrites
from torchquilt.backend import operators as ops

ACTIVATION = tq.AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
WEIGHT = tq.AllowedSpec("int8", -127, 127, ("per_tensor",), symmetric=True)
_SPEC = tq.QuantizationSpec("int8", -128, 127)
ASKED = tq.QuantizationConfig(
    input_activation=_SPEC,
    output_activation=_SPEC,
    weight=tq.QuantizationSpec("int8", -127, 127, symmetric=True),
)
IMAGE, ROWS, VECTOR = normal(2, 8, 4, 6), normal(3, 5), normal(5)
BATCH = torch.export.Dim("batch", min=2, max=8)

Function = Callable[..., torch.Tensor]


#: Operators that the rewrites write. A table has rows for them, or the rewrite is refused.
_FORMS = (
    *((one,) for one in (ops.RESHAPE, ops.PERMUTE, ops.CONTIGUOUS, ops.SLICE, ops.CAT, ops.ADD, ops.SUB)),
    *((one,) for one in (ops.MUL, ops.SIGMOID, ops.MEAN, ops.ADAPTIVE_AVG_POOL2D, ops.LINEAR)),
    (ops.LINEAR, ops.HARDTANH),
)


def table_of(operators: tuple[ops.Operator, ...], rewrite: Any) -> tq.SupportTable:
    """A table with a row that is rewritten, and rows for all forms."""

    def row(*pattern: ops.Operator, **rest: Any) -> tq.SupportRow:
        specs: dict[Any, Any] = {"input_activation": (ACTIVATION,), "output_activation": (ACTIVATION,)}
        if "weight" in pattern[0].roles:
            specs["weight"] = (WEIGHT,)
        return tq.SupportRow(OperatorPattern.of(*pattern), specs, constraints=(FLOAT32,), **rest)

    forms = (row(*pattern) for pattern in _FORMS if pattern != operators)
    return tq.SupportTable("forms", (row(*operators, rewrite=(rewrite,)), *forms))


def written(
    operators: tuple[ops.Operator, ...],
    rewrite: Any,
    model: nn.Module | Function,
    x: torch.Tensor,
    shapes: Any = None,
) -> tuple[GraphModule, list[str]]:
    """A model prepared with such a table, once it was seen to compute the same.

    Returns:
        It, and the operators that it calls.
    """

    class Forms(tq.PatternQuantizer):
        TABLE = table_of(operators, rewrite)

    if not isinstance(model, nn.Module):
        function, shapes = model, shapes and (shapes,)
        model = Fn(lambda _, x: function(x))
    exported = torch.export.export(model.eval(), (x,), dynamic_shapes=shapes)
    prepared = tq.prepare_pt2e(exported, Forms().set_global(ASKED))
    with torch.no_grad():
        found, expected = prepared(x), model(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    return prepared, [str(node.target).split(".")[1] for node in calls(prepared, "aten.")]


#: Operator, rewrite, model, input, and the operators that are there afterwards.
MOVES: dict[str, tuple[ops.Operator, Any, Function, torch.Tensor, list[str]]] = {
    "squeeze": (ops.SQUEEZE, rewrites.as_reshape, lambda x: x.squeeze(1), normal(3, 1, 5), ["reshape"]),
    "unsqueeze": (ops.UNSQUEEZE, rewrites.as_reshape, lambda x: x.unsqueeze(-1), ROWS, ["reshape"]),
    "swapaxes": (ops.SWAPAXES, rewrites.as_permute, lambda x: x.swapaxes(0, -1), IMAGE, ["permute"]),
    "movedim": (
        ops.MOVEDIM, rewrites.as_permute, lambda x: x.movedim((0, 1), (-1, 0)), IMAGE, ["permute"],
    ),
    "matrix_transpose": (ops.MATRIX_TRANSPOSE, rewrites.as_permute, lambda x: x.mT, IMAGE, ["permute"]),
    "detach": (ops.DETACH, rewrites.as_clone, lambda x: torch.detach_copy(x), ROWS, ["clone"]),
    "narrow": (ops.NARROW, rewrites.as_slice, lambda x: x.narrow(1, 2, 2), ROWS, ["slice"]),
    "narrow from the start": (ops.NARROW, rewrites.as_slice, lambda x: x.narrow(1, 0, 2), ROWS, ["slice"]),
    "narrow from the end": (ops.NARROW, rewrites.as_slice, lambda x: x.narrow(-1, -3, 2), ROWS, ["slice"]),
    "pixel_shuffle": (
        ops.PIXEL_SHUFFLE, rewrites.as_permuted_parts, lambda x: functional.pixel_shuffle(x, 2), IMAGE,
        ["reshape", "permute", "reshape"],
    ),
    "pixel_unshuffle": (
        ops.PIXEL_UNSHUFFLE, rewrites.as_permuted_parts, lambda x: functional.pixel_unshuffle(x, 2), IMAGE,
        ["reshape", "permute", "reshape"],
    ),
    "channel_shuffle": (
        ops.CHANNEL_SHUFFLE, rewrites.as_permuted_parts, lambda x: functional.channel_shuffle(x, 4), IMAGE,
        ["reshape", "permute", "reshape"],
    ),
    "select": (ops.SELECT, rewrites.as_slice_of_one, lambda x: x.select(1, 3), IMAGE, ["slice", "reshape"]),
    "select from the end": (
        ops.SELECT, rewrites.as_slice_of_one, lambda x: x[..., -2], IMAGE, ["slice", "reshape"],
    ),
    "pad": (
        ops.PAD, rewrites.as_cat_with_zeros, lambda x: functional.pad(x, (1, 2)), ROWS, ["cat", "reshape"],
    ),
    "pad of three sides": (
        ops.PAD, rewrites.as_cat_with_zeros, lambda x: functional.pad(x, (0, 2, 1, 3)), IMAGE,
        ["cat", "cat", "reshape"],
    ),
    "rsub": (ops.RSUB, rewrites.as_sub, lambda x: torch.rsub(x, x * 3), ROWS, ["mul", "sub"]),
    "div": (ops.DIV, rewrites.as_mul, lambda x: x / 4, ROWS, ["mul"]),
    "sub": (ops.SUB, rewrites.as_sum_with_opposite, lambda x: x - 2.5, ROWS, ["add"]),
    "silu": (ops.SILU, rewrites.as_product_with_sigmoid, functional.silu, ROWS, ["sigmoid", "mul"]),
    "mean": (
        ops.MEAN, rewrites.as_global_average, lambda x: x.mean((2, 3)), IMAGE,
        ["adaptive_avg_pool2d", "reshape"],
    ),
    "mean that keeps": (
        ops.MEAN, rewrites.as_global_average, lambda x: x.mean((2, 3), True), IMAGE, ["adaptive_avg_pool2d"],
    ),
    "mean of an image": (
        ops.MEAN, rewrites.as_mean_of_image, lambda x: x.mean((2, 3)), IMAGE, ["mean", "reshape"],
    ),
    "mean of an image that keeps": (
        ops.MEAN, rewrites.as_mean_of_image, lambda x: x.mean((2, 3), True), IMAGE, ["mean"],
    ),
    "stack in front": (
        ops.STACK, rewrites.as_cat_and_reshape, lambda x: torch.stack([x, x + 1]), ROWS,
        ["add", "cat", "reshape"],
    ),
    "stack between": (
        ops.STACK, rewrites.as_cat_and_reshape, lambda x: torch.stack([x, x + 1], -2), ROWS,
        ["add", "cat", "reshape"],
    ),
    "stack behind": (
        ops.STACK, rewrites.as_cat_and_reshape, lambda x: torch.stack([x, x + 1, x], -1), ROWS,
        ["add", "cat", "reshape", "permute"],
    ),
    "hstack": (ops.HSTACK, rewrites.as_cat, lambda x: torch.hstack([x, x + 1]), ROWS, ["add", "cat"]),
    "hstack of vectors": (
        ops.HSTACK, rewrites.as_cat, lambda x: torch.hstack([x, x + 1]), VECTOR, ["add", "cat"],
    ),
    "vstack": (ops.VSTACK, rewrites.as_cat, lambda x: torch.vstack([x, x + 1]), ROWS, ["add", "cat"]),
    "vstack of vectors": (
        ops.VSTACK, rewrites.as_cat, lambda x: torch.vstack([x, x + 1]), VECTOR, ["add", "cat", "reshape"],
    ),
    "dstack": (ops.DSTACK, rewrites.as_cat, lambda x: torch.dstack([x, x + 1]), IMAGE, ["add", "cat"]),
    "dstack of rows": (
        ops.DSTACK, rewrites.as_cat, lambda x: torch.dstack([x, x + 1]), ROWS,
        ["add", "cat", "reshape", "permute"],
    ),
    "dstack of vectors": (
        ops.DSTACK, rewrites.as_cat, lambda x: torch.dstack([x, x + 1]), VECTOR,
        ["add", "cat", "reshape", "permute", "reshape"],
    ),
    "column_stack of vectors": (
        ops.COLUMN_STACK, rewrites.as_cat, lambda x: torch.column_stack([x, x + 1]), VECTOR,
        ["add", "cat", "reshape", "permute"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_another_form_computes_the_same(name: str) -> None:
    """And what the rewrite says is what stands there afterwards."""
    operator, rewrite, function, x, expected = MOVES[name]
    assert written((operator,), rewrite, function, x)[1] == expected


@pytest.mark.parametrize("name", ["squeeze", "stack between", "vstack of vectors", "mean", "select"])
def test_sizes_that_are_dynamic_stay_so(name: str) -> None:
    """A model is written once for all of its sizes."""
    operator, rewrite, function, x, _ = MOVES[name]
    prepared, _ = written((operator,), rewrite, function, x, ({0: BATCH},))
    larger = torch.cat([x, x])[:7]
    torch.testing.assert_close(prepared(larger), function(larger), rtol=1e-6, atol=1e-6)


def test_a_reshape_whose_sizes_are_numbers_stays_as_it_is() -> None:
    """Only a size that is computed has to be inferred instead."""
    fixed = written((ops.VIEW,), rewrites.as_plain_reshape, lambda x: x.view(5, 3), ROWS)
    assert fixed[1] == ["view"]
    dynamic = written(
        (ops.VIEW,), rewrites.as_plain_reshape, lambda x: x.view(x.shape[0] * 5), ROWS, ({0: BATCH},)
    )
    assert dynamic[1][-1] == "reshape"
    inferred = written(
        (ops.VIEW,), rewrites.as_plain_reshape, lambda x: x.view(-1, 1, 5), ROWS, ({0: BATCH},)
    )
    assert inferred[1] == ["view"]
    (reshape,) = calls(dynamic[0], "aten.reshape")
    assert reshape.args[1] == [-1]
    flat = written((ops.FLATTEN,), rewrites.as_plain_reshape, lambda x: x.flatten(1), IMAGE)
    assert flat[1] == ["flatten"]
    flat = written((ops.FLATTEN,), rewrites.as_plain_reshape, lambda x: x.flatten(1), IMAGE, ({0: BATCH},))
    assert flat[1] == ["reshape"]
    flat = written((ops.FLATTEN,), rewrites.as_plain_reshape, torch.flatten, IMAGE)
    assert flat[1] == ["flatten"]


class Product(nn.Module):
    """A product with a stored matrix, as ``addmm`` or as ``matmul``."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(5, 4)), nn.Parameter(normal(4, seed=1))
        self.adds = adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return torch.addmm(self.bias, x, self.weight) if self.adds else x @ self.weight


@pytest.mark.parametrize("adds", [True, False])
def test_products_with_a_matrix_are_linear(adds: bool) -> None:
    """With the matrix turned, and with its bias where there is one."""
    operator = ops.ADDMM if adds else ops.MATMUL
    prepared, found = written((operator,), rewrites.as_linear, Product(adds), ROWS)
    assert found == ["permute", "linear"]
    (linear,) = calls(prepared, "aten.linear")
    assert len(linear.args) == 2 + adds


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_linear_over_channels(bias: bool) -> None:
    """Each pixel is a row."""
    model = nn.Conv2d(8, 3, 1, bias=bias)
    _, found = written((ops.CONV2D,), rewrites.as_linear_of_pixels, model, IMAGE)
    assert found == ["permute", "reshape", "linear", "permute"]


def test_what_reads_a_node_that_is_written_behind_its_operator_is_annotated_anew() -> None:
    """Also if its other input is the one that it was: both of them are observed."""
    model = Fn(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(8, 8, 1))
    prepared, _ = written((ops.CONV2D,), rewrites.as_linear_of_pixels, model, IMAGE)
    (add,) = calls(prepared, "aten.add")
    assert [source.op for source in add.all_input_nodes] == ["call_module", "call_module"]


@pytest.mark.parametrize("low", [-0.5, 0.25])
def test_a_clamp_behind_a_layer_is_a_hardtanh(low: float) -> None:
    """With both of its bounds."""
    model = Fn(lambda m, x: m.linear(x).clamp(low, 1.0), linear=nn.Linear(5, 4))
    prepared, found = written((ops.LINEAR, ops.CLAMP), rewrites.as_hardtanh, model, ROWS)
    assert found == ["linear", "hardtanh"]
    assert calls(prepared, "aten.hardtanh")[0].args[1:] == (low, 1.0)


@pytest.mark.parametrize("size", [1, 4])
def test_a_bias_is_stored_with_one_number_for_each_channel(size: int) -> None:
    """Also one that is computed, or broadcast; others that use it keep it as it was."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, m.linear.weight, m.bias * 2) + (m.bias * 2).sum()

    model = Fn(run, linear=nn.Linear(5, 4), bias=nn.Parameter(normal(size)))
    prepared, _ = written((ops.LINEAR,), rewrites.with_stored_bias, model, ROWS)
    bias = calls(prepared, "aten.linear")[0].args[2]
    assert isinstance(bias, Node)
    assert bias.op == "get_attr"
    assert list(bias.meta["val"].shape) == [4]


@pytest.mark.parametrize(("rewrite", "count"), [(rewrites.with_stored_bias, 1), (rewrites.with_own_bias, 2)])
def test_a_bias_of_two_layers_is_copied_where_each_needs_its_own(rewrite: Any, count: int) -> None:
    """A scale that depends on the input of a layer is not that of the other."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].bias = model[0].bias
    prepared, _ = written((ops.LINEAR,), rewrite, model, ROWS)
    assert len({node.args[2].target for node in calls(prepared, "aten.linear")}) == count  # type: ignore[union-attr]


def test_a_bias_of_one_layer_is_its_own() -> None:
    """It is not copied."""
    prepared, _ = written((ops.LINEAR,), rewrites.with_own_bias, nn.Linear(5, 5), ROWS)
    (linear,) = calls(prepared, "aten.linear")
    assert isinstance(linear.args[2], Node)
    assert linear.args[2].target == "bias"


# --- Splits and empty tensors, which are no matches ---------------------------------------------------------


SPLITS: dict[str, tuple[Function, list[str]]] = {
    "chunk": (lambda x: torch.cat([one * 2 for one in x.chunk(2, 1)]), ["slice", "slice"]),
    "sizes": (lambda x: torch.cat([one * 2 for one in x.split([1, 5, 2], 1)], 1), ["slice"] * 3),
    "unbind": (lambda x: torch.stack([one * 2 for one in x.unbind(0)]), ["slice", "reshape"] * 2),
}


def sliced(function: Function, x: torch.Tensor, shapes: Any = None) -> tuple[GraphModule, list[str]]:
    """The exported model with slices instead of splits, and the calls of it that move data."""
    model = Fn(lambda _, given: function(given))
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes and (shapes,)).module()
    assert isinstance(exported, GraphModule)
    for node in list(exported.graph.nodes):
        if is_split(node):
            rewrites.split_as_slices(exported, node)
    exported.graph.lint()
    exported.recompile()
    assert torch.equal(exported(x), function(x))
    moving = ("slice", "reshape", "split", "chunk", "unbind")
    names = [str(node.target).split(".")[1] for node in calls(exported, "aten.")]
    return exported, [name for name in names if name.startswith(moving)]


@pytest.mark.parametrize("name", SPLITS)
def test_parts_of_a_split_are_slices(name: str) -> None:
    """Each part by itself, and the split is gone."""
    function, expected = SPLITS[name]
    assert sliced(function, IMAGE)[1] == expected


def test_a_split_of_a_dynamic_size_is_left_alone() -> None:
    """It is not known where its parts begin."""
    function = SPLITS["chunk"][0]
    assert sliced(function, IMAGE, ({2: torch.export.Dim("height", min=2, max=16)},))[1] == ["chunk"]


#: A join, the operator that is left of it, and the number of tensors that this one reads.
JOINS: dict[str, tuple[Function, str, int]] = {
    "two of three": (lambda x: torch.cat([x, x[:0], x + 1]), "cat", 2),
    "along another dimension": (lambda x: torch.cat([x, x[:, :0], x + 1], 1), "cat", 2),
    "one of two": (lambda x: torch.cat([x[:0], x]), "clone", 1),
    "none": (lambda x: torch.cat([x[:0], x[:0]]), "cat", 2),
    "another dtype": (lambda x: torch.cat([x[:0].double(), x]), "cat", 2),
}


@pytest.mark.parametrize("name", JOINS)
def test_empty_tensors_are_left_out_of_a_join(name: str) -> None:
    """Others have to be left, and the dtype must not depend on them."""
    function, operator, count = JOINS[name]
    exported = torch.export.export(Fn(lambda _, given: function(given)), (ROWS,)).module()
    assert isinstance(exported, GraphModule)
    joins = [node for node in exported.graph.nodes if rewrites.joins_empty(node)]
    assert bool(joins) == (name != "none")
    for node in joins:
        rewrites.without_empty(exported, node)
    exported.recompile()
    assert torch.equal(exported(ROWS), function(ROWS))
    last = exported.graph.output_node().all_input_nodes[0]
    assert str(last.target).split(".")[1] == operator
    assert len(last.all_input_nodes) == count
