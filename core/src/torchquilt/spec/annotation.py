"""Decision for one node: the value that quantizers write and that prepare reads.

An annotation is stored in ``node.meta[ANNOTATION_KEY]``. It is frozen: a decision is replaced by
another one, never edited, so that a composition can see who changed what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

import attrs

from torchquilt.errors import AnnotationError
from torchquilt.spec.arithmetic_limits import Arithmetic
from torchquilt.spec.qspec import (
    AnySpec,
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
)

if TYPE_CHECKING:
    from torch.fx import Node

#: The key of ``node.meta``. It is the one that PyTorch's own flow uses, so that an annotation of
#: another library is noticed and refused instead of being overlooked.
ANNOTATION_KEY = "quantization_annotation"

_SPEC_TYPES = (
    QuantizationSpec,
    SharedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    DerivedQuantizationSpec,
)


class EditedAnnotationError(AnnotationError):
    """Something tried to edit an annotation, which is left as it was. ``edited`` is it, or its map."""

    def __init__(self, edited: object) -> None:
        super().__init__(
            "An annotation is never edited.",
            expected="another annotation, made for a node that has none",
            remedy="leave annotated nodes alone; for a decision of your own make a QuantizationAnnotation",
        )
        self.edited = edited


class _FrozenMap(Mapping["Node", "AnySpec | None"]):
    """A mapping that tells who edits it."""

    __slots__ = ("_specs",)

    def __init__(self, specs: Mapping[Node, AnySpec | None]) -> None:
        self._specs = dict(specs)

    def __getitem__(self, node: Node) -> AnySpec | None:
        return self._specs[node]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return repr(self._specs)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise EditedAnnotationError(self)

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def _frozen_map(value: Mapping[Node, AnySpec | None]) -> Mapping[Node, AnySpec | None]:
    if not isinstance(value, Mapping):
        raise AnnotationError(
            "The specs of the inputs are no mapping.",
            expected="input_qspec_map={input node: spec}",
            got=repr(value),
        )
    return _FrozenMap(value)


def _refuse_edit(annotation: QuantizationAnnotation, *_: object) -> NoReturn:
    raise EditedAnnotationError(annotation)


# Not attrs.frozen, whose error cannot say which annotation it was, nor on which node.
@attrs.define(on_setattr=_refuse_edit, unsafe_hash=True)
class QuantizationAnnotation:
    """The specs of the tensors around one node.

    Args:
        input_qspec_map: input node → spec of the edge from it to this node. An input that is missing
            or None stays as it is.
        output_qspec: spec of the node's own output, or None.
        allow_implicit_sharing: an input may use the observer of the tensor's producer or of another
            user when both ask for the same spec.
        quantizer: name of who decided.
        pattern: name of the operator pattern that matched, the same on each node of the match.
        rule: the user's rule that asked for it, in words.
        arithmetic: at the node whose output leaves the match, the limits of what computes it; None where the
            backend states none.
        author: the ``id`` of the quantizer that decided, which tells two of one name apart while a model is
            being annotated. A composition fills it in; it takes no part in comparisons.
    """

    input_qspec_map: Mapping[Node, AnySpec | None] = attrs.field(
        factory=dict, converter=_frozen_map, hash=False
    )
    output_qspec: AnySpec | None = None
    allow_implicit_sharing: bool = True
    quantizer: str = attrs.field(default="", kw_only=True)
    pattern: str = attrs.field(default="", kw_only=True)
    rule: str = attrs.field(default="", kw_only=True)
    arithmetic: Arithmetic | None = attrs.field(default=None, kw_only=True, repr=False)
    author: int = attrs.field(default=0, kw_only=True, eq=False, repr=False)

    def __delattr__(self, name: str) -> None:
        raise EditedAnnotationError(self)


def annotation_of(node: Node) -> QuantizationAnnotation | None:
    """The annotation of a node, or None.

    Raises:
        AnnotationError: something is stored there that is not a torchquilt annotation.
    """
    found = node.meta.get(ANNOTATION_KEY)
    if found is None or isinstance(found, QuantizationAnnotation):
        return found
    kind = f"{type(found).__module__}.{type(found).__qualname__}"
    raise AnnotationError(
        "This node carries an annotation that torchquilt does not read.",
        node=node,
        expected="torchquilt.QuantizationAnnotation",
        got=kind,
        remedy="annotate with torchquilt's types; a quantizer written for torchao has to be ported "
        "(its specs name observers, ours do not)",
    )


def annotate_node(node: Node, annotation: QuantizationAnnotation) -> None:
    """Write the decision for a node that has none yet.

    Raises:
        AnnotationError: the node is annotated already, or the annotation does not fit the node.
    """
    held = annotation_of(node)
    if held is not None:
        raise AnnotationError(
            "This node has been annotated already; who came first keeps it.",
            node=node,
            quantizer=f"{held.quantizer or 'unnamed'} (first), {annotation.quantizer or 'unnamed'} (now)",
            remedy="skip nodes for which torchquilt.spec.annotation.annotation_of(node) is not None",
        )
    check_annotation(node, annotation)
    node.meta[ANNOTATION_KEY] = annotation


def renamed(
    annotation: QuantizationAnnotation, node: Node, now: Callable[[EdgeOrNode], EdgeOrNode]
) -> QuantizationAnnotation:
    """The annotation of a node once edges and outputs that it names are others in the graph.

    Args:
        annotation: it.
        node: the node.
        now: an edge (producer, user) or a node as it was → the one that stands for it.
    """

    def of(spec: AnySpec | None) -> AnySpec | None:
        if isinstance(spec, SharedQuantizationSpec):
            return SharedQuantizationSpec(now(spec.edge_or_node))
        if isinstance(spec, DerivedQuantizationSpec):
            return attrs.evolve(spec, derived_from=tuple(map(now, spec.derived_from)))
        return spec

    def producer(source: Node) -> Node:
        edge = now((source, node))
        assert isinstance(edge, tuple)
        return edge[0]

    specs = {producer(source): of(spec) for source, spec in annotation.input_qspec_map.items()}
    output = of(annotation.output_qspec)
    if specs == dict(annotation.input_qspec_map) and output == annotation.output_qspec:
        return annotation
    return attrs.evolve(annotation, input_qspec_map=specs, output_qspec=output)


def check_annotation(node: Node, annotation: QuantizationAnnotation) -> None:
    """Raise :class:`AnnotationError` unless the annotation names inputs of the node and specs of ours."""
    for producer in annotation.input_qspec_map:
        if producer not in node._input_nodes:
            raise AnnotationError(
                "The annotation names an input that this node does not have.",
                node=node,
                quantizer=annotation.quantizer or None,
                expected=", ".join(n.name for n in node.all_input_nodes) or "no input",
                got=f"{producer}, a node of another graph" if _is_elsewhere(producer, node) else producer,
                remedy="annotate after the graph has its final form (transform_for_annotation)",
            )
    for spec in (*annotation.input_qspec_map.values(), annotation.output_qspec):
        if spec is not None:
            _check_spec(node, annotation, spec)


def _is_elsewhere(producer: object, node: Node) -> bool:
    return getattr(producer, "graph", node.graph) is not node.graph


def _check_spec(node: Node, annotation: QuantizationAnnotation, spec: AnySpec) -> None:
    if not isinstance(spec, _SPEC_TYPES):
        raise AnnotationError(
            "The annotation holds something that is not a quantization spec of torchquilt.",
            node=node,
            quantizer=annotation.quantizer or None,
            expected=" | ".join(kind.__name__ for kind in _SPEC_TYPES),
            got=f"{type(spec).__module__}.{type(spec).__qualname__}",
            remedy="build it with the spec types that torchquilt exports",
        )
    sources: tuple[EdgeOrNode, ...] = ()
    if isinstance(spec, SharedQuantizationSpec):
        sources = (spec.edge_or_node,)
    elif isinstance(spec, DerivedQuantizationSpec):
        sources = spec.derived_from
    for edge_or_node in sources:
        for other in edge_or_node if isinstance(edge_or_node, tuple) else (edge_or_node,):
            if getattr(other, "graph", None) is not node.graph or other._erased:
                raise AnnotationError(
                    "The annotation takes parameters from a node that is not in this graph.",
                    node=node,
                    quantizer=annotation.quantizer or None,
                    expected="nodes of the graph that is being annotated",
                    got=other,
                    remedy="annotate after the graph has its final form (transform_for_annotation)",
                )
