"""torchquilt.report: what the page says of a model, and that it is one page that nothing can break out of.

What a browser makes of it is in test_report_page.py.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import torchquilt as tq
from control_flow import Branches
from pages import Page
from reported import SHAPE, Quantized, Residual, comparison, search
from strategies import normal, one_call
from torchquilt.accuracy.comparison_values import (
    ComparedOperator,
    ComparedOutput,
    ErrorFigures,
    TensorError,
    Uncompared,
)
from torchquilt.accuracy.report import rendering
from torchquilt.accuracy.report.measurements import Found, comparison_of, search_of, sensitivities_of
from torchquilt.accuracy.search_values import Candidate
from torchquilt.accuracy.sensitivity_values import GroupSensitivity
from torchquilt.ledger.lowering_status import LoweringStatus
from torchquilt.lowering.program_facts import Ports

HOSTILE = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>")


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    """Two residual blocks, one of which has a name that would be a script."""
    return Quantized.of(Residual(2))


@pytest.fixture(scope="module")
def full(quantized: Quantized) -> tq.Report:
    """All that can be handed in."""
    ledger = quantized.ledger
    return tq.report(
        quantized.exported,
        quantized.converted,
        compare=comparison(ledger),
        search=search(),
        prepared=quantized.prepared,
    )


@pytest.fixture(scope="module")
def bare(quantized: Quantized) -> tq.Report:
    """Nothing but the quantized model."""
    return tq.report(None, quantized.converted)


class Tags(Page):
    """Tags and texts of a page; elements without an end are not kept open."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        """Leave closing to the browser."""


def test_the_page_loads_nothing(full: tq.Report) -> None:
    """No element names anything outside of the page, and the policy allows no connection."""
    page = Tags(full.html)
    named = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset")
    ]
    assert [value for value in named if not (value or "").startswith(("#", "data:,"))] == []
    (policy,) = [at["content"] for tag, at in page.tags if tag == "meta" and "http-equiv" in at]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline'; img" in policy.split("style-src")[1]
    assert "unsafe" not in policy.split("style-src")[0]


def test_the_same_model_makes_the_same_page(quantized: Quantized, bare: tq.Report) -> None:
    """No time, no address and no random number is in it."""
    assert tq.report(None, quantized.converted).html == bare.html


def test_what_is_missing_says_how_to_get_it(bare: tq.Report, full: tq.Report) -> None:
    """Each section that needs more names the argument, and does not where that was handed in."""
    for argument in ("compare=torchquilt.compare", "search=torchquilt.search", "prepared=prepared"):
        assert argument in bare.html
        assert argument not in full.html
    assert "sensitivity=torchquilt.sensitivity" in full.html


def test_each_row_of_the_ledger_is_an_operator_and_a_node(full: tq.Report, quantized: Quantized) -> None:
    """In their order, with who decided; the graph has the input and the output besides."""
    rows = quantized.ledger.rows
    assert [(one["name"], one.get("quantizer")) for one in full.data["operators"]] == [
        (row.node, row.quantizer) for row in rows
    ]
    nodes = full.data["graph"]["nodes"]
    assert [node["name"] for node in nodes] == ["x", *(row.node for row in rows), "output"]


def test_edges_leave_conversions_out(full: tq.Report) -> None:
    """A residual block: both convolutions, the way around them, and nothing that quantizes."""
    names = [node["name"] for node in full.data["graph"]["nodes"]]
    edges = {(names[a], names[b]) for a, b, _ in full.data["graph"]["routes"]}
    assert {("x", "conv2d"), ("conv2d", "conv2d_1"), ("conv2d", "add"), ("group_norm", "add")} <= edges
    assert not any("quantize" in name for name in names)
    assert ("softmax", "output") in edges


def test_a_saved_model_has_the_same_page_and_its_lock(quantized: Quantized, tmp_path: Path) -> None:
    """The graph, the ranges and the figures are those of the model that was saved."""
    lock = tq.save(quantized.converted, tmp_path / "model.pt2", (normal(*SHAPE),))
    loaded = tq.report(None, tq.load(tmp_path / "model.pt2"))
    before = tq.report(None, quantized.converted)
    assert loaded.data == before.data
    assert lock.sha256 in loaded.html
    assert lock.sha256 not in before.html


def test_operators_in_control_flow_are_in_the_graph() -> None:
    """They read what is handed into their subgraph, and the operator that runs it reads them."""
    report = tq.report(None, Quantized.of(Branches(4), shape=(2, 4)).converted)
    names = [node["name"] for node in report.data["graph"]["nodes"]]
    edges = {
        tuple(names[end].rpartition(".")[2] for end in route[:2]) for route in report.data["graph"]["routes"]
    }
    assert {("x", "sum_1"), ("x", "linear"), ("linear", "relu"), ("relu", "cond")} <= edges
    assert {("linear", "add"), ("add", "cond"), ("cond", "getitem"), ("getitem", "output")} <= edges


def test_ranges_are_those_of_the_quantize_operators(full: tq.Report, quantized: Quantized) -> None:
    """Of the input, which the first operator of its kind quantizes."""
    (place,) = [t for t in full.data["operators"][0]["tensors"] if t[0] == "input x"]
    group = full.data["groups"][str(place[2])]
    node = next(n for n in quantized.converted.graph.nodes if "quantize_per_tensor" in str(n.target))
    _, scale, zero_point, low, high, _ = node.args
    assert group["low"] == pytest.approx((low - zero_point) * scale, rel=1e-4)
    assert group["high"] == pytest.approx((high - zero_point) * scale, rel=1e-4)


def test_a_weight_has_the_range_of_all_its_channels(full: tq.Report, quantized: Quantized) -> None:
    """From the smallest to the largest value that the integers of any channel stand for."""
    (tensor,) = [t for t in full.data["operators"][0]["tensors"] if t[0] == "input stem_weight"]
    scales = quantized.converted.get_buffer("stem.weight_int8_scale")
    group = full.data["groups"][str(tensor[2])]
    assert group["high"] == pytest.approx(127 * float(scales.max()), rel=1e-4)
    assert group["low"] == pytest.approx(-127 * float(scales.max()), rel=1e-4)


def _histogram(report: tq.Report, edge: str) -> tuple[dict[str, Any], dict[str, Any]]:
    (tensor,) = [t for t in report.data["operators"][0]["tensors"] if t[0] == edge]
    group = report.data["groups"][str(tensor[2])]
    return group, group["histogram"]


def test_a_histogram_counts_what_calibration_saw(full: tq.Report) -> None:
    """Beside a plain count: the same extremes, all values, and each bar within a bin of the observer."""
    seen = torch.cat([normal(*SHAPE, seed=seed).flatten() for seed in range(2)])
    _, found = _histogram(full, "input x")
    counts = torch.tensor(found["counts"])
    assert (found["low"], found["high"]) == (
        pytest.approx(float(seen.min()), rel=1e-4),
        pytest.approx(float(seen.max()), rel=1e-4),
    )
    assert float(counts.sum()) + found["below"] + found["above"] == pytest.approx(len(seen), rel=1e-3)
    exact = torch.histc(seen, len(counts), found["start"], found["end"])
    # A bin of the observer is an eighth of an octave wide, and its values are spread over it evenly.
    assert (counts.cumsum(0) - exact.cumsum(0)).abs().max() < 0.03 * len(seen)


def _prepared(quantized: Quantized, observer: str) -> torch.fx.GraphModule:
    """The float model, to be calibrated anew."""
    quantizer = tq.quantizer("xnnpack", "static_int8_per_channel")
    return tq.prepare_pt2e(quantized.exported, quantizer, activation_observer=observer)


def test_the_share_that_a_range_clips_is_that_of_the_values(quantized: Quantized) -> None:
    """A quarter of the values lies far outside of the range of a model that was calibrated on others."""
    prepared = _prepared(quantized, "percentile:100")
    small = normal(*SHAPE) / 4
    with torch.no_grad():
        prepared(small)
        converted = tq.convert_pt2e(prepared)
        prepared(torch.cat([small[:1], torch.full_like(small[1:], 50.0)]))
    group, found = _histogram(tq.report(None, converted, prepared=prepared), "input x")
    assert group["high"] < 2
    assert found["clipped_above"] == pytest.approx(0.25, abs=0.01)
    assert found["above"] == pytest.approx(SHAPE[1] * SHAPE[2] * SHAPE[3], rel=0.01)
    assert found["clipped_below"] == 0


def test_a_range_that_holds_all_values_clips_nothing(quantized: Quantized) -> None:
    """With the smallest and the largest value as its ends."""
    prepared = _prepared(quantized, "percentile:100")
    with torch.no_grad():
        prepared(normal(*SHAPE))
    _, found = _histogram(tq.report(None, tq.convert_pt2e(prepared), prepared=prepared), "input x")
    assert (found["clipped_below"], found["clipped_above"]) == (0, 0)


def test_a_prepared_model_of_other_decisions_is_refused(quantized: Quantized) -> None:
    """So is one that is not prepared: its histograms would be those of other tensors."""
    other = tq.prepare_pt2e(quantized.exported, tq.quantizer("xnnpack", "dynamic_int8"))
    with pytest.raises(tq.ModelError, match="not the one that this model was made of"):
        tq.report(None, quantized.converted, prepared=other)
    with pytest.raises(tq.ModelError, match="Only a prepared model"):
        tq.report(None, quantized.converted, prepared=quantized.converted)


def test_the_errors_of_modules_add_up(full: tq.Report) -> None:
    """The operator with 5 dB has most of the noise, and its module most of the error."""
    shares = re.findall(r'class="module" title="([^"]*)".*?([\d.]+)% of the error', full.html, re.DOTALL)
    found = {path: float(share) for path, share in shares}
    assert found[""] == 100
    assert found["stem"] + found["blocks"] + found["head"] <= 100.5
    noise = {30.0: 10**-3.0, 5.0: 10**-0.5}
    count = sum("isolated" in one for one in full.data["operators"])
    assert found["blocks.0.second"] == pytest.approx(
        100 * noise[5.0] / (noise[5.0] + (count - 1) * noise[30.0]), abs=0.6
    )


def test_what_is_measured_is_read_as_far_as_it_is_there(quantized: Quantized) -> None:
    """Empty plain forms, and rows that lack most, make a page."""
    name = quantized.ledger.quantized[0].node
    report = tq.report(
        None,
        quantized.converted,
        compare={"operators": [{"node": name, "isolated": {"sqnr": math.inf}}, {}, None], "later": 1},
        sensitivity={"groups": [{"name": "a", "nodes": [name]}]},
        search={"frontier": [{}], "evaluations": "many"},
    )
    assert report.data["operators"][0]["isolated"] == {"sqnr": "inf"}
    assert report.data["search"]["chosen"] is None
    assert tq.report(None, quantized.converted, compare={}, sensitivity={}, search={}).data["search"] is None


@pytest.mark.parametrize("argument", ["compare", "sensitivity", "search"])
def test_something_else_is_refused(quantized: Quantized, argument: str) -> None:
    """The error names the argument, and what makes one."""
    with pytest.raises(tq.ModelError, match=f"cannot read this {argument}") as caught:
        tq.report(None, quantized.converted, **{argument: 3.5})
    assert f"torchquilt.{argument}" in str(caught.value)


@pytest.mark.parametrize("model", ["exported", "prepared"])
def test_a_float_model_is_no_quantized_one(quantized: Quantized, model: str) -> None:
    """The error says how to come by one; a prepared model has decisions, but no integers yet."""
    with pytest.raises(tq.ModelError, match="no quantized model"):
        tq.report(None, getattr(quantized, model))


def test_without_the_extra_it_says_how_to_get_it(
    quantized: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is done."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(rendering, "import_module", missing)
    with pytest.raises(tq.TorchquiltError, match="needs the package jinja2") as caught:
        tq.report(None, quantized.converted)
    assert caught.value.remedy == "pip install 'torchquilt[report]'"


@pytest.mark.parametrize("values", [None, "isolated", "accumulated"])
def test_node_data_has_the_error_of_each_operator(full: tq.Report, values: str | None) -> None:
    """In the format of Model Explorer: a value for each node, and the colours of its bands."""
    data = json.loads(full.to_model_explorer(values))
    compared = [one["name"] for one in full.data["operators"] if "isolated" in one]
    assert [*data["results"]] == compared
    least = min(result["value"] for result in data["results"].values())
    assert least == (4.0 if values == "accumulated" else 5.0)
    assert [band["value"] for band in data["thresholds"]] == sorted(
        band["value"] for band in data["thresholds"]
    )


def test_node_data_without_errors_has_the_backend(bare: tq.Report, quantized: Quantized) -> None:
    """A text for each node, with the colour of its backend; other values are refused."""
    results = json.loads(bare.to_model_explorer())["results"]
    assert {name: result["value"] for name, result in results.items()} == {
        row.node: row.quantizer or "float" for row in quantized.ledger
    }
    assert len({result["bgColor"] for result in results.values()}) == 2
    with pytest.raises(tq.ModelError, match="Nothing in this report has the values 'noise'"):
        bare.to_model_explorer("noise")
    with pytest.raises(tq.ModelError, match="no such values"):
        bare.to_model_explorer("latency")


def test_node_data_has_no_infinite_numbers(quantized: Quantized) -> None:
    """Model Explorer could not read its file."""
    one = {"node": quantized.ledger.quantized[0].node, "isolated": {"sqnr": math.inf}}
    report = tq.report(None, quantized.converted, compare={"operators": [one]})
    (result,) = json.loads(report.to_model_explorer())["results"].values()
    assert math.isfinite(result["value"])


def test_a_page_is_replaced_whole_or_not_at_all(full: tq.Report, tmp_path: Path) -> None:
    """A file of that name is replaced; a folder is refused."""
    path = tmp_path / "report.html"
    path.write_text("before")
    full.save(path)
    assert path.read_text(encoding="utf-8") == full.html
    with pytest.raises(OSError, match="folder"):
        full.save(tmp_path)


def test_a_notebook_shows_the_page_in_a_frame(bare: tq.Report) -> None:
    """Of its own origin, so that no script in it reaches the notebook."""
    ((tag, attributes),) = Page(bare._repr_html_()).tags
    assert (tag, attributes["sandbox"]) == ("iframe", "allow-scripts")
    assert attributes["srcdoc"] == bare.html


def test_names_cannot_break_out_of_the_page() -> None:
    """A module and a title that are scripts add no element, in the template nor in the data."""
    model = Quantized.of(Residual(2, names=HOSTILE))
    plain = Quantized.of(Residual(2))
    report = tq.report(None, model.converted, title=HOSTILE[0])
    expected = tq.report(None, plain.converted)
    assert {f"blocks.{name}" for name in HOSTILE} <= {one.get("module") for one in report.data["operators"]}
    assert HOSTILE[0] not in report.html
    assert HOSTILE[1] not in report.html
    assert [tag for tag, _ in Tags(report.html).tags] == [tag for tag, _ in Tags(expected.html).tags]


def test_capabilities_are_those_of_the_quantizer(bare: tq.Report) -> None:
    """A row of the table for each row of the backend."""
    capabilities = tq.quantizer("xnnpack", "static_int8_per_channel").quantization_capabilities()
    assert len(bare.data["tables"]["capabilities"]["rows"]) == len(capabilities)


def test_an_operator_that_was_rewritten_has_its_ranges(full: tq.Report) -> None:
    """The mean of XNNPACK is written as two operators; it is one node, with the ranges of both ends."""
    (mean,) = [one for one in full.data["operators"] if one["op"] == "aten.mean.dim"]
    assert len(mean["written"]) == 2
    assert all("low" in full.data["groups"][str(group)] for _, _, group in mean["tensors"])


def test_the_float_model_adds_its_sizes(full: tq.Report, bare: tq.Report, quantized: Quantized) -> None:
    """The bytes of its tensors stand beside those of the quantized one."""
    size = sum(tensor.nbytes for tensor in quantized.exported.state_dict.values())
    assert f"{size:,} in float" in full.html
    assert re.search(r"[\d,]+ in float, \d+%", full.html)
    assert not re.search(r"[\d,]+ in float, \d+%", bare.html)
    assert one_call(quantized.converted, "softmax") is not None


def test_a_comparison_is_read_as_compare_writes_it() -> None:
    """Every figure that the page shows is found under the name that it has."""
    errors = ErrorFigures(12.5, 0.5, 0.25, 2.0)
    use = TensorError("output", 11.5, (-1.0, 1.0), 0.1, 0.25, 0.5, 0.125, 3)
    one = ComparedOperator(
        "relu", "aten.relu.default", "", None, "", "", "", errors, errors, (use,), 9.0, "why", ((1.0, 2.0),)
    )
    value = tq.Comparison((one,), (ComparedOutput("output_0", errors),), 4, (Uncompared("exp", "absent"),))
    found = comparison_of(value)
    assert found is not None
    row = found.rows["relu"]
    assert dict(row.isolated) == dict(row.accumulated) == attrs.asdict(errors)
    assert row.tensors == {
        "output": {"sqnr": 11.5, "saturated": 0.25, "unused": 0.5, "to_zero": 0.125, "zeroed_channels": 3}
    }
    assert (row.reason, row.samples) == ("why", ((1.0, 2.0),))
    assert found.outputs == (("output_0", attrs.asdict(errors)),)
    assert (found.batches, found.unmatched) == (4, (("exp", "absent"),))


def test_sensitivities_and_a_search_are_read_as_they_are_written() -> None:
    """Likewise; what was chosen is found in the frontier, or added to it."""
    group = GroupSensitivity("head", ("linear",), ("Q",), 12, 0.001, 0.9, 0.8)
    found = sensitivities_of(tq.Sensitivity((group,), True, 0.95, 0.7))
    assert found is not None
    assert attrs.asdict(found.groups[0]) == attrs.asdict(group)
    assert found.groups[0].sqnr == pytest.approx(30)
    assert (found.float_metric, found.quantized_metric) == (0.95, 0.7)
    first, second = (
        Candidate(0.7, 100, 0),
        Candidate(0.9, 110, 12, (("head", "float"),), ("bias_correction",), 2.5),
    )
    for frontier in ((first, second), (first,)):
        result = tq.SearchResult(second, False, False, frontier, 0.95, 0.7, 12, 5, tq.ComposableQuantizer([]))
        read = search_of(result)
        assert read is not None
        assert (read.chosen, len(read.frontier)) == (1, 2)
        assert read.frontier[1] == Found(0.9, 110, 12, 2.5, (("head", "float"),), ("bias_correction",))
        assert (read.float_metric, read.given_metric, read.evaluations) == (0.95, 0.7, 5)
        assert not read.is_met
        assert not read.is_complete


def test_a_program_adds_where_each_operator_runs(quantized: Quantized) -> None:
    """Each row has its lowering status; the program of another model is refused."""
    statuses = tuple(
        attrs.evolve(row, lowered=LoweringStatus("delegated_as_integers", "xnnpack 0", ""))
        for row in quantized.ledger
    )
    program = tq.LoweredProgram("executorch", (), b"", Ports((), ()), (), (), ledger=tq.Ledger(statuses))
    report = tq.report(None, quantized.converted, program=program)
    found = {tuple(one["lowered"]) for one in report.data["operators"]}
    assert found == {("delegated_as_integers", "xnnpack 0", "")}
    other = attrs.evolve(program, ledger=tq.Ledger((attrs.evolve(statuses[0], node="elsewhere"),)))
    for wrong in (other, attrs.evolve(program, ledger=None), 3.5):
        with pytest.raises(tq.ModelError, match="no program that the model was lowered to"):
            tq.report(None, quantized.converted, program=wrong)
