"""Files that torchquilt 0.1.0 wrote are read, under the names of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import torchquilt as tq
from torchquilt.ledger.lowering_status import LoweringStatus
from torchquilt.ledger.rows import Caution, Reason, Row, Tensor
from torchquilt.lowering.program_facts import LoweredOperation, Ports
from torchquilt.lowering.report import ProgramReport
from torchquilt_xnnpack import SUPPORT

#: Reason code of 0.1.0 → of today.
CODES = {"not_worth_it": "not_profitable", "body_not_entered": "subgraph_not_entered"}


def row(code: str) -> Row:
    """A row of a ledger with one reason."""
    return Row("add", "aten.add.Tensor", "", None, "", "", (), (Reason("q", code, "a text"),), 0, ())


@pytest.mark.parametrize(("old", "new"), CODES.items())
def test_a_ledger_with_an_old_code_has_the_new_one(old: str, new: str) -> None:
    """A code that was renamed reads as what it is called now; the text is as it was."""
    text = tq.Ledger((row(old),)).to_json()
    assert f'"{old}"' in text
    assert tq.Ledger.from_json(text) == tq.Ledger((row(new),))


STATUS = LoweringStatus("delegated_as_integers", "XnnpackBackend 0", "a text")
LEDGER = tq.Ledger(
    (Row("fc", "aten.linear.default", "", "q", "p", "r", (Tensor("output", "int8", 0),), (), 0, (), STATUS),),
    warnings=(Caution("weight → fc", "cut_off", "a text"),),
)


def _with_places(data: dict[str, Any]) -> dict[str, Any]:
    """A ledger under the names of 0.1.0."""
    (row,), (warning,) = data["rows"], data["warnings"]
    for value, name in (
        (row["tensors"][0], "edge"),
        (row["lowered"], "delegate"),
        (warning, "edges"),
    ):
        value["place"] = value.pop(name)
    return data


def test_a_ledger_with_old_fields_has_the_new_ones() -> None:
    """Fields that were renamed are read, in tensors, warnings and lowering statuses."""
    assert tq.Ledger.from_plain(_with_places(LEDGER.to_plain())) == LEDGER


def test_a_report_with_old_fields_has_the_new_ones() -> None:
    """The report of a program names delegates, as operations and the ledger in it had another name for."""
    operation = LoweredOperation("aten.linear.default", "fc", "", "XnnpackBackend 0", "integer")
    report = ProgramReport(
        "0" * 64, 1, "t", (), Ports((), ()), (), (), (operation,), (), (), (), None, LEDGER
    )
    data = report.to_plain()
    (old,) = data["operations"]
    old["place"] = old.pop("delegate")
    data["ledger"] = _with_places(data["ledger"])
    read = ProgramReport.from_json(json.dumps(data))
    assert read.operations == (operation,)
    assert read.ledger == LEDGER


def _as_0_1(value: Any) -> Any:
    """Capabilities under the names of 0.1.0."""
    if isinstance(value, list):
        return [_as_0_1(item) for item in value]
    if not isinstance(value, dict):
        return "passed_on" if value == "follows_input" else value
    old = {"anchor_index": "lead", "excluded_ranges": "other_ranges"}
    return {old.get(name, name): _as_0_1(item) for name, item in value.items()}


def test_capabilities_of_0_1_equal_those_of_today() -> None:
    """Renamed fields and values of rows are read; nothing of them differs."""
    today = SUPPORT.capabilities()
    text = json.dumps(_as_0_1(json.loads(today.to_json())))
    assert '"lead"' in text
    assert '"other_ranges"' in text
    assert '"passed_on"' in text
    assert tq.Capabilities.from_json(text) == today


DATA = Path(__file__).parents[1] / "data"


def test_an_artifact_of_0_1_is_loaded_with_its_ledger() -> None:
    """A model that was saved before codes were renamed runs, and its ledger has the codes of today."""
    loaded = tq.load(DATA / "saved_by_0_1_0.pt2")
    assert loaded.lock.ledger is not None
    codes = {row.node: row.code for row in loaded.lock.ledger}
    assert codes["add"] == "not_profitable"
    assert codes["linear"] == ""
    x = torch.arange(8.0).reshape(2, 4) / 8
    first, second = loaded.module()(x)
    assert first.shape == (2, 2)
    assert torch.allclose(second, torch.tanh(torch.tanh(x) + torch.sin(x)))


def test_a_recipe_of_0_1_is_read() -> None:
    """It makes the quantizers that it was written from, and is written as it was."""
    path = DATA / "saved_by_0_1_0.toml"
    recipe = tq.Recipe.load(path)
    (quantizer,) = recipe.quantizer().quantizers
    assert type(quantizer).__name__ == "XNNPACKQuantizer"
