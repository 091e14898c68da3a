"""Control flow: what runs in a subgraph is decided, calibrated and converted like everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.fx import GraphModule
from torch.nn.attention.flex_attention import flex_attention
from torch.utils import _pytree as pytree

import control_flow
import torchquilt as tq
from strategies import Fn, Nothing, calls, export, normal, outputs_of, sqnr, weights_of
from torchquilt.errors import ArtifactError
from torchquilt.graph.subgraphs import nodes_of, regions
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(3, 8)
STATIC = get_symmetric_quantization_config(is_per_channel=True)
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)


# ----------------------------------------------------------------------------------------------------------
# The kinds of control flow: each has linears inside, and some of them outside, too
# ----------------------------------------------------------------------------------------------------------


def _cond(self: Any, x: torch.Tensor) -> Any:
    return torch.cond(
        x.sum() > 0, lambda x: torch.relu(self.first(x)), lambda x: self.second(x) + 1.0, (self.third(x),)
    )


def _scan(self: Any, x: torch.Tensor) -> Any:
    def step(carry: torch.Tensor, row: torch.Tensor) -> Any:
        hidden = torch.tanh(self.first(carry) + row)
        return hidden, self.second(hidden)

    return scan(step, torch.zeros(8), x)


def _while_loop(self: Any, x: torch.Tensor) -> Any:
    return while_loop(
        lambda turn, x: turn < 3, lambda turn, x: (turn + 1, torch.relu(self.first(x))), (torch.tensor(0), x)
    )


def _map(self: Any, x: torch.Tensor) -> Any:
    return self.second(map_rows(lambda row: torch.relu(self.first(row)), x))


def _no_grad(self: Any, x: torch.Tensor) -> Any:
    x = self.first(x)
    with torch.no_grad():
        x = torch.relu(self.second(x))
    return self.third(x)


def _nested(self: Any, x: torch.Tensor) -> Any:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x[0].sum() > 0, lambda x: self.first(x), lambda x: self.second(x), (x,))  # type: ignore[no-any-return]

    return torch.cond(x.sum() > 0, inner, lambda x: self.third(x), (x,))


KINDS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "cond": _cond,
    "scan": _scan,
    "while_loop": _while_loop,
    "map": _map,
    "no_grad": _no_grad,
    "nested cond": _nested,
}
#: Together they take each branch of each of them.
BATCHES = [(normal(3, 8, seed=seed) + shift,) for seed in range(3) for shift in (0.5, -0.5)]
BATCHES += [(-normal(3, 8).abs(),)]


def module(kind: str) -> Fn:
    """A model of a kind with three linears."""
    return Fn(KINDS[kind], first=nn.Linear(8, 8), second=nn.Linear(8, 8), third=nn.Linear(8, 8))


def through_the_flow(
    exported: torch.export.ExportedProgram, config: tq.QuantizationConfig
) -> tuple[GraphModule, GraphModule]:
    """Prepared and converted with XNNPACK's quantizer; all branches are taken in calibration."""
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(config), activation_observer="minmax")
    return prepared, tq.convert_pt2e(tq.calibrate(prepared, BATCHES))


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors of an output."""
    return [leaf.detach() for leaf in pytree.tree_leaves(value)]


def linears_in_float(model: GraphModule) -> list[str]:
    """The linears, anywhere in a converted model, of which an input or the weight is not quantized."""
    found = []
    for node in nodes_of(model):
        if str(node.target) == "aten.linear.default":
            read = [str(source.target) for source in node.args[:2]]  # type: ignore[union-attr]
            found += [node.name] if not all("dequantize" in target for target in read) else []
    return found


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("config", [STATIC, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_in_every_subgraph_is_quantized(
    kind: str, config: tq.QuantizationConfig, strict: bool, tmp_path: Path
) -> None:
    """Subgraphs of any control flow, exported in any way, are quantized, run, saved and loaded."""
    exported = export(module(kind), X, strict=strict)
    _, quantized = through_the_flow(exported, config)
    assert len([node for node in nodes_of(quantized) if "linear" in str(node.target)]) >= 1
    assert linears_in_float(quantized) == []
    for (batch,) in BATCHES:
        for reference, other in zip(leaves(exported.module()(batch)), leaves(quantized(batch)), strict=True):
            assert sqnr(reference.float(), other.float()) > 20
    tq.save(quantized, tmp_path / "model.pt2", (X,))
    loaded = tq.load(tmp_path / "model.pt2").module()
    for (batch,) in BATCHES:
        for before, after in zip(leaves(quantized(batch)), leaves(loaded(batch)), strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_without_annotations_control_flow_is_what_it_was(kind: str) -> None:
    """A quantizer that annotates nothing leaves the outputs equal to the last bit."""
    exported = export(module(kind), X)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, Nothing()))
    for (batch,) in BATCHES:
        with torch.no_grad():  # with gradients torch runs a loop of the float model as other operators
            pairs = zip(leaves(exported.module()(batch)), leaves(quantized(batch)), strict=True)
            assert all(torch.equal(before, after) for before, after in pairs)


def test_autocast_keeps_its_dtype_inside() -> None:
    """Operators in bfloat16 under autocast stay as they are for XNNPACK, and the ledger says why."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.first(x)
        return self.second(x.float())

    exported = export(Fn(function, first=nn.Linear(8, 8), second=nn.Linear(8, 8)), X)
    quantized = through_the_flow(exported, DYNAMIC)[1]
    outside, inside = (row for row in tq.ledger_of(quantized) if row.op == "aten.linear.default")
    assert outside.is_quantized
    assert (inside.node.split(".")[0], inside.code) == ("submod_1", "constraint:dtype")


