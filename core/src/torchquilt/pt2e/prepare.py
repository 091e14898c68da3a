"""prepare_pt2e: from an exported float model to one that is ready to be calibrated."""

from __future__ import annotations

import json
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt.errors import AnnotationError, SharingError
from torchquilt.graph.edits import redirect, take_origin
from torchquilt.graph.values import constant_nodes, operator_of
from torchquilt.observers import ObserverFactory, make_observer
from torchquilt.pt2e.annotate import Annotated, annotate_copy
from torchquilt.pt2e.groups import Group, place_name, producer_of
from torchquilt.pt2e.points import (
    ConstantPoint,
    DerivedPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.stage import keep_initial_state, set_stage
from torchquilt.spec import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    ZeroPointDomain,
)


def prepare_pt2e(
    model: ExportedProgram | GraphModule,
    quantizer: object,
    *,
    activation_observer: str | ObserverFactory = "histogram",
    strict: bool = True,
) -> GraphModule:
    """Fold BatchNorm, let the quantizer annotate, and put observers where tensors are to be quantized.

    The model that is handed in is left as it was. The result shares its weights with it.

    Args:
        model: a :class:`torch.export.ExportedProgram` or its ``.module()``, in evaluation mode.
        quantizer: a :class:`torchquilt.Quantizer`, or any object with ``annotate(model)``.
        activation_observer: how ranges of activations are found: ``"histogram"`` (least squared error),
            ``"minmax"``, or a function that makes an observer for a
            :class:`torchquilt.QuantizationSpec`. Constants are always min-max, and are not observed
            during calibration.
        strict: raise for rules that cannot take effect; with False they are warnings and
            ``ledger_of(prepared).problems``.

    Returns:
        A GraphModule with the signature of the model, to be called with calibration data, by hand or
        with :func:`torchquilt.calibrate`, and then handed to :func:`torchquilt.convert_pt2e`.

    Raises:
        ModelError: the model is not an exported one, is in training mode, or was prepared before.
        IntentError: a rule of the quantizer is about nothing in this model, or nothing came of it.
        AnnotationError, CompositionError, SharingError: what was annotated does not hold together.
    """
    annotated = annotate_copy(model, quantizer, strict=strict)
    prepared = annotated.model
    points = _make_points(annotated, activation_observer)
    annotated.quantizer.prepare_obs_or_fq_callback(prepared, points)
    names = _register(prepared, points)
    _link_derived(annotated.groups, points, names)
    _insert_points(prepared, points, names)
    prepared.recompile()
    set_stage(prepared, "prepared", _record(annotated))
    keep_initial_state(prepared)
    return prepared


def _record(annotated: Annotated) -> dict[str, Any]:
    """What the model remembers of how it came about, as plain values."""
    capabilities = annotated.quantizer.quantization_capabilities()
    return {
        "quantizer": repr(annotated.quantizer),
        "backends": list(capabilities.backends),
        "capabilities": capabilities.content_hash,
        "ledger": json.loads(annotated.ledger.to_json()),
    }


def _make_points(annotated: Annotated, choice: str | ObserverFactory) -> dict[EdgeOrNode, Any]:
    """Place → the module that is going to stand there; one module for each group."""
    constants = constant_nodes(annotated.model.graph)
    points: dict[EdgeOrNode, Any] = {}
    for group in annotated.groups:
        point = _point_for(group, constants, choice)
        points.update(dict.fromkeys(group.places, point))
    return points


