"""Operators under no_grad or autocast have rows like those beside them, nested and in branches, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.executorch.models import converted, xnnpack
from strategies import Fn, export, normal

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


def layers() -> dict[str, nn.Module]:
    """Three layers."""
    torch.manual_seed(0)
    return {name: nn.Linear(8, 8) for name in "abc"}


def whole(m: Any, x: torch.Tensor) -> torch.Tensor:
    """All of it under no_grad."""
    with torch.no_grad():
        return m.b(m.a(x).relu())


def autocast(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A part where autocast is off."""
    hidden = m.a(x)
    with torch.autocast("cpu", enabled=False):
        hidden = m.b(hidden).relu()
    return m.c(hidden)


def both(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One in the other, with two outputs."""
    with torch.no_grad():
        hidden = m.a(x).relu()
        with torch.autocast("cpu", enabled=False):
            other = m.b(hidden)
        hidden = hidden + other
    return m.c(hidden), hidden


def alternating(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Gradients on within where they are off."""
    with torch.no_grad():
        hidden = m.a(x)
        with torch.enable_grad():
            hidden = m.b(hidden)
        return m.c(hidden) + hidden


@pytest.mark.parametrize("function", [whole, autocast, both, alternating], ids=lambda one: one.__name__)
def test_rows_of_a_region_say_where_they_run(function: Callable[..., Any]) -> None:
    """Whatever is quantized says so as the kernels do, by its own kernel."""
    x = normal(3, 8)
    program = tq.lower(converted(Fn(function, **layers()), xnnpack(), x), (x,), verify=True)
    rows = [row for row in program.ledger if row.is_quantized]
    assert len(rows) >= 3
    assert any("submod" in row.node for row in rows)
    assert {row.lowered.code for row in rows} == {"delegated_as_integers"}
    for row in rows:
        if row.op == "aten.linear.default":
            assert row.lowered.text == "the delegate runs FullyConnected(qint8, qcint8) -> qint8"


def test_what_autocast_computes_in_another_dtype_is_told_of() -> None:
    """Such a region stays one, and its operators are told apart by what they are and by their order."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = m.a(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = m.b(hidden).relu()
        return m.c(hidden.float())

    x = normal(3, 8)
    program = tq.lower(converted(Fn(run, **layers()), xnnpack(), x), (x,), verify=20.0)
    within = {row.op: row.lowered.code for row in program.ledger if row.node.startswith("submod")}
    assert within["aten.linear.default"] != "removed"
    assert within["aten.relu.default"] != "removed"


def quiet(t: torch.Tensor) -> torch.Tensor:
    """A region in a branch."""
    with torch.no_grad():
        return t.abs() + 1


def branch_in_region(m: Any, x: torch.Tensor) -> torch.Tensor:
    """The call of the branches is under no_grad."""
    with torch.no_grad():
        hidden = torch.cond(x.sum() > 0, quiet, lambda t: t * 2, (m.a(x),))
    return m.b(hidden)


def region_in_branch(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A branch has a region."""
    return m.b(torch.cond(x.sum() > 0, quiet, lambda t: t * 2, (m.a(x),)))


@pytest.mark.parametrize(
    ("function", "name"),
    [(branch_in_region, "true_graph_0.abs_1"), (region_in_branch, "true_graph_0.submod_1.abs_1")],
    ids=["branch_in_region", "region_in_branch"],
)
def test_branches_and_regions_in_each_other_are_told_of(function: Callable[..., Any], name: str) -> None:
    """By the names that they have in the ledger."""
    x = normal(3, 8)
    prepared = tq.prepare_pt2e(export(Fn(function, **layers()), x), xnnpack(), strict=False)
    prepared(x)
    program = tq.lower(tq.convert_pt2e(prepared, unseen="float"), (x,), verify=True)
    assert {row.lowered.code for row in program.ledger if row.is_quantized} == {"delegated_as_integers"}
    assert program.ledger[name].lowered.code == "float_kernel"