def test_a_weight_is_quantized_under_autocast() -> None:
    """A quantizer of one's own may quantize there: weights are int8, and the result is still bfloat16."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.first(x)  # type: ignore[no-any-return]

    exported = export(Fn(function, first=nn.Linear(8, 8)), X)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, weights_of("aten.linear.default")))
    assert quantized.state_dict()["first.weight_int8"].dtype is torch.int8
    before, after = exported.module()(X), quantized(X)
    assert after.dtype is torch.bfloat16
    assert sqnr(before.float().detach(), after.float().detach()) > 30


# ----------------------------------------------------------------------------------------------------------
# Calibration
# ----------------------------------------------------------------------------------------------------------


def test_a_loop_is_observed_in_every_turn() -> None:
    """The observer in the subgraph of a loop sees the tensor of each turn."""
    prepared = tq.prepare_pt2e(export(module("map"), X), outputs_of("aten.relu"))
    tq.calibrate(prepared, [(X,)])
    (subgraph,) = (region.module for region in regions(prepared) if region.path)
    (point,) = (child for name, child in subgraph.named_children() if "point" in name)
    assert point.observer.count == X.numel()  # type: ignore[union-attr]


def test_a_branch_that_was_never_taken_is_named() -> None:
    """Converting then is an error with the subgraph, its operator, its tensors, and both ways out."""
    exported = export(module("cond"), X)
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(STATIC))
    tq.calibrate(prepared, [(X.abs(),)])
    with pytest.raises(tq.CalibrationError) as caught:
        tq.convert_pt2e(prepared)
    assert "false_graph_0 of cond was never run" in caught.value.problem
    assert "false_graph_0.linear" in str(caught.value.node)
    assert "unseen='float'" in str(caught.value.remedy)
    tq.calibrate(prepared, [(-X.abs(),)])
    assert linears_in_float(tq.convert_pt2e(prepared)) == []


def test_a_branch_that_was_never_taken_can_be_left_in_float() -> None:
    """With unseen="float" that branch equals the float model's, the other is quantized, and both are told."""
    exported = export(module("cond"), X)
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(STATIC))
    tq.calibrate(prepared, [(X.abs(),)])
    quantized = tq.convert_pt2e(prepared, unseen="float")
    rows = {row.node: row for row in tq.ledger_of(quantized)}
    assert rows["true_graph_0.linear_1"].is_quantized
    assert rows["false_graph_0.linear_1"].code == "never_reached"
    assert not rows["false_graph_0.linear_1"].tensors
    assert linears_in_float(quantized) == ["linear_1"]
    assert "second.weight" in quantized.state_dict()
    assert "second.weight_int8" not in quantized.state_dict()
    # The branch itself is in float: nothing but the linear in front of it makes a difference.
    before = exported.module().false_graph_0
    after = quantized.false_graph_0
    assert [str(node.target) for node in calls(after)] == [str(node.target) for node in calls(before)]
    tq.convert_pt2e(tq.calibrate(prepared, [(-X.abs(),)]))  # the prepared model was not touched


