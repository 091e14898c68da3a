"""One form in both modes: only the flags that say training are switched, however often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

import torchquilt as tq
from strategies import normal
from torchquilt.backend import operators


class Doubling(torch.autograd.Function):
    """Twice the input, with a gradient that is five times what it should be, to be told apart."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        """Twice the input."""
        return 2 * x

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Five times the gradient."""
        return 10 * gradient


class Net(nn.Module):
    """Modules and functions that differ in training, each with literals of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01)
        self.alone = nn.BatchNorm2d(4, eps=2e-3, momentum=0.02)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two scores for each image."""
        x = functional.relu(self.norm(self.conv(x)))
        x = self.alone(x).mean((2, 3))
        x = functional.dropout(self.drop(x), 0.15, training=self.training)
        return self.head(x)


def model() -> nn.Module:
    """The model, the same each time."""
    torch.manual_seed(0)
    return Net()


def images(seed: int = 0) -> torch.Tensor:
    """A batch."""
    return normal(8, 3, 6, 6, seed=seed)


def exported(*, training: bool) -> torch.export.ExportedProgram:
    """The model, exported in one of the two modes."""
    return torch.export.export(model().train(training), (images(),))


def literals(graph_module: GraphModule) -> list[tuple[str, tuple[Any, ...]]]:
    """The numbers in each call of an operator that differs in training; its flags left out."""
    kinds = ("dropout", "batch_norm")
    return [
        (str(node.target), tuple(value for value in node.args if type(value) is float))
        for node in graph_module.graph.nodes
        if node.op == "call_function" and any(kind in str(node.target) for kind in kinds)
    ]


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_model_is_moved_without_loss(training: bool) -> None:
    """In each mode it computes what the model does that was written; its literals are those of before."""
    found = exported(training=training).module()
    before = literals(found)
    assert before
    for _ in range(3):
        tq.move_exported_model_to_train(found)
        tq.move_exported_model_to_eval(found)
    assert literals(found) == before
    reference = model()
    for value in (False, True, False):
        (tq.move_exported_model_to_train if value else tq.move_exported_model_to_eval)(found)
        reference.train(value)
        torch.manual_seed(3)
        got = found(images(1))
        torch.manual_seed(3)
        assert torch.equal(got, reference(images(1)))
    theirs = dict(reference.named_buffers())
    counted = training  # what was exported in evaluation mode has no operator that counts
    for name, buffer in found.named_buffers():
        if counted or "num_batches" not in name:
            assert torch.equal(buffer, theirs[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_with_rounding_off_it_trains_like_the_model(training: bool) -> None:
    """Prepared and with fake quantize off, a step moves parameters and statistics as in plain PyTorch."""
    prepared = tq.prepare_qat_pt2e(
        exported(training=training), tq.quantizer("xnnpack", "static_int8_per_channel")
    )
    tq.qat.disable_fake_quantize(prepared)
    reference = model().train()
    for one in (prepared, reference):
        torch.manual_seed(5)
        optimizer = torch.optim.SGD(one.parameters(), 0.1)
        for seed in range(2):
            optimizer.zero_grad()
            one(images(seed)).square().mean().backward()
            optimizer.step()
    state = prepared.state_dict()
    for name, value in reference.state_dict().items():
        assert torch.allclose(state[name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("is_moved", [True, False])
def test_a_norm_that_is_frozen_in_training_stays_so(is_moved: bool) -> None:
    """Also where the exported model was moved to evaluation before it is prepared."""
    written = model().train()
    written.alone.eval()
    found = torch.export.export(written, (images(),)).module()
    if is_moved:
        tq.move_exported_model_to_eval(found)
    prepared = tq.prepare_qat_pt2e(found, tq.quantizer("xnnpack", "static_int8_per_channel"))
    before = {name: value.clone() for name, value in prepared.named_buffers() if "running_mean" in name}
    prepared(images(1))
    now = dict(prepared.named_buffers())
    moved = {name for name, value in before.items() if not torch.equal(now[name], value)}
    assert moved == {"norm.running_mean"}


def test_dropout_that_is_meant_is_never_switched() -> None:
    """On in a program that was exported in evaluation mode, it is on in both modes; the other is switched."""

    class Meant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.dropout(self.head(self.drop(x)), 0.5, training=True)

    program = torch.export.export(Meant().eval(), (normal(4, 8),))
    with pytest.raises(tq.ModelError, match="drops at random in evaluation mode, too") as caught:
        tq.prepare_qat_pt2e(program, tq.quantizer("xnnpack", "dynamic_int8"))
    assert "export in training mode" in str(caught.value.remedy)
    with pytest.warns(UserWarning, match="drops at random in evaluation mode, too"):
        prepared = tq.prepare_qat_pt2e(program, tq.quantizer("xnnpack", "dynamic_int8"), strict=False)
    for value in (False, True):
        assert float((prepared.train(value)(normal(4, 8)) == 0).float().mean()) > 0.2


def test_a_gradient_of_the_users_own_survives() -> None:
    """A custom autograd function goes on to say its own gradient wherever export kept it."""

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Doubling.apply(self.head(x))

    torch.manual_seed(0)
    program = torch.export.export(Custom().train(), (normal(2, 4),))

    def gradient(of: nn.Module) -> torch.Tensor:
        of(normal(2, 4)).sum().backward()
        found = of.get_parameter("head.bias").grad
        assert found is not None
        return found

    prepared = tq.prepare_qat_pt2e(program, tq.quantizer("xnnpack", "dynamic_int8_per_channel"))
    prepared.eval().train()
    assert torch.equal(gradient(prepared), gradient(program.module()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("preset", ["static_int8_per_channel", "dynamic_int8_per_channel"])
def test_decisions_are_those_of_calibration(preset: str, training: bool) -> None:
    """The ledger says the same of every operator, whichever mode the program was exported in."""
    quantizer: Callable[[], Any] = lambda: tq.quantizer("xnnpack", preset)  # noqa: E731
    calibrated = tq.prepare_pt2e(exported(training=False), quantizer())
    trained = tq.prepare_qat_pt2e(exported(training=training), quantizer())
    assert tq.ledger_of(trained).rows == tq.ledger_of(calibrated).rows


def test_rows_say_that_they_can_be_trained() -> None:
    """The capabilities are those of the table, and a config that is meant for training asks for the same."""
    capabilities = tq.quantizer("xnnpack", "static_int8").quantization_capabilities()
    assert len(capabilities.filter(is_qat=True)) == len(capabilities) > 0
    assert not capabilities.filter(is_qat=False)


def test_a_row_that_cannot_be_trained_is_refused() -> None:
    """The error names row and node; asked for with is_qat=True, its operators stay in float."""

    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(x + x)

    spec = tq.QuantizationSpec("int8")
    specs = {role: (tq.AllowedSpec.of(spec),) for role in ("input_activation", "output_activation")}
    rows = (
        tq.SupportRow(tq.OperatorPattern.of(operators.RELU), specs, is_qat=False),
        tq.SupportRow(tq.OperatorPattern.of(operators.ADD), specs),
    )
    config = tq.QuantizationConfig(spec, spec)
    program = torch.export.export(Sum().train(), (normal(4, 8),))
    quantizer = tq.PatternQuantizer(tq.SupportTable("mixed", rows))
    with pytest.raises(tq.UnsupportedConfigError, match=r"The row relu of .* cannot be trained") as caught:
        tq.prepare_qat_pt2e(program, quantizer.set_global(config), strict=False)
    assert str(caught.value.node) == "relu"
    assert tq.ledger_of(tq.prepare_pt2e(program, quantizer))["relu"].is_quantized
    meant = quantizer.set_global(attrs.evolve(config, is_qat=True))
    ledger = tq.ledger_of(tq.prepare_qat_pt2e(program, meant))
    assert ledger["add"].is_quantized
    assert ledger["relu"].code == "config_not_supported"


def test_what_is_no_exported_model_is_refused() -> None:
    """A module that was not exported, or a model that is prepared for calibration, has no such modes."""
    prepared = tq.prepare_pt2e(exported(training=False), tq.quantizer("xnnpack", "static_int8"))
    for one in (model(), prepared):
        with pytest.raises(tq.ModelError, match="Only an exported model"):
            tq.move_exported_model_to_train(one)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: tq.calibrate(model, [(images(),)]),
        lambda model: tq.prepare_pt2e(model, tq.quantizer("xnnpack", "static_int8")),
        lambda model: tq.save(model, "never-written.pt2", (images(),)),
        lambda model: tq.lower(model, (images(),)),
    ],
    ids=["calibrate", "prepare", "save", "lower"],
)
def test_what_is_for_others_refuses_a_model_that_is_trained(call: Callable[[GraphModule], Any]) -> None:
    """The error says that the model was prepared for training."""
    prepared = tq.prepare_qat_pt2e(exported(training=True), tq.quantizer("xnnpack", "static_int8"))
    with pytest.raises(tq.ModelError) as caught:
        call(prepared)
    assert caught.value.got == "a model that was prepared for training"
