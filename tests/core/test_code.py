"""The code of graph modules: generated late, and yet never older than the graph when a model is run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from control_flow import LAYERS
from strategies import Fn, export, normal
from torchquilt.graph.code_generation import copy_without_code, generate_code, outdate

IMAGE = normal(2, 4)


def exported(module: nn.Module) -> GraphModule:
    """The module of an exported model."""
    return export(module, IMAGE).module()


def double(model: GraphModule) -> None:
    """Let a model return twice what it returned."""
    output = model.graph.output_node()
    (result,) = output.all_input_nodes
    with model.graph.inserting_before(output):
        twice = model.graph.call_function(torch.ops.aten.add.Tensor, (result, result))
    twice.meta = dict(result.meta)
    output.replace_input_with(result, twice)


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_without_code_computes_the_same(name: str) -> None:
    """A copy is run like its original, subgraphs of control flow included: to call it generates its code."""
    model = exported(LAYERS[name](4))
    assert torch.equal(copy_without_code(model, {})(IMAGE), model(IMAGE))


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_holds_what_deepcopy_copies(name: str) -> None:
    """Its modules, tensors, hooks and metadata are those of ``copy.deepcopy``."""
    model = exported(LAYERS[name](4))
    model.meta["noted"] = [1]
    ours, theirs = copy_without_code(model, {}), copy.deepcopy(model)
    assert set(vars(ours)) == set(vars(theirs))
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert [*dict(ours.named_modules())] == [*dict(theirs.named_modules())]
    assert ours.code == theirs.code
    assert ours.meta == theirs.meta
    assert ours.meta["noted"] is not model.meta["noted"]


def test_a_copy_leaves_the_code_of_the_original_alone() -> None:
    """The original is not compiled again, and edits of the copy are none of it."""
    model = exported(nn.Linear(4, 4))
    before, code = model(IMAGE), type(model).forward
    copied = copy_without_code(model, {})
    double(copied)
    outdate(copied)
    generate_code(copied)
    assert type(model).forward is code
    assert torch.equal(model(IMAGE), before)
    assert torch.equal(copied(IMAGE), 2 * before)


def test_what_was_edited_is_run_as_it_is_now() -> None:
    """A model whose code is out of date gets new code by being called."""
    model = exported(nn.Linear(4, 4))
    before = model(IMAGE)
    double(model)
    outdate(model)
    assert torch.equal(model(IMAGE), 2 * before)


class Runs(tq.Quantizer):
    """Runs the model wherever it is handed one, and keeps what came out."""

    def __init__(self) -> None:
        self.results: list[torch.Tensor] = []

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Edit the model without generating its code."""
        self.results.append(model(IMAGE))
        double(model)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate nothing."""
        return model

    def prepare_obs_or_fq_callback(self, model: GraphModule, points: dict[Any, Any]) -> None:
        """Run it as it is going to be prepared."""
        outdate(model)
        self.results.append(model(IMAGE))


@pytest.mark.parametrize("function", [lambda m, x: m.norm(m.fc(x)), lambda m, x: m.fc(x).relu_()])
def test_a_quantizer_can_run_the_model(function: Callable[..., torch.Tensor]) -> None:
    """Folding and rewriting have been done in what a quantizer is given, and it can be run."""
    model = Fn(function, fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4)).eval()
    quantizer = Runs()
    prepared = tq.prepare_pt2e(export(model, IMAGE), quantizer, strict=False)
    first, second = quantizer.results
    torch.testing.assert_close(first, model(IMAGE))
    assert torch.equal(second, 2 * first)
    assert torch.equal(prepared(IMAGE), second)


class Recompiles(tq.Quantizer):
    """Recompiles the model while it annotates, as quantizers do for each of their patterns, and runs it."""

    def __init__(self) -> None:
        self.compiled: list[GraphModule] = []
        self.answers: list[Any] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        """Recompile, and run the model last."""
        self.compiled.clear()
        for _ in range(5):
            model.recompile()
        assert self.compiled == []
        for _ in range(2):
            self.answers.append(model(IMAGE))
        assert self.compiled == [model]
        return model


def test_a_quantizer_that_recompiles_has_code_generated_only_if_it_runs_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, and what runs is the model."""
    model, quantizer, recompile = exported(nn.Linear(4, 4)), Recompiles(), GraphModule.recompile

    def counted(module: GraphModule) -> Any:
        quantizer.compiled.append(module)
        return recompile(module)

    expected = model(IMAGE)
    monkeypatch.setattr(GraphModule, "recompile", counted)
    tq.explain(model, tq.ComposableQuantizer([quantizer]))
    assert all(torch.equal(answer, expected) for answer in quantizer.answers)
    assert len(quantizer.answers) == 2