def test_dynamic_and_weight_only_subgraphs_need_no_data() -> None:
    """A branch whose parameters need no data is converted without ever being run."""
    exported = export(module("cond"), X)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(DYNAMIC)))
    assert linears_in_float(quantized) == []


def test_what_to_do_with_the_unseen_is_one_of_two_words() -> None:
    """Another word is an error that says both."""
    prepared = tq.prepare_pt2e(export(module("cond"), X), Nothing())
    with pytest.raises(tq.CalibrationError) as caught:
        tq.convert_pt2e(prepared, unseen="skip")
    assert caught.value.expected == "'error' | 'float'"


def test_a_subgraph_is_observed_with_gradients_switched_on() -> None:
    """Called by hand outside of no_grad, control flow runs its subgraphs instead of tracing them."""
    prepared = tq.prepare_pt2e(export(module("scan"), X), XNNPACKQuantizer().set_global(STATIC))
    assert torch.is_grad_enabled()
    prepared(X)
    assert linears_in_float(tq.convert_pt2e(prepared)) == []


def test_an_input_that_requires_a_gradient_is_refused_in_a_subgraph() -> None:
    """Then torch traces subgraphs, so there is nothing to observe: an error says to call without
    gradients.
    """
    prepared = tq.prepare_pt2e(export(module("scan"), X), XNNPACKQuantizer().set_global(STATIC))
    with pytest.raises(tq.CalibrationError) as caught:
        prepared(X.clone().requires_grad_())
    assert "torch.no_grad()" in str(caught.value.remedy)


# ----------------------------------------------------------------------------------------------------------
# What is decided
# ----------------------------------------------------------------------------------------------------------


def test_explain_has_a_row_for_each_operator_in_a_subgraph() -> None:
    """Rows of subgraphs carry the path of the subgraph, and the shares count what is inside."""
    ledger = tq.explain(export(module("cond"), X), XNNPACKQuantizer().set_global(STATIC))
    taken = {row.node for row in ledger.quantized if row.op == "aten.linear.default"}
    assert taken == {"linear", "true_graph_0.linear_1", "false_graph_0.linear_1"}
    assert ledger["cond"].code == "control_flow"
    assert ledger.share().macs == (3 * 3 * 64, 3 * 3 * 64)


@pytest.mark.filterwarnings("ignore:Something was asked for in this model, and nothing is quantized")
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda quantizer, config: quantizer.set_module_name("second", config),
        lambda quantizer, config: quantizer.set_object_type(nn.Linear, config),
        lambda quantizer, config: quantizer.set_object_type(nn.functional.linear, config),
    ],
    ids=["module name", "module class", "functional"],
)
def test_rules_reach_into_subgraphs(ask: Callable[..., Any], strict: bool) -> None:
    """A module name and a type mean the same inside of a subgraph and outside, in both exports."""
    exported = export(module("cond"), X, strict=strict)
    quantizer = ask(XNNPACKQuantizer().set_global(STATIC), None)
    ledger = tq.explain(exported, quantizer, strict=False)  # without linears nothing is profitable
    assert ledger["false_graph_0.linear_1"].code == "excluded_by_intent"


def test_a_rule_about_nothing_but_a_subgraph_is_met() -> None:
    """A rule for a module that is used in one branch alone is neither an error nor ignored."""
    ledger = tq.explain(export(module("cond"), X), XNNPACKQuantizer().set_module_name("first", STATIC))
    assert [row.node for row in ledger.quantized] == ["true_graph_0.linear_1"]


def test_two_backends_share_a_subgraph() -> None:
    """Quantizers are composed inside of a subgraph as they are outside: the first to claim a node keeps
    it.
    """
    first = XNNPACKQuantizer().set_module_name("first", DYNAMIC)
    composed = tq.ComposableQuantizer([first, XNNPACKQuantizer().set_global(STATIC)])
    ledger = tq.explain(export(module("cond"), X), composed)
    assert ledger["true_graph_0.linear_1"].rule == "module first"
    assert ledger["false_graph_0.linear_1"].rule == "everywhere"


