"""Metadata: what a node says of itself is right after every pass, and the table of rules sees faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

import torchquilt as tq
from strategies import Fn, Nothing, calls, export, normal, one_call, outputs_of, prepare, quantize
from torchquilt.graph.invariants import check_invariants
from torchquilt.graph.passes import Pass, everywhere, run_passes, watching
from torchquilt.graph.subgraphs import nodes_of
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(2, 3, 8, 8)


class Block(nn.Module):
    """A convolution with BatchNorm and an activation that writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block and the way around it, scaled."""
        return self.act(self.norm(self.conv(x))) * 0.5 + x


class Net(nn.Module):
    """Two blocks, one of them under no_grad, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        with torch.no_grad():
            x = self.first(x)
        x = self.second(x)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK's quantizer, asked everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, **asked))


# ----------------------------------------------------------------------------------------------------------
# What is right after every pass. That the table holds is checked in every test of this project.
# ----------------------------------------------------------------------------------------------------------


def test_the_flow_is_a_list_of_named_passes() -> None:
    """A watcher is told each pass by name, in order, with the model after it."""
    seen: list[tuple[str, GraphModule]] = []
    with watching(lambda name, model: seen.append((name, model))):
        converted = quantize(Net(), xnnpack(), X)
    assert [name for name, _ in seen] == [
        "complete_provenance",
        "inline_silent_subgraphs",
        "unify_written_memory",
        "close_subgraphs",
        "drop_dead_nodes",
        "make_functional",
        "simplify_constants",
        "fold_batch_norm",
        "transform_for_annotation",
        "annotate",
        "rewrite_claims",
        "insert_points",
        "leave_or_refuse_unseen",
        "replace_points",
        "open_subgraphs",
        "drop_unused",
    ]
    assert seen[-1][1] is converted


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_quantize_and_dequantize_come_from_whom_they_serve(strict: bool) -> None:
    """Each q/dq has the module, the source line and the origin of the node that it was put in for."""
    converted = quantize_exported(export(Net(), X, strict=strict), xnnpack())
    operators = {node: [*node.meta["nn_module_stack"].values()][-1][0] for node in weighted(converted)}
    assert sorted(operators.values()) == ["first.conv", "head", "second.conv"]
    for node, module in operators.items():
        weight = node.args[1]
        assert isinstance(weight, Node)
        assert str(weight.target) == "quantized_decomposed.dequantize_per_channel.default"
        assert [*weight.meta["nn_module_stack"].values()][-1][0] == module
        assert weight.meta["stack_trace"] == node.meta["stack_trace"]


def weighted(model: GraphModule) -> list[Node]:
    """The convolutions and linears, anywhere in a model."""
    return [node for node in nodes_of(model) if str(node.target).startswith(("aten.conv2d", "aten.linear"))]


def quantize_exported(exported: torch.export.ExportedProgram, quantizer: object) -> GraphModule:
    """Prepared, calibrated and converted."""
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="minmax")
    return tq.convert_pt2e(tq.calibrate(prepared, [(X,)]))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_the_recorded_values_are_those_of_a_run(dynamic: bool) -> None:
    """Shape and dtype that each node has recorded are those that it has when the converted model runs."""
    converted = quantize_exported(export(Net(), X), xnnpack(is_dynamic=dynamic))
    compared = _compare_with_a_run(converted, X)
    assert compared == len([node for node in converted.graph.nodes if "val" in node.meta])


def test_the_recorded_values_of_an_embedding_are_those_of_a_run() -> None:
    """The same for tables with a float zero point, and for indices that were cast."""
    indices = torch.tensor([[0, 3, 2]], dtype=torch.int32)
    converted = quantize(nn.Embedding(5, 4), ExecuTorchEmbeddingQuantizer(), indices)
    assert _compare_with_a_run(converted, indices) >= 6


def _compare_with_a_run(model: GraphModule, *inputs: torch.Tensor) -> int:
    """Compare each recorded value with what really comes out; how many were compared."""
    compared = 0

    class Recording(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            nonlocal compared
            result = super().run_node(n)
            if "val" in n.meta:
                pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(n.meta["val"]), strict=True)
                for found, recorded in pairs:
                    if isinstance(found, torch.Tensor):
                        assert (found.dtype, found.shape) == (recorded.dtype, recorded.shape), n.name
                compared += 1
            return result

    with torch.no_grad():
        Recording(model).run(*inputs)
    return compared


