"""prepare_pt2e: from an exported float model to one that is ready to be calibrated."""

from __future__ import annotations

import operator
from collections.abc import Container
from functools import reduce
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.garbage_collection import garbage_collector_disabled
from torchquilt._internal.torch_defaults import global_state_kept
from torchquilt.errors import AnnotationError
from torchquilt.graph.aliasing import Memory
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.edits import redirect, take_origin
from torchquilt.graph.node_values import constant_nodes, operator_of
from torchquilt.graph.passes import Pass, run_passes
from torchquilt.graph.provenance import is_call
from torchquilt.graph.subgraphs import Region
from torchquilt.observers import ObserverFactory, observer_factory
from torchquilt.pt2e.annotate import Annotated, annotate_copy
from torchquilt.pt2e.callback import ask_for_points
from torchquilt.pt2e.model_record import keep_initial_state, set_stage
from torchquilt.pt2e.observer_points import (
    ConstantPoint,
    DerivedPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.scale_limits import BOUNDED_KEY, BoundedOperator
from torchquilt.pt2e.sharing_groups import Group, edge_name, producer_of
from torchquilt.quantizers.base import Quantizer
from torchquilt.quantizers.composable import leaves_of
from torchquilt.recipe.quantizers import intent_of
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.qspec import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    ZeroPointDomain,
)
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.data_movement import moves_data_only


def prepare_pt2e(
    model: ExportedProgram | GraphModule,
    quantizer: object,
    *,
    activation_observer: str | ObserverFactory = "histogram",
    strict: bool = True,
) -> GraphModule:
    """Fold BatchNorm, let the quantizer annotate, and put observers where tensors are to be quantized.

    The model that is handed in is left as it was. The result shares its weights with it. Python's collector
    of garbage pauses meanwhile, in the quantizer as well, and then is as it was.

    Args:
        model: a :class:`torch.export.ExportedProgram` or its ``.module()``, in evaluation mode.
        quantizer: a :class:`torchquilt.Quantizer`, or any object with ``annotate(model)``.
        activation_observer: how ranges of activations are found: a name (``"histogram"``, ``"minmax"``,
            ``"percentile:99.9"``, ``"entropy"``, ``"moving_average"``, see
            :func:`torchquilt.observers.make_observer`), or a function that makes an observer for a
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
        AnnotationError, CompositionError, SharingError: the annotations contradict each other.
        QuantizerError: the quantizer failed, or did what a step does not allow.
        CalibrationError: there is no observer of that name.
    """
    make = observer_factory(activation_observer)
    with global_state_kept(), garbage_collector_disabled():
        annotated = annotate_copy(model, quantizer, strict=strict)
        prepared = with_points(annotated, make)
        set_stage(prepared, "prepared", record_of(annotated))
        keep_initial_state(prepared)
        generate_code(prepared)
    return prepared


def with_points(annotated: Annotated, make: ObserverFactory) -> GraphModule:
    """The annotated model with a point wherever a tensor is going to be quantized."""
    points = ask_for_points(annotated, _make_points(annotated, make))

    def insert_points(prepared: GraphModule) -> GraphModule:
        for region, groups in annotated.groups:
            _insert_points(region, groups, points)
        return prepared

    return run_passes(annotated.model, (Pass("insert_points", insert_points),))


def record_of(annotated: Annotated) -> dict[str, Any]:
    """Record of how the model came about, as plain values."""
    capabilities = _stated_capabilities(annotated.quantizer)
    return {
        "quantizer": repr(annotated.quantizer),
        "recipe": intent_of(annotated.quantizer),
        "backends": list(capabilities.backends),
        "capabilities": capabilities.content_hash,
        "ledger": annotated.ledger.to_plain(),
    }


