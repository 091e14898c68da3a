"""prepare_pt2e: from an exported float model to one that is ready to be calibrated."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt.annotation import annotation_of, check_annotation
from torchquilt.errors import AnnotationError, ModelError, SharingError
from torchquilt.graph.batch_norm import fold_batch_norm
from torchquilt.graph.edits import copy_model, redirect, take_origin
from torchquilt.graph.in_place import make_functional
from torchquilt.graph.values import constant_nodes, is_float_tensor, overload_name
from torchquilt.observers import ObserverFactory, make_observer
from torchquilt.pt2e.groups import Group, find_groups, place_name, producer_of
from torchquilt.pt2e.points import (
    ConstantPoint,
    DerivedPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.quantizers import as_quantizer
from torchquilt.spec import DerivedQuantizationSpec, EdgeOrNode, FixedQParamsQuantizationSpec

#: Key of ``GraphModule.meta``: how far along the flow a model is (``prepared`` or ``converted``).
STAGE_KEY = "torchquilt_stage"


def prepare_pt2e(
    model: ExportedProgram | GraphModule,
    quantizer: object,
    *,
    activation_observer: str | ObserverFactory = "histogram",
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

    Returns:
        A GraphModule with the signature of the model, to be called with calibration data, by hand or
        with :func:`torchquilt.calibrate`, and then handed to :func:`torchquilt.convert_pt2e`.

    Raises:
        ModelError: the model is not an exported one, is in training mode, or was prepared before.
        IntentError, UnsupportedConfigError: the quantizer cannot do what it is asked.
        AnnotationError, CompositionError, SharingError: what was annotated does not hold together.
    """
    decider = as_quantizer(quantizer)
    prepared = fold_batch_norm(make_functional(_own_copy(model)))
    prepared = _returned(decider.transform_for_annotation(prepared), decider.name)
    decider.annotate(prepared)
    _check_annotations(prepared)
    decider.validate(prepared)
    points = _make_points(prepared, activation_observer)
    decider.prepare_obs_or_fq_callback(prepared, points)
    _insert_points(prepared, points)
    prepared.recompile()
    prepared.meta[STAGE_KEY] = "prepared"
    return prepared


def _own_copy(model: object) -> GraphModule:
    """A graph module that may be changed, of a model that may not."""
    if isinstance(model, ExportedProgram):
        model = model.module()
    if not isinstance(model, GraphModule):
        raise ModelError(
            "Only an exported model can be prepared.",
            expected="a torch.export.ExportedProgram, or its .module()",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            remedy="export it first: torch.export.export(model.eval(), example_inputs)",
        )
    stage = model.meta.get(STAGE_KEY)
    if stage is not None:
        raise ModelError(
            f"This model has been {stage} already.",
            expected="a float model as torch.export gave it",
            got=f"a {stage} model",
            remedy="prepare the exported float model again; it was not changed by preparing it",
        )
    for node in model.graph.nodes:
        if _is_in_training_mode(node):
            raise ModelError(
                "This model was exported in training mode.",
                node=node,
                expected="a model in evaluation mode",
                got=node.format_node(),
                remedy="call model.eval() before torch.export.export",
            )
    return copy_model(model)


def _is_in_training_mode(node: Node) -> bool:
    name = overload_name(node)
    if name in ("aten.dropout.default", "aten.dropout_.default"):
        return bool(node.args[2]) and bool(node.args[1])
    return name == "aten.batch_norm.default" and bool(node.args[5])


def _returned(model: object, quantizer: str) -> GraphModule:
    if not isinstance(model, GraphModule):
        raise ModelError(
            "The quantizer did not return the model that it transformed.",
            quantizer=quantizer,
            expected="transform_for_annotation returns a GraphModule",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            remedy="end transform_for_annotation with `return model`",
        )
    return model


def _check_annotations(model: GraphModule) -> None:
    """Annotations fit their nodes, and only floating point tensors are quantized."""
    for node in model.graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        check_annotation(node, annotation)
        quantized = [producer for producer, spec in annotation.input_qspec_map.items() if spec is not None]
        for tensor in (*quantized, *((node,) if annotation.output_qspec is not None else ())):
            if not is_float_tensor(tensor):
                raise AnnotationError(
                    f"{tensor.name} cannot be quantized: it is not a floating point tensor.",
                    node=node,
                    quantizer=annotation.quantizer or None,
                    expected="one float tensor",
                    got=tensor.meta.get("val"),
                    remedy="annotate only edges that carry float tensors",
                )


def _make_points(model: GraphModule, choice: str | ObserverFactory) -> dict[EdgeOrNode, Any]:
    """Place → the module that is going to stand there; one module for each group."""
    constants = constant_nodes(model.graph)
    points: dict[EdgeOrNode, Any] = {}
    for group in find_groups(model.graph):
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
    return ObservedPoint(group.spec, make_observer(choice, group.spec), places)


def _insert_points(model: GraphModule, points: dict[EdgeOrNode, Any]) -> None:
    names = _register(model, points)
    _link_derived(points, names)
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
                if user is not source:
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


def _link_derived(points: dict[EdgeOrNode, Any], names: dict[Any, str]) -> None:
    for place, point in points.items():
        if isinstance(point, DerivedPoint):
            missing = [source for source in point.spec.derived_from if source not in points]
            if missing:
                raise SharingError(
                    f"The parameters of {place_name(place)} are derived from a place that has no spec.",
                    node=place_name(place),
                    expected="places that are annotated",
                    got=", ".join(place_name(source) for source in missing),
                    remedy="annotate the places that it is derived from",
                )
            point.sources = tuple(names[points[source]] for source in point.spec.derived_from)


def model_stage(model: torch.nn.Module) -> str | None:
    """``"prepared"``, ``"converted"`` or None for a model that is neither."""
    return model.meta.get(STAGE_KEY) if isinstance(model, GraphModule) else None
