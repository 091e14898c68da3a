"""All that a page shows of a model, as plain data for the scripts of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from torchquilt.accuracy.report.graph_drawing import Drawing
from torchquilt.accuracy.report.histograms import Histogram
from torchquilt.accuracy.report.measurements import Compared, Comparison, Search, Sensitivities
from torchquilt.accuracy.report.placement import HEIGHT, WIDTH, placed
from torchquilt.accuracy.report.plain import plain_number
from torchquilt.accuracy.report.ranges import Range
from torchquilt.accuracy.report.subject import Subject
from torchquilt.accuracy.report.tables import (
    capability_table,
    frontier_table,
    output_table,
    requantized_table,
    sensitivity_table,
)
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Row
from torchquilt.support.capabilities import Capabilities


@attrs.frozen(eq=False)
class Measured:
    """All that was measured of a model; None for what was not.

    Args:
        comparison, sensitivities, search: as they were read.
        histograms: number of a group of tensors → what calibration saw.
        capabilities: what the quantizers could have done.
    """

    comparison: Comparison | None
    sensitivities: Sensitivities | None
    search: Search | None
    histograms: Mapping[int, Histogram]
    capabilities: Capabilities | None


def contents_of(subject: Subject, ranges: Mapping[int, Range], measured: Measured) -> dict[str, Any]:
    """The data of the page."""
    operators = _operators(subject.ledger, measured)
    return {
        "quantizers": _quantizers(subject.ledger),
        "operators": operators,
        "graph": _graph(subject, operators),
        "groups": _groups(subject.ledger, ranges, measured.histograms),
        "search": _search(measured.search),
        "tables": {
            "capabilities": capability_table(measured.capabilities),
            "sensitivity": sensitivity_table(measured.sensitivities),
            "frontier": frontier_table(measured.search),
            "outputs": output_table(measured.comparison),
            "requantized": requantized_table(subject.ledger),
        },
    }


def _quantizers(ledger: Ledger) -> list[str]:
    return list(dict.fromkeys(row.quantizer for row in ledger.quantized if row.quantizer))


def _operators(ledger: Ledger, measured: Measured) -> list[dict[str, Any]]:
    compared = {} if measured.comparison is None else measured.comparison.rows
    noises = {
        node: group.noise
        for group in (() if measured.sensitivities is None else measured.sensitivities.groups)
        if group.noise is not None
        for node in group.nodes
    }
    return [_operator(row, compared.get(row.node), noises.get(row.node)) for row in ledger.rows]


def _operator(row: Row, compared: Compared | None, noise: float | None) -> dict[str, Any]:
    """An operator; what there is nothing of is left out."""
    found: dict[str, Any] = {
        "name": row.node,
        "op": row.op,
        "module": row.module,
        "quantizer": row.quantizer,
        "pattern": row.pattern,
        "rule": row.rule,
        "tensors": [[tensor.edge, tensor.spec, tensor.group] for tensor in row.tensors],
        "reasons": [[one.quantizer, one.code, one.text, one.rule, one.asked] for one in row.reasons],
        "macs": row.macs,
        "parameters": [list(pair) for pair in row.parameters],
        "written": [list(pair) for pair in row.written_as],
        "lowered": None
        if row.lowered is None
        else [row.lowered.code, row.lowered.delegate, row.lowered.text],
        "noise": plain_number(noise),
    }
    if compared is not None:
        found |= {
            "isolated": {name: plain_number(value) for name, value in compared.isolated.items()},
            "accumulated": {name: plain_number(value) for name, value in compared.accumulated.items()},
            "uses": {
                name: {key: plain_number(value) for key, value in figures.items()}
                for name, figures in compared.tensors.items()
            },
            "why": compared.reason,
            "samples": [[plain_number(x, 4), plain_number(y, 4)] for x, y in compared.samples],
        }
    return {name: value for name, value in found.items() if value not in (None, "", [], {})}


def _graph(subject: Subject, operators: list[dict[str, Any]]) -> dict[str, Any]:
    drawing = Drawing(subject)
    placement = placed(len(drawing.nodes), drawing.edges)
    index = {operator["name"]: number for number, operator in enumerate(operators)}
    nodes = []
    for drawn, (x, y) in zip(drawing.nodes, placement.centres, strict=True):
        node: dict[str, Any] = {"name": drawn.name, "kind": drawn.kind, "x": x, "y": y}
        if drawn.kind == "operator":
            node["operator"] = index[drawn.name]
        nodes.append(node)
    return {
        "nodes": nodes,
        "routes": [[a, b, [part for point in points for part in point]] for a, b, points in placement.routes],
        "far": [list(edge) for edge in placement.far],
        "width": placement.size[0],
        "height": placement.size[1],
        "nodeWidth": WIDTH,
        "nodeHeight": HEIGHT,
    }


def _groups(
    ledger: Ledger, ranges: Mapping[int, Range], histograms: Mapping[int, Histogram]
) -> dict[str, Any]:
    numbers = sorted({tensor.group for row in ledger.rows for tensor in row.tensors})
    return {str(number): _group(ranges.get(number), histograms.get(number)) for number in numbers}


def _group(chosen: Range | None, histogram: Histogram | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if chosen is not None:
        found |= {"low": plain_number(chosen.low), "high": plain_number(chosen.high), "text": chosen.text}
    if histogram is not None:
        plain = attrs.asdict(histogram)
        counts = [plain_number(count) for count in plain.pop("counts")]
        found["histogram"] = {
            **{name: plain_number(value) for name, value in plain.items()},
            "counts": counts,
        }
    return found


def _search(search: Search | None) -> dict[str, Any] | None:
    if search is None or not search.frontier:
        return None
    return {
        "points": [
            [plain_number(value) for value in (point.metric, point.macs_float, point.nbytes)]
            for point in search.frontier
        ],
        "chosen": search.chosen,
        "floatMetric": plain_number(search.float_metric),
        "givenMetric": plain_number(search.given_metric),
    }
