"""Models are trained as people train: the loop around them changes nothing of what is computed."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import torchquilt as tq
from strategies import normal

CHOICES = ("moving_average", "learned")
choices = pytest.mark.parametrize("choice", CHOICES)


class Net(nn.Module):
    """Convolutions with BatchNorm, tensors that share parameters, dropout and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.05), nn.ReLU()
        )
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two scores for each image."""
        x = self.first(x)
        both = torch.cat([x, self.second(x)], 1)
        return self.head(self.drop(both.mean((2, 3))))


def batch(seed: int) -> torch.Tensor:
    """A batch of images."""
    return normal(4, 3, 8, 8, seed=seed)


def float_model() -> nn.Module:
    """The model, the same each time."""
    torch.manual_seed(0)
    return Net().train()


def prepared(choice: str, model: nn.Module | None = None) -> GraphModule:
    """The model, prepared for training."""
    exported = torch.export.export(model or float_model(), (batch(0),))
    quantizer = tq.quantizer("xnnpack", "static_int8_per_channel")
    return tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=choice)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with a state of its own."""
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)


def steps(
    model: nn.Module,
    numbers: range,
    optimizer: torch.optim.Optimizer | None = None,
    call: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Train on the batches of these numbers."""
    optimizer = optimizer_of(model) if optimizer is None else optimizer
    for number in numbers:
        torch.manual_seed(number)  # for dropout
        output = (model if call is None else call)(batch(number))
        optimizer.zero_grad()
        (output - 1).square().mean().backward()
        optimizer.step()


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of what differs in the states of two models."""
    theirs = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, theirs[name])]


def is_converted_to_its_bits(model: GraphModule) -> bool:
    """Whether the model in evaluation mode and the converted one return the same."""
    model.eval()
    with torch.no_grad():
        return torch.equal(model(batch(9)), tq.convert_pt2e(model)(batch(9)))


@choices
def test_checkpointing_observes_nothing_twice(choice: str) -> None:
    """Activations that are computed again for the backward pass change no bit of the training."""
    plain = prepared(choice)
    steps(plain, range(3))
    for use_reentrant in (False, True):
        again = prepared(choice)

        def call(x: torch.Tensor, model: GraphModule = again, old: bool = use_reentrant) -> Any:
            return checkpoint(model, x.requires_grad_(old), use_reentrant=old)

        steps(again, range(3), call=call)
        assert differing(again, plain) == []


@choices
def test_autocast_trains(choice: str) -> None:
    """Under bfloat16 the weights move, and the model converts to its bits."""
    model = prepared(choice)
    before = copy.deepcopy(dict(model.named_parameters()))

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output: torch.Tensor = model(x)
        return output

    steps(model, range(2), call=call)
    assert all(
        not torch.equal(value, before[name]) for name, value in model.named_parameters() if value.dim() > 1
    )
    assert is_converted_to_its_bits(model)


@choices
def test_gradients_accumulate(choice: str) -> None:
    """Two backward passes before a step add up, though each forward pass moved ranges and statistics."""
    model = prepared(choice)
    first = [batch(0), batch(1)]
    torch.manual_seed(0)
    outputs = [model(x) for x in first]
    together = sum(output.sum() for output in outputs)
    assert isinstance(together, torch.Tensor)
    together.backward()
    again = prepared(choice)
    torch.manual_seed(0)
    for x in first:
        again(x).sum().backward()
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-7), name


@choices
def test_a_copy_trains_on_by_itself(choice: str) -> None:
    """A deep copy ends in the state that the original ends in, and does not move with it."""
    model = prepared(choice)
    steps(model, range(2))
    copied = copy.deepcopy(model)
    kept = copy.deepcopy(copied.state_dict())
    steps(model, range(2, 4))
    assert all(torch.equal(value, kept[name]) for name, value in copied.state_dict().items())
    steps(copied, range(2, 4))
    assert differing(copied, model) == []
    assert is_converted_to_its_bits(copied)


@choices
def test_a_state_goes_on_in_a_model_that_was_prepared_anew(choice: str) -> None:
    """Saved in the middle, with the switches, and loaded into another model, training ends in the same."""
    model = prepared(choice)
    optimizer = optimizer_of(model)
    steps(model, range(2), optimizer)
    tq.qat.freeze_observers(model, "head")
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    steps(model, range(2, 4), optimizer)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    other = prepared(choice)
    other.load_state_dict(found["model"])
    further = optimizer_of(other)
    further.load_state_dict(found["optimizer"])
    steps(other, range(2, 4), further)
    assert differing(other, model) == []


