"""A comparison as text, as HTML, as JSON and as a data frame."""

from __future__ import annotations

import json
import math

import attrs
import pytest

import torchquilt as tq
from torchquilt.accuracy.comparison_values import (
    ComparedOperator,
    ComparedOutput,
    ErrorFigures,
    TensorError,
    Uncompared,
)

NONE = ErrorFigures(math.inf, 1.0, 0.0, 0.0)
BAD = ErrorFigures(-math.inf, 0.5, -0.25, math.inf)
SOME = ErrorFigures(12.3456, 0.97, 0.001, 0.5)
USE = TensorError("output", 12.3, (-1.5, 2.25), 0.0147, 0.01, 0.25, 0.5, 3)
DYNAMIC = TensorError("input x", 40.0, None, None, 0.0, None, 0.0, 0)


def row(node: str, isolated: ErrorFigures = SOME, **more: object) -> ComparedOperator:
    """A row of a quantized linear."""
    fields = {"op": "aten.linear.default", "module": "head", "quantizer": "XNNPACKQuantizer"}
    rest = {"pattern": "linear", "rule": "everywhere", "spec": "int8 per_tensor affine"}
    return ComparedOperator(node, **{**fields, **rest, **more}, isolated=isolated, accumulated=SOME)  # type: ignore[arg-type]


COMPARISON = tq.Comparison(
    (
        row("nan", BAD, reason="it returns NaN"),
        row("linear", tensors=(USE, DYNAMIC), reason="<b>few & large</b>", samples=((0.5, 0.25), (1.0, 1.5))),
        row("relu", NONE, quantizer=None, module=""),
    ),
    (ComparedOutput("linear", SOME), ComparedOutput("<state>", NONE)),
    2,
    (Uncompared("empty", "its memory is not set"),),
)


def test_json_gives_the_same_comparison() -> None:
    """Infinite numbers and what is None included."""
    text = COMPARISON.to_json()
    assert tq.Comparison.from_json(text) == COMPARISON
    assert json.loads(text)["schema"] == 1
    assert math.isinf(json.loads(text)["operators"][0]["isolated"]["sqnr"])


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"schema": 1}', '{"schema": 99}', COMPARISON.to_json()[:-40]]
)
def test_what_is_no_comparison_is_refused(text: str) -> None:
    """With an error of ours."""
    with pytest.raises(tq.AccuracyError):
        tq.Comparison.from_json(text)


def test_text_shows_outputs_and_operators_with_an_error() -> None:
    """NaN as well, and not those without an error; what was not compared is counted."""
    text = str(COMPARISON)
    lines = text.splitlines()
    assert lines[0] == "output linear: 12.3 dB, cosine 0.97000, max error 0.5"
    assert [line.split()[0] for line in lines if line.startswith(("nan", "linear", "relu"))] == [
        "nan",
        "linear",
    ]
    assert lines[-1] == "not compared: 1 operator, see .uncompared"
    assert "3 operators" in repr(COMPARISON)


def test_text_of_many_operators_is_short() -> None:
    """Twenty are shown, and the others counted."""
    many = attrs.evolve(COMPARISON, operators=tuple(row(f"linear_{number:04}") for number in range(1234)))
    text = str(many)
    assert sum(line.startswith("linear_") for line in text.splitlines()) == 20
    assert "… and 1,214 more operators with an error" in text


def test_html_escapes_names_and_reasons() -> None:
    """All rows are in it, folded away."""
    html = COMPARISON._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;few &amp; large&lt;/b&gt;" in html
    assert "&lt;state&gt;" in html
    assert html.count("relu") >= 1
    assert "<details" in html


def test_rows_are_found_by_name() -> None:
    """And an unknown name is refused with a way to find the others."""
    assert COMPARISON["linear"].saturated == 0.01
    assert (COMPARISON["linear"].unused, COMPARISON["linear"].zeroed_channels) == (0.25, 3)
    assert (COMPARISON["relu"].output, COMPARISON["relu"].saturated) == (None, 0.0)
    assert COMPARISON.worst is COMPARISON.operators[0]
    with pytest.raises(tq.AccuracyError, match="lin") as caught:
        COMPARISON["lin"]
    assert "uncompared" in str(caught.value.remedy)


def test_reasons_name_the_largest_part() -> None:
    """Values that are cut off, become zero, leave the range unused, or else the steps."""
    plain = attrs.evolve(USE, sqnr=35.0, saturated=0.0, unused=0.1, to_zero=0.0, zeroed_channels=0)
    assert plain.reason == "output is rounded to steps of 0.0147 in -1.5 … 2.25"
    assert "60% of the range" in attrs.evolve(plain, unused=0.6).reason
    assert "1 whole channel:" in attrs.evolve(plain, zeroed_channels=1, to_zero=0.1).reason
    assert "becomes zero" in attrs.evolve(plain, sqnr=12.0, to_zero=0.3).reason
    assert "cut off" in attrs.evolve(plain, cut_off=0.9, saturated=0.02).reason
    assert "few integers" in DYNAMIC.reason


def test_a_data_frame_has_a_row_for_each_operator() -> None:
    """With its figures in columns."""
    pytest.importorskip("pandas")
    frame = COMPARISON.to_pandas()
    assert list(frame["node"]) == ["nan", "linear", "relu"]
    assert list(frame["isolated_sqnr"]) == [-math.inf, 12.3456, math.inf]
    assert frame["zeroed_channels"].sum() == 3