def test_the_subgraph_of_an_unknown_operator_is_left_alone() -> None:
    """An operator that does more with a subgraph than run it (flex_attention) keeps it, with a reason."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).unsqueeze(0).unsqueeze(0)
        return flex_attention(x, x, x, score_mod=lambda score, *_: score * 2.0)  # type: ignore[no-any-return]

    frozen = nn.Linear(8, 8).requires_grad_(False)  # on the CPU flex_attention has no gradient
    exported = export(Fn(function, first=frozen), normal(16, 8))
    quantizer = XNNPACKQuantizer().set_global(STATIC)
    ledger = tq.explain(exported, quantizer)
    assert ledger["flex_attention"].code == "subgraph_not_entered"
    assert not [row for row in ledger if row.node.startswith("sdpa_score0")]
    prepared = tq.prepare_pt2e(exported, quantizer)
    assert prepared.sdpa_score0.code == exported.module().sdpa_score0.code


# ----------------------------------------------------------------------------------------------------------
# Weights and state
# ----------------------------------------------------------------------------------------------------------


def test_a_weight_of_two_branches_and_of_the_model_is_stored_once() -> None:
    """A linear that the model uses outside and in both branches has one set of integers."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        return torch.cond(x.sum() > 0, lambda x: self.fc(x), lambda x: self.fc(x) * 2, (x,))  # type: ignore[no-any-return]

    exported = export(Fn(function, fc=nn.Linear(8, 8)), X)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, weights_of("aten.linear")))
    assert sorted(quantized.state_dict()) == [
        "fc.bias",
        "fc.weight_int8",
        "fc.weight_int8_scale",
        "fc.weight_int8_zero_point",
    ]


def test_what_a_loop_carries_is_no_constant() -> None:
    """A parameter that a loop starts from is not taken for a weight: the turns after change it."""

    def function(self: Any, x: torch.Tensor) -> Any:
        def step(carry: torch.Tensor, row: torch.Tensor) -> Any:
            moved = nn.functional.linear(row, carry)
            return carry * 0.5, moved

        return scan(step, self.start, x)

    exported = export(Fn(function, start=nn.Parameter(normal(8, 8))), X)
    ledger = tq.explain(exported, XNNPACKQuantizer().set_global(STATIC), strict=False)
    (row,) = (row for row in ledger if row.op == "aten.linear.default")
    assert row.code == "constraint:constant_weight"


def test_batch_norm_is_folded_in_a_subgraph() -> None:
    """A BatchNorm behind a convolution in a subgraph is folded there; the model's own weight is as before."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            normed = self.norm(self.conv(x))
        return normed + self.conv(x)  # type: ignore[no-any-return]

    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = normal(4), normal(4, seed=1).abs() + 0.5
    exported = export(Fn(function, conv=nn.Conv2d(3, 4, 3), norm=norm), normal(2, 3, 6, 6))
    prepared = tq.prepare_pt2e(exported, Nothing())
    assert not [node for node in nodes_of(prepared) if "batch_norm" in str(node.target)]
    x = normal(2, 3, 6, 6)
    assert sqnr(exported.module()(x).detach(), prepared(x).detach()) > 80


def test_a_subgraph_whose_results_nobody_reads_is_dropped(tmp_path: Path) -> None:
    """Rotary angles beside ALiBi, say. They would not be in the way, but torch cannot load such a call."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.unused(x).cos().to(torch.float32)
        return self.fc(x)  # type: ignore[no-any-return]

    exported = export(Fn(function, fc=nn.Linear(8, 8), unused=nn.Linear(8, 8)), X)
    assert "wrap_with_set_grad_enabled" in str(exported.graph)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(DYNAMIC)))
    assert {name.split(".")[0] for name in quantized.state_dict()} == {"fc"}
    tq.save(quantized, tmp_path / "model.pt2", (X,))
    assert torch.equal(tq.load(tmp_path / "model.pt2").module()(X), quantized(X))


