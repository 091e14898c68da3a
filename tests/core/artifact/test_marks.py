"""Marks of vendors on nodes: they go through the flow and into a file, or the loss is named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export

X = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)


class Info(dict[str, Any]):
    """A mark of a class of its vendor's, as Arm's: it is a dict."""


class Marking(tq.Quantizer):
    """Quantizes linears and leaves a mark on each operator.

    Args:
        mark: the mark.
        key: the key in ``node.meta``.
    """

    def __init__(self, mark: Any, key: str = "custom") -> None:
        self.mark, self.key = mark, key

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate and mark."""
        spec = tq.QuantizationSpec(torch.int8)
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            named = {"vendor": self.mark} if self.key == "custom" else self.mark
            node.meta[self.key] = named
            if node.target is torch.ops.aten.linear.default:
                annotation = tq.QuantizationAnnotation(dict.fromkeys(node.args[:2], spec), spec)
                node.meta["quantization_annotation"] = annotation
        return model


def quantized(quantizer: tq.Quantizer) -> GraphModule:
    """Two linears and a relu, quantized."""
    torch.manual_seed(0)
    program = export(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), X)
    return tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(program, quantizer), [(X,)]))


def marks_of(graph: torch.fx.Graph) -> list[Any]:
    """The marks of linears and relus, in order."""
    targets = (torch.ops.aten.linear.default, torch.ops.aten.relu.default)
    return [node.meta.get("custom", {}).get("vendor") for node in graph.nodes if node.target in targets]


@pytest.mark.parametrize("mark", [Info(quantized=True), "text", 3, [1, [2.5, None]], {"a": {"b": [True]}}])
def test_a_mark_goes_through_convert_and_export_into_a_file(mark: Any, tmp_path: Path) -> None:
    """Prepare, convert, another export, save and load: it is what it was."""
    model = quantized(Marking(mark))
    assert marks_of(model.graph) == [mark] * 3
    assert marks_of(export(model, X).graph) == [mark] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tq.save(model, tmp_path / "model.pt2", (X,))
    assert marks_of(tq.load(tmp_path / "model.pt2").program.graph) == [mark] * 3


@pytest.mark.parametrize("mark", [object(), {1, 2}, torch.float32, {"a": torch.ones(1)}])
def test_a_mark_that_is_no_json_is_refused(mark: Any, tmp_path: Path) -> None:
    """Before anything is written; the error names the node and the mark."""
    model = quantized(Marking(mark))
    with pytest.raises(tq.ArtifactError, match="mark in the metadata") as caught:
        tq.save(model, tmp_path / "model.pt2", (X,))
    assert "'vendor'" in str(caught.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("mark", "key", "named"),
    [
        (("a", "b"), "custom", "custom['vendor']"),
        ({1: "a"}, "custom", "custom['vendor']"),
        ("a", "npu_region", "npu_region"),
    ],
)
def test_a_mark_that_is_lost_or_changed_is_named(mark: Any, key: str, named: str, tmp_path: Path) -> None:
    """Tuples, keys that are no texts, and keys beside ``custom``; of a module and of a program."""
    model = quantized(Marking(mark, key))
    program = export(model, X)
    program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)[0].meta[key] = (
        {"vendor": mark} if key == "custom" else mark
    )
    for arguments in ((model, tmp_path / "model.pt2", (X,)), (program, tmp_path / "program.pt2")):
        with pytest.warns(UserWarning, match="Marks in the metadata") as caught:
            tq.save(*arguments)
        (warning,) = caught
        assert named in str(warning.message)
        assert warning.filename == __file__
