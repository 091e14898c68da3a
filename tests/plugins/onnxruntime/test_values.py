"""Values between the steps of a program on ONNX Runtime are those of the quantized model."""

from __future__ import annotations

import pytest
import torch

import torchquilt as tq


class Mixed(torch.nn.Module):
    """Fused kernels of integers that the runtime lays out anew, and kernels of floats between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16)
        self.second, self.head = torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to probabilities."""
        hidden = torch.relu(self.norm(self.first(x)))
        hidden = hidden + self.second(hidden)
        return self.head(hidden.mean((2, 3)).cumsum(-1)).softmax(-1)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """One input."""
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(x: torch.Tensor) -> torch.export.ExportedProgram:
    """The float model."""
    torch.manual_seed(1)
    return torch.export.export(Mixed().eval(), (x,))


def test_the_values_of_kernels_are_those_of_the_quantized_model(
    exported: torch.export.ExportedProgram, x: torch.Tensor
) -> None:
    """Rounded as they are, of fused kernels and of others; compare tells the same error of both."""
    prepared = tq.prepare_pt2e(exported, "onnxruntime:static_int8_per_channel")
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    program = tq.lower(quantized, (x,), target="onnxruntime")
    values = program.intermediate_values((x,))
    assert {"relu", "conv2d_1", "add", "linear", "cumsum", "softmax"} <= set(values)
    assert torch.equal(values["softmax"], program.run(x))
    on_runtime = {row.node: row.error.sqnr for row in tq.compare(exported, program, [(x,)]).values}
    in_torch = {row.node: row.accumulated.sqnr for row in tq.compare(exported, quantized, [(x,)]).operators}
    shared = on_runtime.keys() & in_torch.keys()
    assert len(shared) >= 6
    assert {name: on_runtime[name] for name in shared} == pytest.approx(
        {name: in_torch[name] for name in shared}, abs=0.5
    )


def test_times_and_values_speak_of_the_same_steps(
    exported: torch.export.ExportedProgram, x: torch.Tensor
) -> None:
    """In float as well."""
    program = tq.lower(exported, (x,), target="onnxruntime", backends=[])
    compared = tq.compare(exported, program, [(x,)]).values
    assert {"relu", "conv2d_1", "add", "linear"} <= {row.node for row in compared}
    assert min(row.error.sqnr for row in compared) > 90
    profile = program.profile((x,), runs=2)
    assert profile.attributed > 0.9