def test_a_counter_under_no_grad_goes_on_counting(tmp_path: Path) -> None:
    """A buffer that a subgraph writes into is the model's state before and after, and starts afresh."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.seen.add_(1)
        return self.fc(x) * self.seen  # type: ignore[no-any-return]

    exported = export(Fn(function, fc=nn.Linear(8, 8), seen=torch.zeros(())), X)
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(DYNAMIC))
    prepared(X)
    quantized = tq.convert_pt2e(prepared)
    assert exported.state_dict["seen"] == 0
    tq.save(quantized, tmp_path / "model.pt2", (X,))
    for model in (quantized, tq.load(tmp_path / "model.pt2").module()):
        first, second = model(X), model(X)
        assert sqnr(second.detach(), 2 * first.detach()) > 100
        assert model.get_buffer("seen") == 2


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "around a branch"])
def test_a_subgraph_that_only_writes_is_saved_and_loaded(nested: bool, tmp_path: Path) -> None:
    """Torch cannot load what it saves for a call without results, so there is none in a converted model."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            more = torch.cond(x.sum() > 0, lambda x: x.sum(0), lambda x: -x.sum(0), (x,)) if nested else x[0]
            self.seen.add_(more)
        return self.fc(x)  # type: ignore[no-any-return]

    exported = export(Fn(function, fc=nn.Linear(8, 8), seen=torch.zeros(8)), X)
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(DYNAMIC))
    prepared(X)
    quantized = tq.convert_pt2e(prepared)
    tq.save(quantized, tmp_path / "model.pt2", (X,))
    seen = X.sum(0) * X.sum().sign() if nested else X[0]
    for model in (quantized, tq.load(tmp_path / "model.pt2").module()):
        model(X)
        model(X)
        torch.testing.assert_close(model.get_buffer("seen"), 2 * seen)


def test_a_call_without_results_is_not_saved(tmp_path: Path) -> None:
    """Autocast means something to what is inside, so it stays, and is refused instead of lost."""

    def function(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            self.seen.add_((x @ x.T).sum())
        return self.fc(x)  # type: ignore[no-any-return]

    exported = export(Fn(function, fc=nn.Linear(8, 8), seen=torch.zeros(())), X)
    quantized = tq.convert_pt2e(tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(DYNAMIC)))
    path = tmp_path / "model.pt2"
    with pytest.raises(ArtifactError, match="returns nothing") as caught:
        tq.save(quantized, path, (X,))
    assert "strategies.py" in str(caught.value)  # where the forward is that export has seen
    assert not path.exists()


def test_a_dynamic_batch_goes_through_control_flow() -> None:
    """A size that was dynamic stays so inside of subgraphs."""
    exported = export(module("no_grad"), X, dynamic_shapes=(({0: torch.export.Dim("batch")},),))
    quantized = through_the_flow(exported, STATIC)[1]
    assert quantized(normal(5, 8)).shape == (5, 8)


# ----------------------------------------------------------------------------------------------------------
# Integers
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_representation_reaches_into_subgraphs(kind: str, tmp_path: Path) -> None:
    """Linears in subgraphs are computed with integers, near the Q/DQ model, and are saved and loaded."""
    exported = export(module(kind), X)
    prepared, quantized = through_the_flow(exported, STATIC)
    reference = tq.convert_pt2e(prepared, use_reference_representation=True)
    linears = [node for node in nodes_of(reference) if str(node.target) == "aten.linear.default"]
    assert {node.meta["val"].dtype for node in linears} == {torch.int32}
    tq.save(reference, tmp_path / "model.pt2", (X,))
    loaded = tq.load(tmp_path / "model.pt2").module()
    for (batch,) in BATCHES:
        for expected, found, again in zip(
            leaves(quantized(batch)), leaves(reference(batch)), leaves(loaded(batch)), strict=True
        ):
            assert sqnr(expected.float(), found.float()) > 30
            assert torch.equal(found, again)


@pytest.mark.parametrize("name", control_flow.LAYERS)
def test_a_subgraph_reads_weights_of_a_module_whose_name_is_a_number(name: str) -> None:
    """In a Sequential modules are called 0, 1, …, and a subgraph takes their weights as arguments."""
    model = nn.Sequential(control_flow.LAYERS[name](8))
    prepared = tq.prepare_pt2e(export(model, X), XNNPACKQuantizer().set_global(STATIC))
    tq.calibrate(prepared, [(X,), (-X,)])
    assert sqnr(model(X), tq.convert_pt2e(prepared)(X)) > 20