def _point_for(
    group: Group, constants: frozenset[Node], choice: str | ObserverFactory
) -> QuantizationPoint[Any]:
    places = tuple(place_name(place) for place in group.places)
    if isinstance(group.spec, FixedQParamsQuantizationSpec):
        return FixedPoint(group.spec, places)
    if isinstance(group.spec, DerivedQuantizationSpec):
        return DerivedPoint(group.spec, places)
    if group.spec.is_dynamic:
        return DynamicPoint(group.spec, places)
    if all(producer_of(place) in constants for place in group.places):
        return ConstantPoint(group.spec, places)
    if group.spec.zero_point_domain is ZeroPointDomain.FLOAT:
        raise AnnotationError(
            "Only constants can have a float zero point.",
            node=", ".join(places),
            expected="zero_point_domain=int for an activation",
            got=str(group.spec),
            remedy="leave zero_point_domain out of the spec",
        )
    return ObservedPoint(group.spec, make_observer(choice, group.spec), places)


def _insert_points(model: GraphModule, points: dict[EdgeOrNode, Any], names: dict[Any, str]) -> None:
    at_edge: dict[tuple[Node, str], Node] = {}
    edges: dict[Node, list[Node]] = {}
    for place in points:
        if isinstance(place, tuple):
            edges.setdefault(place[0], []).append(place[1])
    order = {node: number for number, node in enumerate(model.graph.nodes)}
    last_input = [node for node in order if node.op == "placeholder"][-1:]
    for producer in list(order):
        source = producer
        if producer in points:
            after = last_input[0] if producer.op == "placeholder" else producer
            source = _point_after(model, after, names[points[producer]], producer, serves=producer)
            for user in list(producer.users):
                if user is not source and not _only_checks(user):
                    redirect(user, producer, source)
        for user in sorted(edges.get(producer, ()), key=order.__getitem__):
            point = points[producer, user]
            if source is not producer and point is points.get(producer):
                continue
            key = (producer, names[point])
            if key not in at_edge:
                with model.graph.inserting_before(user):
                    at_edge[key] = _call_point(model, names[point], source, serves=user)
            redirect(user, source, at_edge[key])


def _only_checks(user: Node) -> bool:
    """Whether a node returns nothing, as the guards and the assertions that export writes."""
    operator = operator_of(user)
    returns_nothing = user.op == "call_module" or (operator is not None and not operator._schema.returns)
    return returns_nothing and not user.users


def _point_after(model: GraphModule, after: Node, name: str, source: Node, serves: Node) -> Node:
    with model.graph.inserting_after(after):
        return _call_point(model, name, source, serves)


def _call_point(model: GraphModule, name: str, source: Node, serves: Node) -> Node:
    node = model.graph.call_module(name, (source,))
    take_origin(node, serves)
    node.meta["val"] = source.meta.get("val")
    return node


def _register(model: GraphModule, points: dict[EdgeOrNode, Any]) -> dict[Any, str]:
    """Add each point to the model once, and return its name. A callback may have put in its own."""
    names: dict[Any, str] = {}
    for place, point in points.items():
        if not isinstance(point, QuantizationPoint):
            raise AnnotationError(
                "prepare_obs_or_fq_callback put something here that is not a point.",
                node=place_name(place),
                expected="a torchquilt.pt2e.points.QuantizationPoint",
                got=f"{type(point).__module__}.{type(point).__qualname__}",
                remedy="replace the observer of the point (point.observer), or make an ObservedPoint",
            )
        if point not in names:
            names[point] = f"quantization_point_{len(names)}"
            model.add_module(names[point], point)
    return names


def _link_derived(groups: tuple[Group, ...], points: dict[EdgeOrNode, Any], names: dict[Any, str]) -> None:
    """Tell each derived point the names of the points that it is derived from."""
    for group in groups:
        point = points[group.places[0]]
        if not isinstance(group.spec, DerivedQuantizationSpec) or not isinstance(point, DerivedPoint):
            continue
        missing = [source for source in group.spec.derived_from if source not in points]
        if missing:
            raise SharingError(
                f"The parameters of {place_name(group.places[0])} are derived from a place that has no spec.",
                node=place_name(group.places[0]),
                expected="places that are annotated",
                got=", ".join(place_name(source) for source in missing),
                remedy="annotate the places that it is derived from",
            )
        point.sources = tuple(names[points[source]] for source in group.spec.derived_from)
