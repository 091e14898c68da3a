"""compare_targets: one model on several runtimes, and quantizers that are spelled ``backend:preset``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torchquilt as tq
from torchquilt.accuracy import targets as targets_module
from torchquilt.errors import (
    AccuracyError,
    IntentError,
    PluginNotFoundError,
    UnsupportedConfigError,
)
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = "xnnpack:static_int8_per_channel"


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """One input."""
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(x: torch.Tensor) -> torch.export.ExportedProgram:
    """Two layers, with a softmax in float behind them."""
    torch.manual_seed(1)
    layers = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return torch.export.export(torch.nn.Sequential(layers, torch.nn.Softmax(-1)).eval(), (x,))


@pytest.fixture(scope="module")
def found(exported: torch.export.ExportedProgram, x: torch.Tensor) -> tq.TargetComparison:
    """The comparison on the one target that is always here."""
    return tq.compare_targets(exported, {"executorch": STATIC}, [(x,)], (x,), runs=2)


def test_the_figures_are_those_of_the_steps_by_hand(
    found: tq.TargetComparison, exported: torch.export.ExportedProgram, x: torch.Tensor
) -> None:
    """Quantize, convert, lower, run: the same program, and what is measured of it."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantized = tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, quantizer), [(x,)]))
    program = tq.lower(quantized, (x,), verify=False)
    row = found["executorch"]
    assert row.nbytes == program.size
    assert row.float_nbytes == tq.lower(exported, (x,), backends=["xnnpack"], verify=False).size
    assert (row.integer_share, row.quantized_share) == (1.0, 1.0)
    assert row.integer_kernels == len(program.integer_operations)
    assert torch.equal(found.programs["executorch"].run(x), program.run(x))
    expected = exported.module()(x).detach()
    noise = (program.run(x) - expected).square().sum() / expected.square().sum()
    assert row.sqnr_to_float == pytest.approx(-10 * float(noise.log10()), abs=0.01)
    assert row.sqnr_to_quantized > 40
    assert row.speed == pytest.approx(row.ms / row.float_ms if row.float_ms else 0)


def test_it_is_printed_and_written(found: tq.TargetComparison) -> None:
    """JSON and back has the rows; text and HTML name target and quantizer."""
    assert tq.TargetComparison.from_json(found.to_json()).rows == found.rows
    for text in (str(found), found._repr_html_()):
        assert "executorch" in text
        assert STATIC in text
    with pytest.raises(AccuracyError, match="'onnx' was not compared"):
        found["onnx"]


def test_a_preset_means_each_installed_target(
    exported: torch.export.ExportedProgram, x: torch.Tensor
) -> None:
    """With the backend that has it and runs there."""
    assert targets_module.targets_with("dynamic_int8_weight_int4_group32") == {
        "executorch": "xnnpack:dynamic_int8_weight_int4_group32"
    }
    with pytest.raises(AccuracyError, match="did you mean 'static_int8_per_channel'"):
        tq.compare_targets(exported, "static_int8_perchannel", [(x,)], (x,))


def test_what_fails_on_one_target_is_told_in_its_row(
    exported: torch.export.ExportedProgram, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have their figures."""
    given = targets_module.lower

    def lower(model: Any, *args: Any, target: str, **kwargs: Any) -> tq.LoweredProgram:
        if target == "elsewhere":
            raise tq.LoweringError("It does not go there.", got="nothing")
        return given(model, *args, target=target, **kwargs)

    monkeypatch.setattr(targets_module, "lower", lower)
    monkeypatch.setattr(targets_module, "registry", SimpleNamespace(target=lambda name: None))
    wanted = {"elsewhere": STATIC, "executorch": STATIC}
    found = tq.compare_targets(exported, wanted, iter([(x,)]), (x,), runs=1)
    assert [row.target for row in found.rows] == ["elsewhere", "executorch"]
    assert "It does not go there" in found["elsewhere"].failed
    assert not found["executorch"].failed
    assert list(found.programs) == ["executorch"]
    assert str(found).splitlines()[-1].startswith("elsewhere: It does not go there")


def test_a_target_that_runs_no_float_model_is_measured_alone(
    exported: torch.export.ExportedProgram, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ratio."""
    given = targets_module.lower

    def lower(model: Any, *args: Any, **kwargs: Any) -> tq.LoweredProgram:
        if model is exported:
            raise tq.LoweringError("Floats are not taken.", got="float32")
        return given(model, *args, **kwargs)

    monkeypatch.setattr(targets_module, "lower", lower)
    row = tq.compare_targets(exported, {"executorch": STATIC}, [(x,)], (x,), runs=1)["executorch"]
    assert (row.float_ms, row.float_nbytes, row.speed) == (None, None, None)
    assert row.ms > 0


def test_a_program_that_computes_something_else_has_a_caution(
    exported: torch.export.ExportedProgram, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its figures, for those who look for the reason."""
    given = targets_module.lower

    def lower(model: Any, *args: Any, **kwargs: Any) -> tq.LoweredProgram:
        if "verify" not in kwargs:
            raise tq.VerificationError("It computes something else.", got="output_0: 3.0 dB")
        return given(model, *args, **kwargs)

    monkeypatch.setattr(targets_module, "lower", lower)
    found = tq.compare_targets(exported, {"executorch": STATIC}, [(x,)], (x,), runs=1)
    row = found["executorch"]
    assert row.integer_share == 1.0
    assert row.caution == "It computes something else. output_0: 3.0 dB"
    assert str(found).splitlines()[-1] == f"executorch: {row.caution}"


@pytest.mark.parametrize(
    ("targets", "runs", "error"),
    [({}, 1, AccuracyError), ({"executorch": STATIC}, 0, AccuracyError)],
)
def test_bad_input_is_refused_before_anything_runs(
    exported: torch.export.ExportedProgram, x: torch.Tensor, targets: Any, runs: int, error: type
) -> None:
    """No target, no run."""
    with pytest.raises(error):
        tq.compare_targets(exported, targets, [(x,)], (x,), runs=runs)


@pytest.mark.parametrize(
    ("quantizer", "error", "told"),
    [
        ("xnnpack", IntentError, "'backend:preset'"),
        ("xnnpack:", IntentError, "'backend:preset'"),
        (":static_int8", IntentError, "'backend:preset'"),
        ("xnnpack:static_int9", UnsupportedConfigError, "static_int8"),
        ("xnpack:static_int8", PluginNotFoundError, "xnnpack"),
    ],
)
def test_a_spelling_that_means_nothing_is_told(
    exported: torch.export.ExportedProgram, quantizer: str, error: type[Exception], told: str
) -> None:
    """Backend, preset, or the form itself."""
    with pytest.raises(error, match=told):
        tq.prepare_pt2e(exported, quantizer)


def test_a_spelling_is_understood_wherever_a_quantizer_is(
    exported: torch.export.ExportedProgram, x: torch.Tensor
) -> None:
    """Alone, in a composition, in what is explained, and in a recipe: as the quantizer itself."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    assert tq.explain(exported, STATIC) == tq.explain(exported, quantizer)
    spelled = tq.ComposableQuantizer(["executorch_embedding:byte_per_row", STATIC])
    written = tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer.from_preset("byte_per_row"), quantizer])
    assert spelled.quantization_capabilities().rows == written.quantization_capabilities().rows
    assert tq.Recipe.of(spelled).to_toml() == tq.Recipe.of(written).to_toml()
    (group, *_) = tq.sensitivity(exported, STATIC, [(x,)]).groups
    assert group.name
