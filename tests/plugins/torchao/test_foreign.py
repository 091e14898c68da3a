"""Quantizers of torchao and ExecuTorch in our flow, beside torchao's own flow with the same quantizer."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import torchquilt as tq
from plugins.oracle import describe, outputs_of
from plugins.torchao.differences import ANNOTATES_NUMBER, DIFFERENCES, OBSERVES_NO_VECTOR, ROUNDS_FLOAT_ZERO
from plugins.torchao.flows import MinMax, by_torchao, by_torchquilt
from plugins.torchao.models import MODELS, model_of
from plugins.torchao.vendors import OF_ARM, SLOW, VENDORS
from strategies import sqnr
from torchquilt.backend import constant_value
from torchquilt_torchao import ForeignQuantizer, foreign

pytestmark = pytest.mark.filterwarnings("ignore")  # of the vendors' own

#: Vendors whose patterns are found by the modules that only a strict export records.
STRICT = {"cadence", "cadence fused", "example"}


@pytest.fixture(autouse=True)
def _nothing_downloaded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Qualcomm's package from looking for its SDK in the home folder, and vendors from logging."""
    monkeypatch.setenv("QNN_STAGING_DIR", str(tmp_path))
    monkeypatch.setattr(logging.root, "disabled", True)


def both(vendor: str, name: str) -> tuple[GraphModule, GraphModule]:
    """A model as torchao's flow quantizes it, and as ours does, with one vendor's quantizer."""
    strict, make = vendor in STRICT, {**VENDORS, **SLOW}[vendor]
    ours = by_torchquilt(model_of(name), make(), strict=strict)
    theirs = by_torchao(model_of(name), MinMax(make()), strict=strict)
    return theirs, ours


def agreement(name: str, theirs: GraphModule, ours: GraphModule) -> float:
    """Decibels of the outputs of ours beside theirs, the worst of them."""
    inputs = model_of(name).inputs
    pairs = zip(outputs_of(theirs, inputs), outputs_of(ours, inputs), strict=True)
    return min(sqnr(expected, found) for expected, found in pairs)


def stored_table(model: GraphModule) -> torch.Tensor:
    """The weight of the only embedding of a converted model, dequantized."""
    (node,) = (node for node in model.graph.nodes if node.target is torch.ops.aten.embedding.default)
    value: torch.Tensor = constant_value(model, node.args[0])
    return value


def check(vendor: str, name: str) -> None:
    """One vendor and one model: the same program, or the difference that is named for it."""
    reason = DIFFERENCES.get((vendor, name))
    if reason is None:
        theirs, ours = both(vendor, name)
        assert describe(ours) == describe(theirs)
        assert agreement(name, theirs, ours) >= 100
    elif reason == ROUNDS_FLOAT_ZERO:
        theirs, ours = both(vendor, name)
        table: Any = model_of(name).module.table
        found = [sqnr(table.weight, stored_table(each)) for each in (theirs, ours)]
        assert found[1] > found[0] + 3, "ours is nearer to the float table"
    elif reason == ANNOTATES_NUMBER:
        with pytest.raises(Exception, match="Expected input_edge"):
            by_torchao(model_of(name), MinMax(VENDORS[vendor]()), strict=vendor in STRICT)
        assert by_torchquilt(model_of(name), VENDORS[vendor](), strict=vendor in STRICT) is not None
    elif reason == OBSERVES_NO_VECTOR:
        with pytest.raises(IndexError):
            by_torchao(model_of(name), MinMax(VENDORS[vendor]()))
        inputs = model_of(name).inputs
        expected = outputs_of(model_of(name).module.eval(), inputs)[0]
        assert sqnr(expected, outputs_of(by_torchquilt(model_of(name), VENDORS[vendor]()), inputs)[0]) > 20
    else:
        with pytest.raises(tq.SharingError, match="dynamic"):
            both(vendor, name)


PAIRS = [(vendor, name) for vendor in VENDORS for name in MODELS]
DRAWN = {*random.Random(0).sample(PAIRS, 90), *(pair for pair in DIFFERENCES if pair[0] in VENDORS)}


