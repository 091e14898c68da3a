"""verify: the program against the quantized model, on the examples."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable

import attrs
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import torchquilt as tq
import torchquilt_xnnpack.lowering as xnnpack_lowering
from plugins.executorch.models import TOKENS, Encoder, composed, converted, xnnpack
from strategies import Fn, export, normal
from torchquilt.lowering import Agreement, Port, Verification
from torchquilt.lowering.rounding import rounded_otherwise
from torchquilt.lowering.token_scales import chosen_as_needed
from torchquilt.lowering.verification import _agreement, _random_operators
from torchquilt_executorch.runner import ExecuTorchRunner


@pytest.mark.long
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_how_each_output_agrees_is_kept(is_dynamic: bool) -> None:
    """A ratio for each output, in dB, above the bound that holds by default."""
    model = converted(Encoder(), composed(is_dynamic=is_dynamic), TOKENS)
    found = tq.lower(model, (TOKENS,), verify=True).verification
    assert found
    assert [output.output for output in found.outputs] == ["output_0"]
    assert found.sqnr >= found.least_sqnr == 40


def test_without_it_nothing_is_run() -> None:
    """The program says nothing of how it compares."""
    model = converted(nn.Linear(8, 4), xnnpack(), normal(3, 8))
    assert tq.lower(model, (normal(3, 8),), verify=False).verification is None


def test_examples_are_needed() -> None:
    """A program that is lowered without inputs cannot be compared."""
    model = torch.export.export(converted(nn.Linear(8, 4), xnnpack(), normal(3, 8)), (normal(3, 8),))
    with pytest.raises(tq.LoweringError, match="verified on example inputs"):
        tq.lower(model, backends=["xnnpack"], verify=True)


def test_examples_that_do_not_fit_are_refused() -> None:
    """By the model, before the program is run."""
    model = torch.export.export(converted(nn.Linear(8, 4), xnnpack(), normal(3, 8)), (normal(3, 8),))
    with pytest.raises(tq.LoweringError, match="does not take the example inputs"):
        tq.lower(model, (normal(3, 9),), backends=["xnnpack"], verify=True)


def forget(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A pass of a backend that changes what is computed."""
    program = copy.deepcopy(program)
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.tanh.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
            break
    program.graph_module.recompile()
    return program


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> torch.fx.GraphModule:
    """A model that is lowered to something else."""
    changed = attrs.evolve(xnnpack_lowering.CONTRIBUTION, passes=(forget,))
    monkeypatch.setattr(xnnpack_lowering, "CONTRIBUTION", changed)
    module = Fn(lambda m, x: m.second(m.fc(x).tanh()), fc=nn.Linear(8, 8), second=nn.Linear(8, 4))
    return converted(module, xnnpack(), normal(3, 8))


def test_a_program_that_computes_something_else_is_an_error(wrong: torch.fx.GraphModule) -> None:
    """The error names the output, the backends and how far it is off, and keeps the comparison."""
    with pytest.raises(tq.VerificationError) as caught:
        tq.lower(wrong, (normal(3, 8),), verify=True)
    assert (caught.value.node, caught.value.backend) == ("output_0", "xnnpack")
    assert "dB" in str(caught.value.got)
    assert isinstance(caught.value.verification, Verification)
    assert not caught.value.verification


@pytest.mark.long
def test_the_bound_can_be_chosen(wrong: torch.fx.GraphModule) -> None:
    """A number asks for that many dB."""
    assert tq.lower(wrong, (normal(3, 8),), verify=-100.0).verification
    with pytest.raises(tq.VerificationError):
        tq.lower(wrong, (normal(3, 8),), verify=60.0)


def test_one_quantization_step_is_no_difference() -> None:
    """An 8-bit output of few steps may have a low ratio and be as good as it can be."""
    assert Agreement("y", 20.0, 0.1, step=0.1).is_within(40)
    assert not Agreement("y", 20.0, 0.2, step=0.1).is_within(40)
    assert not Agreement("y", 20.0, 0.1).is_within(40)
    assert Agreement("y", 40.0, 0.1).is_within(40)


def test_masked_values_that_are_equal_do_not_spoil_the_ratio() -> None:
    """Infinities at the same positions are equal; the rest is compared."""
    module = Fn(lambda m, x: m.fc(x).masked_fill(x > 0, -math.inf), fc=nn.Linear(8, 8))
    found = tq.lower(converted(module, xnnpack(), normal(3, 8)), (normal(3, 8),), verify=True)
    assert found.verification


# --- What is done without being asked -----------------------------------------------------------------------


def test_a_program_is_compared_without_being_asked(wrong: torch.fx.GraphModule) -> None:
    """A program that computes something else is an error, as when a comparison is asked for."""
    with pytest.raises(tq.VerificationError):
        tq.lower(wrong, (normal(3, 8),))


