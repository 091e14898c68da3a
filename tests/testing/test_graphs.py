"""Graphs of all rows together: how they are drawn and tried, and that the kit finds what they show."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from testing.kit import run_kit
from torchquilt import PatternQuantizer
from torchquilt.testing.drawing import batches, configs_by_name, smallest
from torchquilt.testing.graphs import Graph, Graphs, Plan, Step, patterns_of
from torchquilt.testing.pairs import kinds_of, pairs_of
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject
from torchquilt_xnnpack import XNNPACKQuantizer

TABLE = XNNPACKQuantizer.TABLE
SUBJECT = Subject("xnnpack", XNNPACKQuantizer, TABLE, None)
PATTERNS = patterns_of(TABLE)


DRAWN = [*batches(SUBJECT, [*configs_by_name(SUBJECT)], seed=1, count=40)]


def test_a_seed_draws_the_same_plans() -> None:
    """As many as are asked for, those of a batch with the same first ask."""
    assert [*batches(SUBJECT, [*configs_by_name(SUBJECT)], seed=1, count=40)] == DRAWN
    assert sum(map(len, DRAWN)) == 40
    assert all(len({plan.asks[0] for plan in batch}) == 1 for batch in DRAWN)


def test_a_plan_is_the_same_model_each_time() -> None:
    """A printed plan can be run again: weights, inputs and results are the same bits."""
    for plan in (plan for batch in DRAWN for plan in batch):
        first, second = Graph(plan, PATTERNS), Graph(eval(repr(plan)), PATTERNS)
        assert first.steps == second.steps
        for one, other in zip(first(*first.inputs), second(*second.inputs), strict=True):
            assert torch.equal(one, other)


def test_what_fails_is_made_smaller() -> None:
    """Until no step can be taken away, and nothing of the steps that are left."""
    plan = Plan((4, 8), (Step("tanh"), Step("linear", 2), Step("neg"), Step("add", 1, (0, 3, 2))), ("a", "b"))
    needed = {"linear", "add"}
    found = smallest(plan, lambda other: needed <= {step.name for step in other.steps})
    assert found == Plan((4, 8), (Step("linear"), Step("add")), ("a",))


def test_a_step_that_does_not_fit_is_left_out() -> None:
    """A plan without one of its steps is a plan, so that hypothesis can take steps away."""
    steps = (Step("linear"), Step("conv2d"), Step("relu"))
    assert Graph(Plan((4, 8), steps), PATTERNS).steps == (steps[0], steps[2])


def test_a_layer_can_be_called_again() -> None:
    """The second call has the weights of the first; each call has a rule of its own where it is asked for."""
    graph = Graph(Plan((4, 8), (Step("square_linear", ask=1), Step("again")), ("a", "b")), PATTERNS)
    assert len(graph.layers) == 1
    assert len(graph.steps) == 2
    assert [*graph.asked()] == [("layers.0", "b")]


def test_a_step_reads_earlier_values_or_new_inputs() -> None:
    """An addition takes what has its shape, however far back, and an input where nothing has."""
    skip = Graph(Plan((4, 8), (Step("square_linear"), Step("add", back=(0, 1, 0)))), PATTERNS)
    assert len(skip.inputs) == 1
    wide = Graph(Plan((4, 8), (Step("mean"), Step("linear", back=(-1, 0, 0)), Step("add"))), PATTERNS)
    assert len(wide.inputs) == 2


def test_graphs_run_together_as_they_run_alone() -> None:
    """Each with its own inputs and outputs."""
    graphs = [Graph(Plan((4, 8), (Step("linear"), Step("add")), seed=seed), PATTERNS) for seed in (1, 2)]
    together = Graphs(graphs)(*(one for graph in graphs for one in graph.inputs))
    for graph, outputs in zip(graphs, together, strict=True):
        assert all(map(torch.equal, outputs, graph(*graph.inputs)))


def test_nearly_every_pair_of_rows_has_a_graph() -> None:
    """Of all kinds of rows, each behind each, and each two on one tensor."""
    kinds = kinds_of(TABLE, "static")[::4]
    found = [*pairs_of(TABLE, "static_int8", kinds, kinds)]
    assert len(found) > 0.95 * (len(kinds) ** 2 + len(kinds) * (len(kinds) + 1) / 2)
    assert {name for plan in found for name in (plan.steps[0].name, plan.steps[-1].name)} > {"conv2d"}


def _end() -> None:
    os._exit(1)


def test_a_process_that_ends_is_told_and_started_again() -> None:
    """As is one that does not return."""
    process = Process(seconds=20)
    with pytest.raises(AssertionError, match="the process ended"):
        process.call(_end)
    assert process.call(abs, -1) == 1
    process.seconds = 0.1
    with pytest.raises(AssertionError, match="did not return"):
        process.call(time.sleep, 5)
    process.seconds = 20
    assert process.call(abs, -2) == 2
    process.end()


@pytest.mark.long
@pytest.mark.parametrize("name", ["Honest", "RightAlone"])
def test_what_lies_between_rows_is_caught(tmp_path: Path, name: str) -> None:
    """A backend whose rows are right alone and wrong together fails, with the smallest graph and its seed."""
    run = run_kit(
        tmp_path,
        f"--torchquilt-quantizer=false_tables:{name}",
        "-p",
        "toy_target",
        "-k",
        "graphs",
        "--torchquilt-graphs=10",
        "--torchquilt-seed=3",
    )
    if name == "Honest":
        assert run.code == 0, run.text
        return
    assert run.code == 1, run.text
    assert "seed 3" in run.text
    assert "Plan(" in run.text


def test_the_toy_is_a_pattern_quantizer() -> None:
    """The false table differs from the true one in what it does between two layers alone."""
    from testing.false_tables import Honest, RightAlone

    assert issubclass(RightAlone, PatternQuantizer)
    assert RightAlone.TABLE is Honest.TABLE
