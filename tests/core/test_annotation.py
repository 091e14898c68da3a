"""QuantizationAnnotation: written once, frozen, and checked against the node."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

import torchquilt as tq
from strategies import INT8, WEIGHT
from torchquilt.spec.annotation import ANNOTATION_KEY

Annotation = tq.QuantizationAnnotation


@pytest.fixture
def nodes() -> tuple[Node, Node, Node]:
    """Two inputs and their sum."""
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    return x, y, graph.call_function(torch.ops.aten.add.Tensor, (x, y))


def test_an_annotation_is_read_as_it_was_written(nodes: tuple[Node, Node, Node]) -> None:
    """annotation_of gives back the very value; a node without one gives None."""
    x, _, add = nodes
    written = Annotation({x: INT8}, INT8, quantizer="acme", pattern="add")
    tq.annotate_node(add, written)
    assert tq.annotation_of(add) is written
    assert tq.annotation_of(x) is None


@pytest.mark.parametrize("field", ["input_qspec_map", "output_qspec", "quantizer", "allow_implicit_sharing"])
def test_an_annotation_is_frozen(nodes: tuple[Node, Node, Node], field: str) -> None:
    """No field can be set or deleted."""
    annotation = Annotation({nodes[0]: INT8})
    with pytest.raises(tq.AnnotationError, match="never edited"):
        setattr(annotation, field, None)
    with pytest.raises(tq.AnnotationError, match="never edited"):
        delattr(annotation, field)
    assert annotation == Annotation({nodes[0]: INT8})


def test_the_map_is_the_annotations_own(nodes: tuple[Node, Node, Node]) -> None:
    """It cannot be written to, and what happens to the dict that it was made of does not reach it."""
    x, y, _ = nodes
    given: dict[Node, Any] = {x: INT8}
    annotation = Annotation(given)
    given[y] = INT8
    assert list(annotation.input_qspec_map) == [x]
    edits: list[Callable[[Any], object]] = [
        lambda specs: specs.__setitem__(y, INT8),
        lambda specs: specs.__delitem__(x),
        lambda specs: specs.update({y: INT8}),
        lambda specs: specs.setdefault(y, INT8),
        lambda specs: specs.pop(x),
        lambda specs: specs.popitem(),
        lambda specs: specs.clear(),
        lambda specs: specs.__ior__({y: INT8}),
    ]
    for edit in edits:
        with pytest.raises(tq.AnnotationError, match="never edited"):
            edit(annotation.input_qspec_map)
    assert annotation.input_qspec_map == {x: INT8}


def test_annotations_are_values(nodes: tuple[Node, Node, Node]) -> None:
    """Equal content is equal, with equal hashes; another spec, owner or pattern is another annotation."""
    x, y, _ = nodes
    one, other = Annotation({x: INT8, y: WEIGHT}, INT8), Annotation({y: WEIGHT, x: INT8}, INT8)
    assert one == other
    assert hash(one) == hash(other)
    for different in (
        Annotation({x: INT8}, INT8),
        Annotation({x: INT8, y: INT8}, INT8),
        Annotation({x: INT8, y: WEIGHT}),
        Annotation({x: INT8, y: WEIGHT}, INT8, quantizer="acme"),
    ):
        assert one != different


def test_a_node_is_annotated_once(nodes: tuple[Node, Node, Node]) -> None:
    """The second writer is told who was first; the first annotation stays."""
    *_, add = nodes
    first = Annotation({}, INT8, quantizer="first")
    tq.annotate_node(add, first)
    with pytest.raises(tq.AnnotationError) as caught:
        tq.annotate_node(add, Annotation({}, WEIGHT, quantizer="second"))
    assert caught.value.node == "add_tensor" or "add" in str(caught.value.node)
    assert "first" in str(caught.value.quantizer)
    assert "second" in str(caught.value.quantizer)
    assert tq.annotation_of(add) is first


def test_an_input_that_the_node_does_not_have_is_refused(nodes: tuple[Node, Node, Node]) -> None:
    """The error lists the inputs that there are; nothing is written."""
    x, _, add = nodes
    with pytest.raises(tq.AnnotationError) as caught:
        tq.annotate_node(add, Annotation({add: INT8}, quantizer="acme"))
    assert str(caught.value.expected) == "x, y"
    assert caught.value.quantizer == "acme"
    assert tq.annotation_of(add) is None
    assert tq.annotation_of(x) is None


@pytest.mark.parametrize("spec", ["int8", torch.int8, 3, tq.QuantizationConfig(weight=WEIGHT)], ids=str)
@pytest.mark.parametrize("where", ["input", "output"])
def test_what_is_no_spec_is_refused(nodes: tuple[Node, Node, Node], spec: Any, where: str) -> None:
    """An edge or an output takes one of the four kinds of spec; the error names them."""
    x, _, add = nodes
    annotation = Annotation({x: spec}) if where == "input" else Annotation({}, spec)
    with pytest.raises(tq.AnnotationError) as caught:
        tq.annotate_node(add, annotation)
    assert "QuantizationSpec" in str(caught.value.expected)
    assert type(spec).__name__ in str(caught.value.got)


@pytest.mark.parametrize("foreign", ["text", {"output_qspec": INT8}, 3])
def test_what_is_no_annotation_is_refused(nodes: tuple[Node, Node, Node], foreign: Any) -> None:
    """Something else under the key is an error that names node and type, not something overlooked."""
    *_, add = nodes
    add.meta[ANNOTATION_KEY] = foreign
    with pytest.raises(tq.AnnotationError) as caught:
        tq.annotation_of(add)
    assert caught.value.node == add.name
    assert type(foreign).__name__ in str(caught.value.got)


def test_an_annotation_of_torchao_is_noticed(nodes: tuple[Node, Node, Node]) -> None:
    """Torchao writes under the same key, so that its annotations cannot be overlooked."""
    module = importlib.import_module("torchao.quantization.pt2e.quantizer")
    *_, add = nodes
    add.meta[ANNOTATION_KEY] = module.QuantizationAnnotation(_annotated=True)
    with pytest.raises(tq.AnnotationError) as caught:
        tq.annotation_of(add)
    assert "torchao" in str(caught.value.got)
    assert "torchao" in str(caught.value.remedy)