def test_the_model_of_the_user_keeps_its_metadata() -> None:
    """Passes fill metadata in on a copy."""
    exported = export(Net(), X)
    module = exported.module()
    before = {node.name: sorted(node.meta) for node in nodes_of(module)}
    tq.prepare_pt2e(module, xnnpack())
    assert {node.name: sorted(node.meta) for node in nodes_of(module)} == before


def test_metadata_survives_export_save_and_load(tmp_path: Any) -> None:
    """In the loaded program q/dq nodes still say which module they belong to."""
    converted = quantize(Net(), xnnpack(), X)
    tq.save(converted, tmp_path / "model.pt2", (X,))
    graph = tq.load(tmp_path / "model.pt2").program.graph
    linear = next(node for node in graph.nodes if str(node.target) == "aten.linear.default")
    assert "head" in str(linear.args[1].meta["nn_module_stack"])


# ----------------------------------------------------------------------------------------------------------
# The table sees faults
# ----------------------------------------------------------------------------------------------------------


def _without(key: str) -> Callable[[GraphModule], None]:
    def spoil(model: GraphModule) -> None:
        del one_call(model, "aten.linear").meta[key]

    return spoil


def _late(model: GraphModule) -> None:
    linear = one_call(model, "aten.linear")
    linear.prepend(one_call(model, "aten.relu"))


def _missing(model: GraphModule) -> None:
    del model.fc


def _other_shape(model: GraphModule) -> None:
    model.fc.weight = nn.Parameter(torch.zeros(1, 1))


def _other_integers(model: GraphModule) -> None:
    (first, *_) = calls(model, "quantize_per_tensor")
    first.args = (*first.args[:-1], torch.int16)


FAULTS = {
    "val": _without("val"),
    "from_node": _without("from_node"),
    "scope": _without("stack_trace"),
    "order": _late,
    "attribute": _missing,
    "attribute with another shape": _other_shape,
    "integers": _other_integers,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_pass_and_node(fault: str) -> None:
    """A pass that breaks a rule is stopped with the name of the rule, of the pass, and with the node."""
    model = quantize(Fn(lambda self, x: torch.relu(self.fc(x)), fc=nn.Linear(8, 8)), outputs_of("relu"), X)
    check_invariants(model, after="convert")
    FAULTS[fault](model)
    with pytest.raises(tq.ModelError) as caught:
        check_invariants(model, after="spoil")
    assert caught.value.problem == (
        f"The invariant {fault.split()[0]!r} does not hold after the pass 'spoil'."
    )
    assert caught.value.node is not None


def test_a_fault_in_a_subgraph_is_named_with_its_path() -> None:
    """The table is checked inside of control flow, too, and a subgraph has to be handed what it takes."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.fc(x), lambda x: torch.relu(x), (x,))  # type: ignore[no-any-return]

    model = prepare(Fn(function, fc=nn.Linear(8, 8)), Nothing(), X)
    del one_call(model.true_graph_0, "aten.linear").meta["val"]
    with pytest.raises(tq.ModelError, match="'val'") as caught:
        check_invariants(model, after="spoil")
    assert str(caught.value.node).startswith("true_graph_0.linear")
    (call,) = (node for node in model.graph.nodes if str(node.target) == "cond")
    call.args = (*call.args[:3], ())
    with pytest.raises(tq.ModelError, match="'operands'"):
        check_invariants(model, after="spoil")


def test_a_pass_may_return_another_subgraph() -> None:
    """A pass that is run everywhere may make a new module of a subgraph: it replaces the old one."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: torch.tanh(x), lambda x: torch.relu(x), (x,))  # type: ignore[no-any-return]

    def renewed(model: GraphModule) -> GraphModule:
        return model if hasattr(model, "true_graph_0") else GraphModule(model, model.graph)

    model = prepare(Fn(function), Nothing(), X)
    before = model.true_graph_0
    after = run_passes(model, [everywhere("renew", renewed), Pass("nothing", lambda model: model)])
    assert after.true_graph_0 is not before
    assert torch.equal(after(X), model(X))