@pytest.mark.long
def test_the_examples_of_the_export_are_taken_where_none_are_given() -> None:
    """An exported program has those that it was exported with; without them, that is told."""
    model = torch.export.export(converted(nn.Linear(8, 4), xnnpack(), normal(3, 8)), (normal(3, 8),))
    assert len(tq.lower(model, backends=["xnnpack"]).verification.outputs) == 1
    model.example_inputs = None
    found = tq.lower(model, backends=["xnnpack"]).verification
    assert found.outputs == ()
    assert found.skipped == "there are no example inputs"
    assert str(found) == "not compared: there are no example inputs"


def test_a_model_that_draws_random_numbers_is_run_and_not_compared() -> None:
    """Its outputs differ from call to call."""
    module = Fn(lambda m, x: m.fc(x) + torch.rand_like(x), fc=nn.Linear(8, 8))
    with pytest.raises(tq.LoweringError):  # the runtime has no kernel that draws
        tq.lower(converted(module, xnnpack(), normal(3, 8)), (normal(3, 8),))
    assert [*_random_operators(export(module, normal(3, 8)))] == ["aten.rand_like.default"]
    quiet = Fn(lambda m, x: torch.nn.functional.dropout(m.fc(x), 0.5, training=False), fc=nn.Linear(8, 8))
    assert [*_random_operators(export(quiet, normal(3, 8)))] == []