def _stated_capabilities(quantizer: Quantizer) -> Capabilities:
    """The capabilities that quantizers state; those that would have to be found out are left out."""
    leaves = leaves_of(quantizer)
    if not any(leaf.probes_capabilities for leaf in leaves):
        return quantizer.quantization_capabilities()
    found = (leaf.quantization_capabilities() for leaf in leaves if not leaf.probes_capabilities)
    return reduce(operator.or_, found, Capabilities())


def _make_points(annotated: Annotated, make: ObserverFactory) -> dict[EdgeOrNode, Any]:
    """Edge or node → its observer point; one point for each group."""
    points: dict[EdgeOrNode, Any] = {}
    for region, groups in annotated.groups:
        constants = constant_nodes(region.module.graph)
        for group in groups:
            point = _point_for(group, region, constants, make)
            points.update(dict.fromkeys(group.members, point))
    return points


def _point_for(
    group: Group, region: Region, constants: frozenset[Node], make: ObserverFactory
) -> QuantizationPoint[Any]:
    prefix = f"{region.path}." if region.path else ""
    names = tuple(prefix + edge_name(edge_or_node) for edge_or_node in group.members)
    if isinstance(group.spec, FixedQParamsQuantizationSpec):
        return FixedPoint(group.spec, names)
    if isinstance(group.spec, DerivedQuantizationSpec):
        return DerivedPoint(group.spec, names)
    if group.spec.is_dynamic:
        return DynamicPoint(group.spec, names)
    if all(producer_of(edge_or_node) in constants for edge_or_node in group.members):
        return ConstantPoint(group.spec, names)
    if group.spec.zero_point_domain is ZeroPointDomain.FLOAT:
        raise AnnotationError(
            "Only constants can have a float zero point.",
            node=", ".join(names),
            expected="zero_point_domain=int for an activation",
            got=str(group.spec),
            remedy="leave zero_point_domain out of the spec",
        )
    return ObservedPoint(group.spec, make(group.spec), names)


def _insert_points(region: Region, groups: tuple[Group, ...], points: dict[EdgeOrNode, Any]) -> None:
    """Put the points of a region where they belong: behind outputs, and before the users of edges."""
    model = region.module
    own = {edge_or_node: points[edge_or_node] for group in groups for edge_or_node in group.members}
    names = _register(model, own)
    _link_derived(groups, own, names)
    _note_limits(model, own, names)
    memory = Memory(model.graph)
    at_edge: dict[tuple[Node, str, int], Node] = {}
    edges: dict[Node, list[Node]] = {}
    for edge_or_node in own:
        if isinstance(edge_or_node, tuple):
            edges.setdefault(edge_or_node[0], []).append(edge_or_node[1])
    order = {node: number for number, node in enumerate(model.graph.nodes)}
    last_input = [node for node in order if node.op == "placeholder"][-1:]
    for producer in list(order):
        source = producer
        if producer in own:
            after = last_input[0] if producer.op == "placeholder" else producer
            served = _served(producer, order)
            name = names[own[producer]]
            is_new = not _was_seen_by(name, producer, memory, order)
            source = _point_after(model, after, name, producer, serves=served, is_new=is_new)
            for user in list(producer.users):
                if user is not source and not _checks_input(user, producer):
                    redirect(user, producer, source)
        for user in sorted(edges.get(producer, ()), key=order.__getitem__):
            point = own[producer, user]
            if source is not producer and point is own.get(producer):
                continue
            # Who reads before a write and who reads after it cannot share a copy.
            key = (producer, names[point], memory.version(producer, user))
            if key not in at_edge:
                with model.graph.inserting_before(user):
                    at_edge[key] = _call_point(model, names[point], source, serves=user)
            redirect(user, source, at_edge[key])
    outdate(model)


def _served(producer: Node, order: dict[Node, int]) -> Node:
    """The node that a point behind an output serves: itself, or who reads it first.

    An input or a stored tensor comes from no line of the model, and which module it belongs to is not said.
    """
    readers = [] if is_call(producer) else [user for user in producer.users if is_call(user)]
    return min(readers, key=order.__getitem__, default=producer)


