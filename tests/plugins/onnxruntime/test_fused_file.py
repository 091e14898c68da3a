"""Files with ONNX Runtime's own kernels in them: the same program, made once and not at each loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import torchquilt as tq
from plugins.graphs import STATIC, subject
from plugins.onnxruntime.programs import Block, Network, converted, model_of, normal, statuses
from torchquilt import lowering
from torchquilt.backend import Contribution
from torchquilt.testing.drawing import batches
from torchquilt.testing.graphs import Graph, Graphs, patterns_of
from torchquilt_onnxruntime import com_microsoft, weights_file
from torchquilt_xnnpack import XNNPACKQuantizer

#: Writing a model as ONNX takes a second, most of it torch's.
pytestmark = pytest.mark.long
IMAGE = (normal(2, 3, 8, 8),)
TOKENS = (normal(2, 6, 32),)
KERNELS = {"onnxruntime": com_microsoft()}


class Unsqueezed(nn.Module):
    """An operator that moves integers of a convolution that the runtime lays out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.first(x).unsqueeze(1).expand(-1, 2, -1, -1, -1)


class Forked(nn.Module):
    """A convolution that the runtime lays out anew, read by one of integers and by one of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.table = nn.Embedding(9, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        y = nn.functional.max_pool2d(self.first(x), 2)
        rows = self.table(torch.arange(4)).mean(0)
        return (y + self.second(y)).cumsum(-1).permute(0, 2, 3, 1) + rows


Made = tuple[tq.LoweredProgram, tq.LoweredProgram, tuple[Any, ...]]
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], Any]] = {
    "network": (Network, IMAGE, "static_int8_per_channel"),
    "unsqueezed": (Unsqueezed, IMAGE, "static_int8"),
    "forked": (Forked, IMAGE, "static_int8_per_channel"),
    "of another backend": (Network, IMAGE, XNNPACKQuantizer.from_preset("static_int8_per_channel")),
    **{f"block, {preset}": (Block, TOKENS, preset) for preset in (
        "static_int8_per_channel", "dynamic_int8_per_channel", "weight_only_int8", "weight_only_int4"
    )},
}  # fmt: skip


@pytest.fixture(scope="module", params=list(CASES))
def both(request: pytest.FixtureRequest) -> Made:
    """A program of standard operators, one of kernels, and inputs."""
    make, inputs, quantizer = CASES[request.param]
    torch.manual_seed(0)
    model = converted(make(), inputs, quantizer)
    standard = tq.lower(model, inputs, target="onnxruntime", backends=[])
    return standard, tq.lower(model, inputs, target="onnxruntime", backends=KERNELS, verify=True), inputs


def test_the_kernels_are_in_the_file(both: Made) -> None:
    """Those that the runtime makes of the standard file, with no other versions of operators beside them."""
    standard, program, _ = both
    nodes = model_of(program).graph.node
    assert len(nodes) < len(model_of(standard).graph.node)
    assert {node.domain for node in nodes} <= {"", "com.microsoft"}
    assert program.operators == standard.operators
    # To lay images out for this processor is left to the loading.
    of_runtime = {name.rpartition("::")[2].removeprefix("Nhwc") for name in program.operators}
    assert {node.op_type for node in nodes} <= of_runtime
    assert {one.domain for one in model_of(program).opset_import} == {"", *(node.domain for node in nodes)}


def test_it_computes_the_same_bits(both: Made) -> None:
    """On the inputs of export and on others."""
    standard, program, inputs = both
    for given in (inputs, tuple(-2 * one for one in inputs)):
        assert torch.equal(standard.run(*given), program.run(*given))


def test_it_tells_the_same_of_each_operator(both: Made) -> None:
    """The ledger, what was left to convert, and the time of the kernels."""
    standard, program, inputs = both
    assert statuses(program) == statuses(standard)
    assert [row.lowered for row in program.ledger or ()] == [row.lowered for row in standard.ledger or ()]
    assert program.leftovers == standard.leftovers
    profile = program.profile(inputs, runs=2)
    assert profile.attributed > 0.9
    assert profile.by_node().keys() == standard.profile(inputs, runs=2).by_node().keys()


def test_it_tells_the_same_values(both: Made) -> None:
    """Integers are floats by the parameters that the standard file has for them."""
    standard, program, inputs = both
    expected, found = (one.intermediate_values(inputs) for one in (standard, program))
    assert expected
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("seed", [0, 28])
def test_drawn_graphs_are_the_same_programs(seed: int) -> None:
    """Bits and ledger, of graphs of all rows."""
    of = subject("onnxruntime")
    patterns = patterns_of(of.table)
    compared = 0
    for plans in batches(of, STATIC, seed, count=10):
        graphs = [Graph(plan, patterns) for plan in plans]
        inputs = tuple(value for graph in graphs for value in graph.inputs)
        model = converted(Graphs(graphs), inputs, of.cls.from_preset(plans[0].asks[0]))
        standard = tq.lower(model, inputs, target="onnxruntime", backends=[])
        program = tq.lower(model, inputs, target="onnxruntime", backends=KERNELS)
        assert statuses(program) == statuses(standard)
        compared += len(statuses(program))
        found, expected = (pytree.tree_leaves(one.run(*inputs)) for one in (program, standard))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert compared > 20


def test_a_stored_one_is_opened_and_takes_other_sizes(tmp_path: Path) -> None:
    """It says who made it, as any file does."""
    batch = torch.export.Dim("batch")
    model = converted(Network(), IMAGE, dynamic_shapes=({0: batch},))
    program = tq.lower(model, IMAGE, target="onnxruntime", backends=KERNELS)
    program.save(tmp_path / "model.onnx")
    opened = lowering.load(tmp_path / "model.onnx")
    larger = normal(5, 3, 8, 8, seed=1)
    assert torch.equal(opened.run(larger), program.run(larger))
    keys = {one.key for one in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert {"torchquilt", "torchquilt.version", "torchquilt.backends"} <= keys


def test_weights_may_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file whose name has the digest of its content."""
    monkeypatch.setattr(weights_file, "LARGEST", 8192)
    torch.manual_seed(0)
    inputs = (normal(3, 64),)
    model = converted(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)), inputs)
    standard = tq.lower(model, inputs, target="onnxruntime")
    program = tq.lower(model, inputs, target="onnxruntime", backends=KERNELS)
    (name,) = program.files
    assert name.startswith("weights-")
    program.save(tmp_path / "model.onnx")
    assert torch.equal(lowering.load(tmp_path / "model.onnx").run(*inputs), standard.run(*inputs))


def test_an_option_that_there_is_not_is_refused() -> None:
    """It is not passed over in silence."""
    model = converted(nn.Linear(8, 4), (normal(2, 8),))
    with pytest.raises(tq.LoweringError, match="'comm_microsoft'") as caught:
        tq.lower(
            model,
            (normal(2, 8),),
            target="onnxruntime",
            backends={"onnxruntime": Contribution(options={"comm_microsoft": True})},
        )
    assert "'com_microsoft'" in str(caught.value)
