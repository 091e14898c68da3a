"""Operators that calibration never reached: refused by name, or left in float.

A branch that was never taken is the usual cause. What its operators read and return was never observed, so
nothing is known of the ranges. An operator of which one tensor was not observed stays in float altogether:
half of its tensors quantized would cost conversions and save nothing.
"""

from __future__ import annotations

from typing import Any

import attrs
from torch.fx import GraphModule, Node

from torchquilt._internal.text_tables import few
from torchquilt.errors import CalibrationError
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.subgraphs import Region, regions
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Reason
from torchquilt.pt2e.model_record import RECORD_KEY
from torchquilt.pt2e.observer_points import ObservedPoint, QuantizationPoint
from torchquilt.spec.annotation import ANNOTATION_KEY, annotation_of

_REASON = Reason("", "never_reached", "calibration never reached it, so its ranges are not known")


def leave_or_refuse_unseen(model: GraphModule, choice: str) -> GraphModule:
    """Deal with the operators of a prepared model that were never reached; may change ``model``.

    Args:
        model: a prepared model, the caller's to change.
        choice: ``"error"`` or ``"float"``.

    Raises:
        CalibrationError: there are some, and the choice is ``"error"``; or it is neither.
    """
    if choice not in ("error", "float"):
        raise CalibrationError(
            "unseen says what to do with operators that calibration never reached.",
            expected="'error' | 'float'",
            got=repr(choice),
        )
    for region in regions(model):
        unseen = _unseen_calls(region)
        if not unseen:
            continue
        if choice == "error":
            raise _never_reached(region, unseen)
        _leave_in_float(model, region, unseen)
    return model


def _point_at(region: Region, node: Node) -> QuantizationPoint[Any] | None:
    held = region.module._modules.get(str(node.target)) if node.op == "call_module" else None
    return held if isinstance(held, QuantizationPoint) else None


def _unseen_calls(region: Region) -> list[Node]:
    """The calls of points in a region that should have seen data and did not."""
    found = []
    for node in region.module.graph.nodes:
        point = _point_at(region, node)
        if isinstance(point, ObservedPoint) and not point.observer.has_data and not point.observer.ignored:
            found.append(node)
    return found


def _never_reached(region: Region, unseen: list[Node]) -> CalibrationError:
    """The error for a branch that was never taken, or for tensors of the model itself that saw nothing."""
    points = [_point_at(region, node) for node in unseen]
    names = dict.fromkeys(name for point in points if point is not None for name in point.names)
    if region.caller is None:
        problem = "These tensors saw no data."
        remedy = (
            "run calibration batches through the prepared model: torchquilt.calibrate(prepared, batches); "
            "or train a step"
        )
    else:
        problem = f"The subgraph {region.path} of {region.caller.target} was never run during calibration."
        remedy = (
            "calibrate with a batch that runs it, or leave it in float: convert_pt2e(..., unseen='float')"
        )
    return CalibrationError(
        problem,
        node=few([*names], 5),
        expected="at least one value for each of them before convert_pt2e",
        got="0 values",
        remedy=remedy,
    )


def _leave_in_float(model: GraphModule, region: Region, unseen: list[Node]) -> None:
    """Take the points away from every operator that reads or makes a tensor that was not observed."""
    operators = {
        operator
        for call in unseen
        for operator in (*call.users, *call.all_input_nodes)
        if annotation_of(operator) is not None
    }
    for operator in operators:
        del operator.meta[ANNOTATION_KEY]
        for source in operator.all_input_nodes:
            if _point_at(region, source) is not None:
                operator.replace_input_with(source, source.all_input_nodes[0])
                _erase_idle(source)
        for user in list(operator.users):
            point = _point_at(region, user)
            if point is not None and region.name_of(operator) in point.names:
                _bypass(user)
    for call in unseen:
        if not call._erased:
            _bypass(call)
    outdate(region.module)
    _note(model, {region.name_of(operator) for operator in operators})


def _bypass(call: Node) -> None:
    call.replace_all_uses_with(call.all_input_nodes[0])
    _erase_idle(call)


def _erase_idle(call: Node) -> None:
    if not call.users:
        call.graph.erase_node(call)


def _note(model: GraphModule, names: set[str]) -> None:
    """Say in the ledger that these operators stay in float after all."""
    record = model.meta[RECORD_KEY]
    ledger = Ledger.from_plain(record["ledger"])
    rows = tuple(
        attrs.evolve(row, quantizer=None, pattern="", tensors=(), reasons=(_REASON,))
        if row.node in names
        else row
        for row in ledger.rows
    )
    boundaries = tuple(edge for edge in ledger.boundaries if not names & {edge.producer, edge.user})
    changed = attrs.evolve(ledger, rows=rows, boundaries=boundaries)
    model.meta[RECORD_KEY] = {**record, "ledger": changed.to_plain()}