def _checks_input(user: Node, producer: Node) -> bool:
    """Whether a node is a guard or an assertion about an input, which it checks as it was handed in.

    Every other assertion reads what the operators behind the tensor read. One that went on to read the tensor
    itself would be a reason for a delegate to compute it in float, of what is not float there.
    """
    operator = operator_of(user)
    returns_nothing = user.op == "call_module" or (operator is not None and not operator._schema.returns)
    return producer.op == "placeholder" and returns_nothing and not user.users


def _was_seen_by(name: str, producer: Node, memory: Memory, before: Container[Node]) -> bool:
    """Whether a node is a data-movement operator whose inputs have all been observed.

    The points of its inputs are in the graph by now. A group of tensors with one set of parameters is often
    one tensor seen from several sides, and looking at it once is enough.

    Args:
        name: of the point.
        producer: the node.
        memory: of the graph as it was without points.
        before: the nodes that it had then.
    """
    if not moves_data_only(producer):
        return False
    for node in producer.all_input_nodes:
        if node.op != "call_module" or node.target != name:
            return False
        while node not in before:
            (node,) = node.all_input_nodes
        if memory.version(node, producer):  # it holds something else than was seen
            return False
    return True


def _point_after(
    model: GraphModule, after: Node, name: str, source: Node, serves: Node, *, is_new: bool
) -> Node:
    with model.graph.inserting_after(after):
        return _call_point(model, name, source, serves, is_new=is_new)


def _call_point(model: GraphModule, name: str, source: Node, serves: Node, *, is_new: bool = True) -> Node:
    node = model.graph.call_module(name, (source,) if is_new else (source, False))
    take_origin(node, serves)
    node.meta["val"] = source.meta.get("val")
    for key, nothing in (("nn_module_stack", {}), ("stack_trace", "")):
        node.meta.setdefault(key, nothing)  # an input that is only returned comes from nowhere
    return node


def _register(model: GraphModule, points: dict[EdgeOrNode, Any]) -> dict[Any, str]:
    """Add each point to the model once, and return its name."""
    names: dict[Any, str] = {}
    for point in points.values():
        if point not in names:
            names[point] = f"quantization_point_{len(names)}"
            model.add_module(names[point], point)
    return names


def _note_limits(model: GraphModule, points: dict[EdgeOrNode, Any], names: dict[Any, str]) -> None:
    """Keep the limits of each operator, with the names of the points whose scales they are about."""
    for node in model.graph.nodes:
        annotation = annotation_of(node)
        arithmetic = None if annotation is None else annotation.arithmetic
        if arithmetic is None or node not in points:
            continue
        weight, bias = arithmetic.weight, arithmetic.bias
        node.meta[BOUNDED_KEY] = BoundedOperator(
            arithmetic.limits,
            tuple(names[points[edge]] for edge in arithmetic.inputs if edge in points),
            names[points[weight]] if weight in points else None,
            None if bias is None else (bias[0].name, bias[1].name),
            _fan_in(weight, bias),
            names[points[node]],
        )


def _fan_in(weight: EdgeOrNode | None, bias: tuple[Node, Node] | None) -> int:
    """Number of products of a weight in a sum for an element of the output; 0 where that is of no use."""
    if weight is None or bias is None:
        return 0
    values = producer_of(weight).meta["val"], bias[0].meta["val"]
    return int(values[0].numel() // max(values[1].numel(), 1))


def _link_derived(groups: tuple[Group, ...], points: dict[EdgeOrNode, Any], names: dict[Any, str]) -> None:
    """Tell each derived point the names of the points that it is derived from."""
    for group in groups:
        point = points[group.members[0]]
        if isinstance(group.spec, DerivedQuantizationSpec) and isinstance(point, DerivedPoint):
            point.sources = tuple(names[points[source]] for source in group.spec.derived_from)