@choices
def test_an_average_of_models_converts(choice: str) -> None:
    """Averaged weights are quantized with ranges of their own; the wrapper says what to convert."""
    model = prepared(choice)
    average, optimizer = AveragedModel(model), optimizer_of(model)
    for number in range(3):
        steps(model, range(number, number + 1), optimizer)
        average.update_parameters(model)
    assert is_converted_to_its_bits(average.module)
    with pytest.raises(tq.ModelError, match=r"convert_pt2e\(model\.module\)"):
        tq.convert_pt2e(average)


@choices
def test_values_that_are_no_numbers_destroy_nothing(choice: str) -> None:
    """Ranges and running statistics stay what they were, or at least numbers; the next batch trains."""
    model = prepared(choice)
    steps(model, range(2))
    names = ("running_mean", "running_var", "low", "high", "zero_point")
    kept = {name: value.clone() for name, value in model.state_dict().items() if name.endswith(names)}
    model.train()(torch.full_like(batch(0), float("nan"))).sum().backward()
    now = model.state_dict()
    assert [name for name in kept if not torch.equal(now[name], kept[name])] == []
    for value in (float("nan"), float("inf"), -float("inf")):
        some = batch(1)
        some[0, 0, 0, 0] = value
        model(some).sum().backward()
        assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    optimizer_of(model).zero_grad()
    steps(model, range(2, 3))
    assert is_converted_to_its_bits(model)


def test_parameters_are_those_of_the_float_model() -> None:
    """Names, values and what asks for gradients; a checkpoint of the float model fits."""
    model = float_model()
    model.first[0].weight.requires_grad_(False)
    trainable = prepared("moving_average", model)
    mine, theirs = dict(trainable.named_parameters()), dict(model.named_parameters())
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(mine[name], value)
        assert mine[name].requires_grad == value.requires_grad
        assert mine[name].data_ptr() != value.data_ptr()
    answer = trainable.load_state_dict(model.state_dict(), strict=False)
    assert answer.unexpected_keys == []


def test_an_optimizer_of_the_float_model_is_noticed() -> None:
    """Converting says that nothing was updated; a model that was not trained at all is no reason."""
    model = float_model()
    stale = optimizer_of(model)
    trainable = prepared("moving_average", model)
    trainable(batch(0)).sum().backward()
    stale.step()
    with pytest.warns(UserWarning, match="No parameter of this model was updated"):
        tq.convert_pt2e(trainable)
    fresh = prepared("moving_average", model)
    steps(fresh, range(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tq.convert_pt2e(fresh)


def test_ranges_of_tensors_that_share_parameters_hold_both() -> None:
    """In a pass the range moves once, towards what holds all; the order of the tensors does not matter."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.a(x), self.b(y)], 1)

    torch.manual_seed(0)
    example = (normal(2, 4), 100 * normal(2, 4))
    exported = torch.export.export(Both().train(), example)
    model = tq.prepare_qat_pt2e(exported, tq.quantizer("xnnpack", "static_int8"))
    for _ in range(3):
        output = model(*example)
    with torch.no_grad():
        expected = exported.module()(*example)
        largest = float(expected.abs().max())
        assert float((output - expected).abs().max()) < largest / 50


@pytest.mark.long
@choices
def test_compiled_it_trains_the_same(choice: str) -> None:
    """torch.compile takes the whole of a training step, and what it ends in is close."""
    plain = prepared(choice)
    model = prepared(choice)
    for one in (plain, model):
        steps(one, range(1))
    tq.qat.freeze_batch_norm(plain)
    tq.qat.freeze_batch_norm(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    steps(plain, range(1, 3))
    steps(model, range(1, 3), call=compiled)
    for name, value in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[name].float(), value.float(), rtol=0.05, atol=0.05), name
    assert is_converted_to_its_bits(model)


@pytest.mark.long
def test_it_trains_compiled_as_users_compile() -> None:
    """With torch.compile's own backend weights move, and the model converts to its bits."""
    model = prepared("moving_average")
    before = copy.deepcopy(dict(model.named_parameters()))
    steps(model, range(3), call=torch.compile(model, fullgraph=True))
    weights = {name: value for name, value in model.named_parameters() if value.dim() > 1}
    assert not any(torch.equal(value, before[name]) for name, value in weights.items())
    assert is_converted_to_its_bits(model)


def test_learning_does_not_begin_in_compiled_code() -> None:
    """As long as no scale is known, the error says what to do before compiling."""
    with pytest.raises(tq.CalibrationError) as caught:
        torch.compile(prepared("learned"), backend="eager")(batch(0))
    assert "ranges_from" in str(caught.value)