@pytest.mark.long
@pytest.mark.parametrize("lacks", ["delegate", "kernel"])
def test_a_program_that_cannot_run_here_is_not_compared(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    """A delegate of a device, or kernels, may be missing here; asked for, it is an error."""

    def missing(*_: object) -> None:
        raise tq.MissingRuntimeError(f"The runtime here has no {lacks}.")

    monkeypatch.setattr(ExecuTorchRunner, "_check_delegates", missing)
    model, x = converted(nn.Linear(8, 4), xnnpack(), normal(3, 8)), normal(3, 8)
    found = tq.lower(model, (x,)).verification
    assert found.skipped == f"it does not run here: The runtime here has no {lacks}."
    with pytest.raises(tq.MissingRuntimeError):
        tq.lower(model, (x,), verify=True)


def agreement(expected: torch.Tensor, found: torch.Tensor, excuses: bool = True) -> Agreement:
    """Agreement of two outputs."""
    dtype = str(expected.dtype).removeprefix("torch.")
    return _agreement(Port("y", dtype, ()), None, expected, found, excuses)


def test_nan_where_the_model_has_it_is_no_difference() -> None:
    """NaN is compared with NaN; where the program has a number instead, it is told, and the rest counts."""
    nan = torch.tensor([1.0, math.nan, 3.0])
    assert agreement(nan, nan).sqnr == math.inf
    number = agreement(nan, torch.tensor([1.0, 2.0, 3.0]))
    assert number.is_within(40)
    assert "NaN" in number.note
    assert not agreement(nan, torch.tensor([1.0, 2.0, 4.0])).is_within(40)
    assert not agreement(torch.ones(3), nan).is_within(40)
    assert not agreement(nan, torch.tensor([1.0, 2.0, 3.0]), excuses=False).is_within(40)


def test_a_tie_may_fall_another_way() -> None:
    """One of up to ten indices may differ by default; more are wrong, and where a comparison is asked for
    each one is.
    """
    one, tie = torch.zeros(10, dtype=torch.int64), torch.eye(10, dtype=torch.int64)[0] * 7
    assert agreement(one, tie).is_within(40)
    assert "tie" in str(agreement(one, tie))
    assert not agreement(one, tie, excuses=False).is_within(40)
    assert not agreement(one, one + 1).is_within(40)
    assert not agreement(one.float(), tie.float()).is_within(40)


# --- Roundings ----------------------------------------------------------------------------------------------


def halves() -> torch.Tensor:
    """Numbers halfway between integers, with what makes the scale 1."""
    return torch.cat([torch.arange(-16.0, 16.0) + 0.5, torch.tensor([-128.0, 127.0])]).repeat(4, 1)


def multiplied_by(factor: float) -> Callable[[ExportedProgram], ExportedProgram]:
    """A pass of a backend that changes what is quantized first."""

    def change(program: ExportedProgram) -> ExportedProgram:
        program = copy.deepcopy(program)
        quantize = next(node for node in program.graph.nodes if ".quantize_per" in str(node.target))
        with program.graph.inserting_before(quantize):
            other = program.graph.call_function(torch.ops.aten.mul.Tensor, (quantize.args[0], factor))
        other.meta = dict(quantize.args[0].meta)
        quantize.update_arg(0, other)
        program.graph_module.recompile()
        return program

    return change


@pytest.mark.long
@pytest.mark.parametrize(("factor", "is_fine"), [(1 + 1e-6, True), (1.2, False)], ids=["rounding", "wrong"])
def test_a_program_may_be_as_far_off_as_roundings_bring_the_model(
    monkeypatch: pytest.MonkeyPatch, factor: float, is_fine: bool
) -> None:
    """Asked for, 40 dB are 40 dB; by itself, how far the model moves decides, and is told."""
    change = attrs.evolve(xnnpack_lowering.CONTRIBUTION, passes=(multiplied_by(factor),))
    monkeypatch.setattr(xnnpack_lowering, "CONTRIBUTION", change)
    x = halves()
    torch.manual_seed(0)  # how far roundings bring it depends on the weights
    module = Fn(lambda m, x: m.fc(x).cumsum(-1), fc=nn.Linear(34, 34))
    with torch.no_grad():
        module.fc.weight[:, -2:] = 0  # what sets the scale is no part of the result
    model = converted(module, xnnpack(), x)
    with pytest.raises(tq.VerificationError):
        tq.lower(model, (x,), verify=True)
    if is_fine:
        (output,) = tq.lower(model, (x,)).verification.outputs
        assert output.sqnr < 40
        assert re.search(r"the model is \d+\.\d dB from itself", str(output))
    else:
        with pytest.raises(tq.VerificationError):
            tq.lower(model, (x,))


@pytest.mark.long
@pytest.mark.parametrize("size", [1e-5, 1e-6, 1e-8, 1e-12, 0.0])
def test_tokens_with_next_to_no_range_have_the_scale_that_they_need(size: float) -> None:
    """The delegate is nearer to the float model than torch's operator, whose smallest scale is 2**-23."""
    tokens = normal(4, 8) * torch.tensor([[1.0], [size], [size], [size]])
    module = Fn(lambda m, x: m.fc(x)[1:], fc=nn.Linear(8, 8, bias=False))
    model = converted(module, xnnpack(is_dynamic=True), tokens)
    program = tq.lower(model, (tokens,))
    (output,) = program.verification.outputs
    with torch.no_grad(), chosen_as_needed():
        expected = model(tokens)
    assert torch.allclose(program.run(tokens), expected, rtol=1e-5, atol=0)
    if 0 < size < 1e-5:
        assert re.search(r"dB where the model has scales of tokens below 2\*\*-23", str(output))
        with pytest.raises(tq.VerificationError):
            tq.lower(model, (tokens,), verify=True)
    else:
        assert not output.note


def test_scales_of_other_tokens_are_what_torch_chooses() -> None:
    """To the last bit, and so are zero points."""
    choose = torch.ops.quantized_decomposed.choose_qparams_per_token_asymmetric.default
    tokens = torch.cat(
        [normal(8, 16), normal(8, 16) * 2.0**-13, normal(8, 16) * 2.0**-15, torch.zeros(1, 16)]
    )
    expected = choose(tokens, torch.int8)
    with chosen_as_needed():
        found = choose(tokens, torch.int8)
    assert all(torch.equal(*pair) for pair in zip(expected[1], found[1], strict=True))
    assert torch.equal(expected[0][:24], found[0][:24])


def test_a_wrong_program_is_not_excused_by_small_tokens(wrong: torch.fx.GraphModule) -> None:
    """It differs from the model with the scales that are needed, too."""
    with pytest.raises(tq.VerificationError):
        tq.lower(wrong, (normal(3, 8) * torch.tensor([[1.0], [1e-7], [1e-7]]),))


def test_only_what_is_quantized_rounds_otherwise() -> None:
    """By the last bits: what is halfway falls either way, comparisons and torch's generator stay."""
    x = halves()

    def quantized(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized_decomposed.quantize_per_tensor(x, 1.0, 0, -128, 127, torch.int8)

    state = torch.get_rng_state()
    with rounded_otherwise(0):
        moved, is_same = quantized(x), x == x.clone()
    assert bool(is_same.all())
    assert torch.equal(torch.get_rng_state(), state)
    steps = (moved.int() - quantized(x).int()).abs()
    assert int(steps.max()) == 1
    assert 0.2 < float((steps != 0).double().mean()) < 0.8
    assert torch.equal(quantized(x + 0.25), quantized(x + 0.25))
    with rounded_otherwise(0):
        assert torch.equal(quantized(x + 0.25), quantized(x + 0.25))
        largest = torch.full((4,), torch.finfo(torch.float32).min)
        assert torch.equal(quantized(largest), torch.full((4,), -128, dtype=torch.int8))


def test_models_with_branches_are_run_with_other_roundings() -> None:
    """Control flow runs as it does."""
    module = Fn(
        lambda m, x: torch.cond(x.sum() > 0, lambda y: m.fc(y), lambda y: y.sin(), (x,)), fc=nn.Linear(8, 8)
    )
    program = export(module, normal(3, 8)).module()
    with rounded_otherwise(0):
        moved = program(normal(3, 8))
    assert torch.equal(moved, program(normal(3, 8)))
