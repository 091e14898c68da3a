"""Times and values that ExecuTorch's runtime tells, joined with the operators of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchquilt as tq
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


class Broken(torch.nn.Module):
    """Two parts for the delegate, with a kernel of the runtime between and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sums between two layers, and at the end."""
        hidden = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(hidden.cumsum(-1)).cumsum(-1)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """One input."""
    return torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(image: torch.Tensor) -> torch.export.ExportedProgram:
    """The float model."""
    torch.manual_seed(1)
    return torch.export.export(Broken().eval(), (image,))


@pytest.fixture(scope="module")
def quantized(exported: torch.export.ExportedProgram, image: torch.Tensor) -> torch.fx.GraphModule:
    """The quantized model."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    return tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, quantizer), [(image,)]))


@pytest.fixture(scope="module")
def program(quantized: torch.fx.GraphModule, image: torch.Tensor) -> tq.LoweredProgram:
    """The program."""
    return tq.lower(quantized, (image,))


def test_each_operator_has_the_step_that_runs_it(program: tq.LoweredProgram) -> None:
    """Those of a delegate have one; a kernel of the runtime has its own."""
    steps = {one.node: (one.step, one.delegate) for one in program.operations}
    assert steps["conv2d"] == steps["mean"] == ("0.0", "XnnpackBackend 0")
    assert [steps[name][0] for name in ("cumsum", "linear", "cumsum_1")] == ["0.1", "0.2", "0.3"]


def test_the_values_between_steps_are_those_of_the_quantized_model(
    program: tq.LoweredProgram, quantized: torch.fx.GraphModule, image: torch.Tensor
) -> None:
    """Outputs of a delegate, rounded as they are, and of each kernel."""
    expected = values_of_nodes(quantized, (image,))
    found = program.intermediate_values((image,))
    assert set(found) == {"mean", "cumsum", "linear", "cumsum_1"}
    for name in ("cumsum", "cumsum_1"):
        assert torch.allclose(found[name], expected[name], atol=1e-5)
    dequantized = next(iter(next(iter(quantized_node(quantized, "linear").users)).users))
    assert torch.allclose(found["linear"], expected[dequantized.name], atol=1e-5)
    assert torch.equal(found["cumsum_1"], program.run(image))


def values_of_nodes(model: torch.fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Run a model, and keep what each node returns."""
    found = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            found[n.name] = value = super().run_node(n)
            return value

    Keeping(model).run(*inputs)
    return found


def quantized_node(model: torch.fx.GraphModule, name: str) -> torch.fx.Node:
    """A node by its name."""
    return next(node for node in model.graph.nodes if node.name == name)


def test_all_the_time_of_kernels_is_that_of_an_operator(
    program: tq.LoweredProgram, image: torch.Tensor
) -> None:
    """Also that of calling a delegate; nothing is counted twice."""
    found = program.profile((image,), runs=3)
    assert found.runs == 3
    assert found.attributed == pytest.approx(1.0)
    assert sum(one.share for one in found.kernels) == pytest.approx(1.0)
    kernels = {one.kernel: one for one in found.kernels}
    assert kernels["cumsum.out"].arithmetic == "float"
    convolution = next(one for name, one in kernels.items() if name.startswith("Convolution"))
    assert "conv2d" in convolution.nodes
    assert convolution.delegate == "XnnpackBackend 0"
    assert sum(found.by_node().values()) == pytest.approx(sum(one.seconds for one in found.kernels))


def test_a_program_that_was_saved_tells_the_same(
    program: tq.LoweredProgram, image: torch.Tensor, tmp_path: Path
) -> None:
    """Its report has the steps."""
    from torchquilt.lowering import load

    path = tmp_path / "model.pte"
    program.save(path)
    values, again = program.intermediate_values((image,)), load(path).intermediate_values((image,))
    assert values.keys() == again.keys()
    assert all(torch.equal(values[name], again[name]) for name in values)


def test_values_of_a_program_are_compared_with_the_float_model(
    program: tq.LoweredProgram, exported: torch.export.ExportedProgram, image: torch.Tensor
) -> None:
    """With the value that a folded BatchNorm has, and the worst first."""
    found = tq.compare(exported, program, [(image,), (image * 0.9,)])
    assert {row.node for row in found.values} == {"mean", "cumsum", "linear", "cumsum_1"}
    assert min(row.error.sqnr for row in found.values) > 15
    assert [row.error.sqnr for row in found.values] == sorted(row.error.sqnr for row in found.values)
    assert tq.Comparison.from_json(found.to_json()) == found
    assert "XnnpackBackend 1" in str(found)


def test_a_wrong_value_is_told_where_it_begins(
    program: tq.LoweredProgram, exported: torch.export.ExportedProgram, image: torch.Tensor
) -> None:
    """A float model with another head agrees up to there, and not behind it."""
    torch.manual_seed(1)
    other = Broken().eval()
    torch.nn.init.normal_(other.head.weight)
    found = tq.compare(torch.export.export(other, (image,)), program, [(image,)])
    errors = {row.node: row.error.sqnr for row in found.values}
    assert min(errors["mean"], errors["cumsum"]) > 15 > 5 > max(errors["linear"], errors["cumsum_1"])


def test_control_flow_has_no_steps_and_says_nothing_wrong(image: torch.Tensor) -> None:
    """A program that jumps runs, is timed, and joins nothing that it does not know."""

    class Chooses(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x.sin() + 1, lambda x: x.cos(), (x,)).cumsum(-1)

    program = tq.lower(torch.export.export(Chooses(), (image,)), (image,), backends=[], target="executorch")
    assert {one.step for one in program.operations} == {""}
    assert program.intermediate_values((image,)) == {}
    assert program.profile((image,), runs=2).attributed == 0


def test_dynamic_sizes_have_room_for_their_values(image: torch.Tensor) -> None:
    """At the largest sizes as well."""

    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(0).cumsum(1)

    shapes = ({0: torch.export.Dim("batch", min=1, max=4000)},)
    exported = torch.export.export(Sums(), (torch.randn(3, 64),), dynamic_shapes=shapes)
    program = tq.lower(exported, backends=[], target="executorch", verify=False)
    large = torch.randn(4000, 64)
    found = program.intermediate_values((large,))
    assert torch.allclose(found["cumsum"], large.cumsum(0), atol=1e-3)
    assert torch.equal(found["cumsum_1"], program.run(large))
