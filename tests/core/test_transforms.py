"""Changes that a quantizer may make to the graph that it is given, and what the flow makes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Transformer

import torchquilt as tq
from strategies import Transforming, calls, export, normal
from torchquilt.graph.invariants import check_invariants
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X, Y = normal(3, 6), normal(3, 6)


class Net(nn.Module):
    """A dict goes in by name, a dict comes out, a buffer is written; a branch may be taken."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.branches = branches
        self.fc, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("total", torch.zeros(6))
        self.register_buffer("hidden", torch.ones(6), persistent=False)

    def forward(self, x: torch.Tensor, *, more: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Use all of them."""
        self.total.add_(x.sum(0))
        y = self.fc(x).relu() + 1
        if self.branches:
            y = torch.cond(x.sum() > 0, lambda a: self.fc(a).relu(), lambda a: self.fc(a) + 1, (x,))
        return {"sum": y + more["y"] * self.hidden, "total": self.total * 2}


def rebuilt(model: GraphModule) -> GraphModule:
    """Copied node by node into a graph of its own, called with its inputs one by one."""
    graph = Graph()
    graph.output(graph.graph_copy(model.graph, {}))
    return GraphModule(model, graph)


def without_metadata(model: GraphModule) -> GraphModule:
    """Copied likewise, and all that export wrote of the nodes is lost."""
    made = rebuilt(model)
    for node in made.graph.nodes:
        node.meta.clear()
    return made


def exported_again(model: GraphModule) -> GraphModule:
    """Exported once more from the model as it is given."""
    return _again(model, model)


def exported_in_a_wrapper(model: GraphModule) -> GraphModule:
    """Exported from another module, which calls its inputs otherwise."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    return _again(model, Wrapper())


def _again(model: GraphModule, module: nn.Module) -> GraphModule:
    program = torch.export.export(module, (X,), {"more": {"y": Y}}).run_decompositions({})
    return program.module()


def written_without_metadata(model: GraphModule) -> GraphModule:
    """Nodes that are added as fx does it: with a target and arguments, and no more."""
    for node in calls(model, "add"):
        with model.graph.inserting_after(node):
            model.register_buffer("zero", torch.zeros(1))
            zero = model.graph.get_attr("zero")
        with model.graph.inserting_after(zero):
            more = model.graph.call_function(torch.ops.aten.add.Tensor, (node, zero))
        node.replace_all_uses_with(more, delete_user_cb=lambda user, more=more: user is not more)
    model.recompile()
    return model


def cleaned(model: GraphModule) -> GraphModule:
    """Clean up, as fx means it."""
    model.graph.eliminate_dead_code()
    model.graph.lint()
    model.recompile()
    return model


TRANSFORMS: dict[str, Callable[[GraphModule], GraphModule]] = {
    "rebuilt": rebuilt,
    "without metadata": without_metadata,
    "a transformer of fx": lambda model: Transformer(model).transform(),
    "a graph module of the same graph": lambda model: GraphModule(model, model.graph),
    "copied": copy.deepcopy,
    "exported again": exported_again,
    "exported in a wrapper": exported_in_a_wrapper,
    "written without metadata": written_without_metadata,
    "cleaned": cleaned,
}


WITH_BRANCHES = ("without metadata", "copied", "cleaned")


@pytest.mark.parametrize("how", TRANSFORMS)
def test_a_model_that_was_transformed_is_quantized_and_called_like_the_one_before(how: str) -> None:
    """However a graph was made: its inputs are checked as before, and it goes through the flow."""
    xnnpack = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    program = torch.export.export(Net(how in WITH_BRANCHES).eval(), (X,), {"more": {"y": Y}})
    prepared = tq.prepare_pt2e(program, tq.ComposableQuantizer([Transforming(TRANSFORMS[how]), xnnpack]))
    check_invariants(prepared, after="prepare_pt2e")
    assert tq.ledger_of(prepared).quantized
    expected, found = program.module()(X, more={"y": Y}), prepared(X, more={"y": Y})
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        prepared(X, more={"z": Y})
    tq.calibrate(prepared, [{"x": -X, "more": {"y": Y}}, {"x": X, "more": {"y": Y}}])
    converted = tq.convert_pt2e(prepared, unseen="float")
    torch.testing.assert_close(
        converted(X, more={"y": Y})["sum"], program.module()(X, more={"y": Y})["sum"], atol=0.1, rtol=0.1
    )
    names = {name.rpartition(".")[2] for name in prepared.state_dict()}
    assert "total" in names
    assert "hidden" not in names


def _one_output(model: GraphModule) -> GraphModule:
    output = model.graph.output_node()
    output.args = (output.args[0][:1],)  # type: ignore[index]
    return model


def _other_dtype(model: GraphModule) -> GraphModule:
    (linear,) = calls(model, "linear")
    with model.graph.inserting_after(linear):
        cast = model.graph.call_function(torch.ops.aten.to.dtype, (linear, torch.float16))
    linear.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    return model


def _reads_what_is_not_there(model: GraphModule) -> GraphModule:
    (linear,) = calls(model, "linear")
    with model.graph.inserting_before(linear):
        gone = model.graph.create_node("get_attr", "gone")
        gone.meta["val"] = linear.args[1].meta["val"]  # type: ignore[union-attr]
    linear.args = (linear.args[0], gone)
    return model


def _reads_what_comes_later(model: GraphModule) -> GraphModule:
    (linear,) = calls(model, "linear")
    with model.graph.inserting_before(linear):
        early = model.graph.call_function(torch.ops.aten.neg.default, (linear,))
    early.meta["val"] = linear.meta["val"]
    model.graph.output_node().args = ((early,),)
    return model


@pytest.mark.parametrize(
    ("transform", "about"),
    [
        (_one_output, "other outputs"),
        (_other_dtype, "other outputs"),
        (_reads_what_is_not_there, "gone"),
        (_reads_what_comes_later, "order"),
    ],
)
def test_a_transform_that_made_another_model_is_refused(transform: Any, about: str) -> None:
    """The error says what is not as it was, and who did it."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.fc(x), x) if transform is _one_output else (self.fc(x),)

    with pytest.raises(tq.TorchquiltError, match=about) as caught:
        tq.prepare_pt2e(export(Pair(), X), Transforming(transform))
    assert caught.value.quantizer == "Transforming"


class Annotates(tq.Quantizer):
    """Does something to the graph while it annotates."""

    def __init__(self, deed: Callable[[GraphModule], Any]) -> None:
        self.deed = deed

    def annotate(self, model: GraphModule) -> GraphModule:
        """Do it."""
        self.deed(model)
        return model


def test_who_annotates_may_clean_up() -> None:
    """Nodes without users may be erased, before others annotate and behind them; sizes as well."""

    class Sized(Net):
        def forward(self, x: torch.Tensor, *, more: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            more["y"].new_zeros(2 * x.shape[0] + 1)  # without readers
            return super().forward(x, more=more)

    xnnpack = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}, "more": {"y": {0: torch.export.Dim.DYNAMIC}}}
    program = torch.export.export(Sized().eval(), (X,), {"more": {"y": Y}}, dynamic_shapes=shapes)
    quantizers = [Annotates(cleaned), xnnpack, Annotates(cleaned)]
    prepared = tq.prepare_pt2e(program, tq.ComposableQuantizer(quantizers))
    assert "unused.weight" not in {node.target for node in prepared.graph.find_nodes(op="get_attr")}
    assert tq.ledger_of(prepared).quantized
    torch.testing.assert_close(
        prepared(X, more={"y": Y})["total"], program.module()(X, more={"y": Y})["total"]
    )


def test_who_annotates_may_not_erase_what_has_an_effect() -> None:
    """A write into a buffer has no readers in the graph, and is not dead."""

    def erase_write(model: GraphModule) -> None:
        for node in calls(model, "copy_"):
            model.graph.erase_node(node)

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.copy_(x[0])
            return x + 1

    with pytest.raises(tq.QuantizerError, match="changed the graph") as caught:
        tq.prepare_pt2e(export(Counts(), X), Annotates(erase_write))
    assert caught.value.node == "copy_"


def test_a_last_node_that_is_gone_is_the_first_difference() -> None:
    """No node stands in its place that the error could name."""

    def erase_output(model: GraphModule) -> None:
        model.graph.erase_node(model.graph.output_node())

    with pytest.raises(tq.QuantizerError, match="changed the graph") as caught:
        tq.prepare_pt2e(export(nn.Linear(6, 6), X), Annotates(erase_output))
    assert caught.value.node == "output"
