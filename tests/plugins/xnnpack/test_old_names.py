"""Names that users of PyTorch's own flow type, and tags that their backends read off a converted graph."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import quantize_pt2e as torchao_flow

import torchquilt as tq
from plugins.oracle import OracleQuantizer, oracle_config, our_config
from strategies import export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
X = normal(2, 4)
VERB = re.compile("(de)?quantize(?=_per)|choose_qparams")


def model() -> nn.Module:
    """Two linears with an operator between them that stays in float."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LogSoftmax(-1), nn.Linear(4, 4)).eval()


@pytest.mark.parametrize(
    ("name", "subject"), [("module", nn.Linear), ("operator", torch.ops.aten.linear.default)]
)
def test_rules_have_their_old_names(name: str, subject: Any) -> None:
    """They are rules about a type, with what that refuses."""
    found = getattr(XNNPACKQuantizer(), f"set_{name}_type")(subject, STATIC)
    assert found.intent == XNNPACKQuantizer().set_object_type(subject, STATIC).intent
    with pytest.raises(tq.IntentError, match="no row"):
        getattr(XNNPACKQuantizer(), f"set_{name}_type")(nn.Embedding, STATIC)


def test_convert_takes_its_arguments_in_the_old_order() -> None:
    """By position and by name."""
    theirs, ours = (inspect.signature(flow.convert_pt2e).parameters for flow in (torchao_flow, tq))
    assert [*theirs] == [*ours][: len(theirs)] == ["model", "use_reference_representation", "fold_quantize"]
    assert [one.default for one in theirs.values()][1:] == [one.default for one in ours.values()][
        1 : len(theirs)
    ]
    prepared = tq.prepare_pt2e(export(model(), X), XNNPACKQuantizer().set_global(STATIC))
    prepared(X)
    unfolded = tq.convert_pt2e(prepared, False, False)
    assert unfolded.state_dict().keys() == tq.convert_pt2e(prepared, fold_quantize=False).state_dict().keys()
    assert not any(value.dtype is torch.int8 for value in unfolded.state_dict().values())
    reference = tq.convert_pt2e(prepared, True)
    assert torch.equal(reference(X), tq.convert_pt2e(prepared, use_reference_representation=True)(X))


def tag(graph_module: GraphModule) -> GraphModule:
    """Give each operator its name for a tag."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            node.meta["quantization_tag"] = node.name
    return graph_module


class OurTags(XNNPACKQuantizer):
    """Ours, which tags what it has annotated, as PyTorch's do."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, and tag."""
        return tag(super().annotate(model))


class TheirTags(OracleQuantizer):
    """ExecuTorch's, likewise."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, and tag."""
        return tag(super().annotate(model))


def tags(converted: GraphModule) -> list[tuple[str, Any]]:
    """The tag of each operator that quantizes, dequantizes or finds parameters, of whatever granularity."""
    found = ((VERB.search(str(node.target)), node) for node in converted.graph.nodes)
    return sorted((verb[0], str(node.meta.get("quantization_tag"))) for verb, node in found if verb)


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_tags_are_kept_as_in_the_old_flow(is_dynamic: bool) -> None:
    """On each conversion the tag that PyTorch's own convert gives it."""
    module = model()
    asked = our_config(is_per_channel=True, is_dynamic=is_dynamic)
    ours = tq.prepare_pt2e(export(module, X), OurTags().set_global(asked))
    asked = oracle_config(is_per_channel=True, is_dynamic=is_dynamic)
    theirs = torchao_flow.prepare_pt2e(export(module, X).module(), TheirTags().set_global(asked))
    ours(X), theirs(X)
    assert tags(tq.convert_pt2e(ours)) == tags(torchao_flow.convert_pt2e(theirs))
