"""Quantize and dequantize operators are written and read in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from torchquilt.graph import qdq
from torchquilt.spec.qspec import Granularity, QuantizationSpec

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*(ROOT / "core/src").rglob("*.py"), *ROOT.glob("plugins/*/src/*/*.py")])
#: Modules that name the operators for another reason than to read a node.
OTHERS = {
    "canonical.py": "writes the operators in the one form that Inductor's own patterns know",
    "conversion.py": "translates the operators for OpenVINO, one by one",
    "translations.py": "translates the operators to ONNX, one by one",
    "annotate.py": "tells that a model is quantized already, by any operator of the namespace",
    "kernels.py": "calls ExecuTorch's embedding kernels, which are of the namespace, too",
    "rules.py": "declares an operator, by its overload",
    "stored.py": "reads a stored program, which has no nodes",
}
LIMITS = (-128, 127, torch.int8)
ONES, ZEROS = torch.full((2,), 0.5), torch.zeros(2, dtype=torch.int64)
X = torch.linspace(-1, 1, 8).reshape(2, 4)
#: For each granularity: scale and zero point, the remaining arguments, and what a node of a graph says back.
FORMS = {
    Granularity.PER_TENSOR: ((0.5, 0), {}),
    Granularity.PER_AXIS: ((ONES, ZEROS), {"axis": 0}),
    Granularity.PER_GROUP: ((ONES.reshape(2, 1), ZEROS.reshape(2, 1)), {"group_size": 4}),
    Granularity.PER_TOKEN: ((ONES.reshape(2, 1), ZEROS.reshape(2, 1)), {}),
}


def operators_for(granularity: Granularity) -> qdq.QDQOperators:
    """The pair of operators, with numbers that quantize by halves."""
    qparams, further = FORMS[granularity]
    return qdq.QDQOperators.of(granularity, qparams, LIMITS, **further)


@pytest.mark.parametrize("granularity", FORMS)
def test_a_pair_quantizes_and_dequantizes(granularity: Granularity) -> None:
    """By halves, and what is dequantized has the dtype that is asked."""
    pair = operators_for(granularity)
    integers = pair.quantize(X, *pair.arguments)
    assert torch.equal(integers, (X * 2).round().to(torch.int8))
    arguments, keywords = pair.dequantizing_to(torch.float32)
    found = pair.dequantize(integers, *arguments, **keywords)
    assert found.dtype is torch.float32
    assert torch.equal(found, integers * 0.5)


@pytest.mark.parametrize("granularity", FORMS)
@pytest.mark.parametrize("verb", ["quantize", "dequantize"])
def test_what_is_written_is_read(granularity: Granularity, verb: str) -> None:
    """All that was said when the node was made is told by the node."""
    pair, (qparams, further) = operators_for(granularity), FORMS[granularity]
    graph = torch.fx.Graph()
    source = graph.placeholder("x")
    arguments, keywords = (
        pair.dequantizing_to(torch.float32) if verb == "dequantize" else (pair.arguments, {})
    )
    node = graph.call_function(getattr(pair, verb), (source, *arguments), keywords)
    told = qdq.qdq_of(node)
    assert told is not None
    assert (told.is_quantize, told.granularity, told.input) == (verb == "quantize", granularity, source)
    assert (told.quant_min, told.quant_max, told.dtype) == LIMITS
    assert all(said is given for said, given in zip((told.scale, told.zero_point), qparams, strict=True))
    assert (told.axis, told.group_size) == (further.get("axis"), further.get("group_size"))
    assert told.has_one_scale == (granularity is Granularity.PER_TENSOR)
    assert (qdq.quantize_of(node) is not None, qdq.is_quantize(node)) == (verb == "quantize",) * 2
    assert (qdq.dequantize_of(node) is not None, qdq.is_dequantize(node)) == (verb == "dequantize",) * 2
    assert qdq.is_conversion(node)


def test_parameters_are_the_same_there_and_back() -> None:
    """Whichever tensor is read, and whether it is quantized or dequantized."""
    pair, graph = operators_for(Granularity.PER_TENSOR), torch.fx.Graph()
    source = graph.placeholder("x")
    there = graph.call_function(pair.quantize, (source, *pair.arguments))
    back = graph.call_function(pair.dequantize, (there, *pair.arguments))
    other = graph.call_function(pair.quantize, (source, 0.25, *pair.arguments[1:]))
    told = [qdq.qdq_of(node) for node in (there, back, other)]
    first, second, third = (one.parameters for one in told if one is not None)
    assert first == second != third


def test_scale_and_zero_point_may_be_given_by_name() -> None:
    """A node is read by the schema of its operator, not by positions."""
    graph = torch.fx.Graph()
    pair = operators_for(Granularity.PER_TENSOR)
    names = ("scale", "zero_point", "quant_min", "quant_max", "dtype")
    keywords = dict(zip(names, pair.arguments, strict=True))
    told = qdq.qdq_of(graph.call_function(pair.quantize, (graph.placeholder("x"),), keywords))
    assert told is not None
    assert (told.scale, told.quant_max) == (0.5, 127)


def test_other_operators_are_none_of_these() -> None:
    """Neither those of ATen nor those that find parameters, which are told apart."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    per_token = QuantizationSpec("int8", granularity="per_token", is_dynamic=True)
    chosen, following = qdq.choosing_call(per_token)
    choose, relu = (
        graph.call_function(chosen, (x, *following)),
        graph.call_function(torch.ops.aten.relu.default, (x,)),
    )
    assert [qdq.qdq_of(node) for node in (x, choose, relu)] == [None] * 3
    assert [qdq.chooses_qparams(node) for node in (x, choose, relu)] == [False, True, False]
    assert [qdq.is_conversion(node) for node in (x, choose, relu)] == [False, True, False]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_other_module_names_the_operators(path: Path) -> None:
    """The names of quantize and dequantize operators are in one module."""
    if path.name in ("qdq.py", *OTHERS):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
    ]
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    told = [text for text in texts if "quantize_per" in text or text.startswith("quantized_decomposed")]
    assert told + [name for name in names if "quantize_per" in name or name == "quantized_decomposed"] == []