@pytest.mark.long
@pytest.mark.parametrize("vendor", VENDORS)
def test_each_foreign_quantizer_quantizes_something(vendor: str) -> None:
    """Programs that agree because nothing is quantized in either would say nothing."""
    name = "text" if vendor == "embedding" else "perceptron"
    found = by_torchquilt(model_of(name), VENDORS[vendor](), strict=vendor in STRICT)
    assert any("dequantize" in str(node.target) for node in found.graph.nodes)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("vendor", "name"), PAIRS)
def test_a_foreign_quantizer_does_what_it_does_in_torchaos_flow(vendor: str, name: str) -> None:
    """Q/DQ nodes, dtypes, ranges, sharing and outputs are the same, or the difference is named."""
    check(vendor, name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("vendor", SLOW)
def test_a_foreign_quantizer_that_is_slow(vendor: str, name: str) -> None:
    """The same for those that need minutes before they annotate anything."""
    check(vendor, name)


@pytest.mark.long
@pytest.mark.parametrize(("vendor", "name"), sorted(DRAWN))
def test_foreign_quantizers_that_were_drawn(vendor: str, name: str) -> None:
    """The same for a seeded sample, and for each difference that is named."""
    check(vendor, name)


@pytest.mark.parametrize(
    ("vendor", "name"),
    [
        ("xnnpack per channel", "residual"),
        ("x86_inductor", "branches"),
        ("vulkan", "attention"),
        ("cadence", "conv1d"),
    ],
)
def test_a_sample_of_foreign_quantizers(vendor: str, name: str) -> None:
    """The same for a few that take no time."""
    check(vendor, name)


def test_the_ledger_says_who_took_each_operator() -> None:
    """A foreign quantizer is named for what it takes, and for what it leaves."""
    from plugins.torchao.flows import exported

    ledger = tq.explain(exported(model_of("attention")), VENDORS["xnnpack per channel"]())
    takers = {row.op: row.quantizer for row in ledger.rows}
    assert takers["aten.linear.default"] == "XNNPACKQuantizer"
    assert takers["aten.softmax.int"] is None
    (reason,) = next(row for row in ledger.rows if row.op == "aten.softmax.int").reasons
    assert "not annotated by XNNPACKQuantizer" in reason.text


def test_foreign_wraps_and_unwraps() -> None:
    """A composition wraps by itself; an object that is no quantizer of torchao is refused."""
    subject = VENDORS["xnnpack per channel"]()
    (made,) = tq.ComposableQuantizer([subject]).quantizers
    assert isinstance(made, ForeignQuantizer)
    assert made.subject is subject
    assert made.name == "XNNPACKQuantizer"
    with pytest.raises(tq.IntentError, match="not a quantizer of torchao"):
        foreign(object())


def test_who_finds_ranges_is_a_part_of_the_value() -> None:
    """It decides numbers, so quantizers that differ in it are not equal, and the record tells them apart."""
    subject = VENDORS["xnnpack per channel"]()
    ours, theirs = foreign(subject), foreign(subject, observers="theirs")
    assert ours == foreign(subject)
    assert ours != theirs
    assert repr(ours) == "foreign(XNNPACKQuantizer)"
    assert repr(theirs) == "foreign(XNNPACKQuantizer, observers='theirs')"


def test_agreement_is_measured() -> None:
    """Two programs of different quantizers are told apart."""
    first = by_torchquilt(model_of("conv"), VENDORS["xnnpack per channel"]())
    second = by_torchquilt(model_of("conv"), VENDORS["xnnpack per tensor"]())
    assert describe(first) != describe(second)
    assert 20 < agreement("conv", first, second) < math.inf


def test_the_table_of_the_page_has_each_quantizer() -> None:
    """The page about migrating has a row for each quantizer, with the differences that are named."""
    page = (Path(__file__).parents[3] / "docs/migrating.md").read_text(encoding="utf-8")
    for vendor in (*VENDORS, *SLOW, *OF_ARM):
        named = {name: reason for (whose, name), reason in DIFFERENCES.items() if whose == vendor}
        otherwise = "; ".join(f"{name}: {reason}" for name, reason in named.items())
        assert f"| {vendor} | {len(MODELS) - len(named)} | {otherwise} |\n" in page
