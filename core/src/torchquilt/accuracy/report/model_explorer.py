"""Node data for Google's Model Explorer: a value for each operator, by its name in the graph.

The format is that of its class ``GraphNodeData``. Without the name of a graph it applies to the graph that is
shown (https://github.com/google-ai-edge/model-explorer/wiki/4.-API-Guide#custom-node-data).
"""

from __future__ import annotations

import math
from typing import Any

from torchquilt.errors import ModelError

#: Upper ends of SQNR in dB, with the colours of what is not above them.
_BANDS = ((10, "#b3261e"), (20, "#e8710a"), (30, "#f9c74f"), (40, "#a8d08d"), (1000, "#4c9f70"))
_BACKENDS = ("#2f6fb5", "#1e8e6e", "#8e5bb5", "#b5732f", "#b54a6b", "#3f8fa8")
_FLOAT = "#c8c8c8"
#: Kinds of values, with the way to have them.
_KINDS = {
    "backend": "",
    "isolated": "compare=torchquilt.compare(float_model, quantized, batches)",
    "accumulated": "compare=torchquilt.compare(float_model, quantized, batches)",
    "noise": "sensitivity=torchquilt.sensitivity(exported, quantizer, calibration)",
}
#: What Model Explorer is given for an operator without any noise: it has no infinite numbers.
_NO_NOISE = 999.0


def node_data(data: dict[str, Any], values: str | None) -> dict[str, Any]:
    """Node data of a report.

    Args:
        data: of the page.
        values: one of :data:`_KINDS`; None for the isolated error, or the backend where nothing was compared.

    Raises:
        ModelError: there are no such values.
    """
    operators = data["operators"]
    if values is None:
        values = "isolated" if any("isolated" in one for one in operators) else "backend"
    if values not in _KINDS:
        raise ModelError(
            "There are no such values for Model Explorer.", expected=" or ".join(_KINDS), got=values
        )
    found = {} if values == "backend" else _numbers(operators, values)
    if values == "backend":
        return {"results": _by_backend(operators, data["quantizers"])}
    if not found:
        raise ModelError(
            f"Nothing in this report has the values {values!r}.",
            expected=f"torchquilt.report(…, {_KINDS[values]})",
            got="a report without them",
            remedy="hand it in, or ask for values='backend'",
        )
    if values == "noise":
        gradient = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#b3261e"}]
        return {"results": found, "gradient": gradient}
    return {"results": found, "thresholds": [{"value": end, "bgColor": colour} for end, colour in _BANDS]}


def _numbers(operators: list[dict[str, Any]], values: str) -> dict[str, Any]:
    found = {}
    for operator in operators:
        value = operator.get("noise") if values == "noise" else operator.get(values, {}).get("sqnr")
        if value is not None:
            number = float(value)
            number = number if math.isfinite(number) else math.copysign(_NO_NOISE, number)
            found[operator["name"]] = {"value": number}
    return found


def _by_backend(operators: list[dict[str, Any]], quantizers: list[str]) -> dict[str, Any]:
    colours = {name: _BACKENDS[index % len(_BACKENDS)] for index, name in enumerate(quantizers)}
    return {
        operator["name"]: {
            "value": operator.get("quantizer", "float"),
            "bgColor": colours.get(operator.get("quantizer", ""), _FLOAT),
        }
        for operator in operators
    }
