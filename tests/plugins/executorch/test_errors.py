"""Errors of lowering, loading and running: they name the operator of the model, the backend, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import torchquilt as tq
import torchquilt_executorch_embedding.lowering as embedding_lowering
import torchquilt_xnnpack.lowering as xnnpack_lowering
from plugins.executorch.models import TOKENS, Encoder, composed, converted, xnnpack
from strategies import Fn, export, normal, prepare
from torchquilt.lowering import Contribution
from torchquilt_executorch import ExecuTorchTarget
from torchquilt_executorch.failures import step

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

LIBRARY = torch.library.Library("torchquilt_tests", "DEF")
LIBRARY.define("twist(Tensor x) -> Tensor")
LIBRARY.impl("twist", lambda x: x * 2, "CompositeExplicitAutograd")
torch.library.register_fake("torchquilt_tests::twist", torch.empty_like, lib=LIBRARY)


class Behind(nn.Module):
    """A linear layer, and a module of its own with a function behind it."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.rest = Rest(function)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The function of the layer."""
        return self.rest(self.fc(x))


class Rest(nn.Module):
    """A function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it."""
        return self.function(x)


def lowered(module: nn.Module, *inputs: torch.Tensor, **options: Any) -> tq.LoweredProgram:
    """Quantize statically for XNNPACK and lower."""
    return tq.lower(converted(module, xnnpack(), *inputs), inputs, **options)


def refused(function: Callable[[torch.Tensor], torch.Tensor]) -> tq.LoweringError:
    """The error for a function behind a linear layer."""
    with pytest.raises(tq.LoweringError) as caught:
        lowered(Behind(function), normal(8, 8))
    return caught.value


# --- Lowering -----------------------------------------------------------------------------------------------


def test_a_missing_out_variant_names_the_operator_of_the_model() -> None:
    """Operator, module path and source line stand in the error, and the original one is its cause."""
    error = refused(lambda x: torch.ops.torchquilt_tests.twist(x))
    assert "missing out variant" in error.problem
    assert error.node is not None
    assert error.node.startswith("twist (torchquilt_tests.twist.default, module rest, ")
    assert __file__ in error.node
    assert error.remedy is not None
    assert isinstance(error.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("function", "node"),
    [
        (torch.lgamma, "lgamma (aten.lgamma.default"),
        (torch.linalg.inv, "linalg_inv (aten.linalg_inv.default"),
    ],
    ids=["as_it_is", "decomposed"],
)
def test_an_unsupported_operator_is_named(function: Any, node: str) -> None:
    """So is one that ExecuTorch names by what it is decomposed into."""
    error = refused(function)
    assert error.problem == "ExecuTorch does not take an operator."
    assert error.node is not None
    assert error.node.startswith(node)
    assert "\n" not in str(error.got)


def test_an_operator_that_is_named_behind_the_first_line_is_found() -> None:
    """ExecuTorch says in its second line which operator reads what; the dtypes are told, too."""
    error = refused(lambda x: torch.fft.fft(x).abs())
    assert str(error.node).startswith("abs_1 (aten.abs.default, module rest, ")
    assert "reads torch.complex64 and returns torch.float32" in str(error.node)
    assert __file__ in str(error.node)
    assert "dtypes" in error.problem


def test_an_operator_in_a_branch_is_named() -> None:
    """With the branch that it is in."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda a: torch.lgamma(a), lambda a: a * 2, (m.fc(x),))

    prepared = tq.prepare_pt2e(export(Fn(run, fc=nn.Linear(8, 8)), normal(3, 8)), xnnpack(), strict=False)
    prepared(normal(3, 8))
    model = tq.convert_pt2e(prepared, unseen="float")
    with pytest.raises(tq.LoweringError) as caught:
        tq.lower(model, (normal(3, 8),))
    assert str(caught.value.node).startswith("true_graph_0.lgamma (aten.lgamma.default")


def test_the_cause_of_a_cause_is_searched() -> None:
    """The outermost message that names an operator counts, wherever in the chain it is."""
    program = export(Fn(lambda m, x: m.fc(x).tanh(), fc=nn.Linear(8, 8)), normal(3, 8))
    error = RuntimeError("A pass failed.\nSee above.")
    error.__cause__ = KeyError("nothing")
    error.__cause__.__context__ = ValueError("line one\nno kernel for aten::tanh; aten::linear has one")
    with pytest.raises(tq.LoweringError) as caught, step("It failed.", program):
        raise error
    assert "tanh (aten.tanh.default" in str(caught.value.node)
    assert "A pass failed.; no kernel for aten::tanh" in str(caught.value.got)


def test_a_dtype_that_is_not_taken_is_named() -> None:
    """If the message names no operator, the error names those of the dtype that it names."""
    program = export(Fn(lambda m, x: m.fc(x).double() * 2, fc=nn.Linear(8, 8)), normal(3, 8))
    with pytest.raises(tq.LoweringError) as caught, step("It failed.", program):
        raise KeyError(torch.float64)
    assert "to (aten.to.dtype" in str(caught.value.node)
    assert "returns torch.float64" in str(caught.value.node)


def test_what_a_partitioner_leaves_in_a_subgraph_is_named() -> None:
    """ExecuTorch cannot write an operator that was kept whole for a delegate and is in a branch."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda a: m.fc(a), lambda a: a * 2, (x,))

    module = Fn(run, fc=nn.Linear(8, 8))
    prepared = tq.prepare_pt2e(export(module, normal(3, 8)), xnnpack(is_dynamic=True), strict=False)
    with pytest.raises(tq.LoweringError, match="subgraphs of control flow") as caught:
        tq.lower(tq.convert_pt2e(prepared), (normal(3, 8),))
    assert str(caught.value.node).startswith("true_graph_0.linear (aten.linear.default, module fc")
    assert "eval_with_key" not in str(caught.value.node)
    assert "branch" in str(caught.value.remedy)


def test_a_branch_runs_in_float_without_the_partitioner() -> None:
    """Without the partitioner, as the error advises, the program is made, and says what fell back."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda a: m.fc(a), lambda a: a * 2, (x,))

    x = normal(3, 8)
    prepared = tq.prepare_pt2e(export(Fn(run, fc=nn.Linear(8, 8)), x), xnnpack(), strict=False)
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x.abs(),), (-x.abs(),)]))
    program = tq.lower(quantized, (x,), target="executorch", backends=[], verify=True)

    assert program.ledger is not None
    assert program.ledger["true_graph_0.linear"].lowered.code == "fell_back_to_float"
    assert {one.stems_from for one in program.leftovers} >= {"true_graph_0.linear"}


def test_a_table_without_its_kernel_is_refused() -> None:
    """Without the backend that fuses it the program would end the process that runs it."""
    model = converted(Encoder(), composed(), TOKENS)
    with pytest.raises(tq.LoweringError, match="zero points that are no integers") as caught:
        tq.lower(model, (TOKENS,), backends=["xnnpack"])
    assert "executorch_embedding" in str(caught.value.remedy)


@pytest.mark.parametrize("stage", ["float", "prepared"])
def test_only_converted_models_are_lowered(stage: str) -> None:
    """A module that was not exported, and one that is still observed, are refused."""
    module: nn.Module = nn.Linear(8, 4)
    if stage == "prepared":
        module = prepare(module, xnnpack(), normal(3, 8))
    with pytest.raises(tq.ModelError, match="Only a converted model") as caught:
        tq.lower(module, (normal(3, 8),))  # type: ignore[arg-type]
    assert stage in str(caught.value.got) or "Linear" in str(caught.value.got)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"example_inputs": None}, "needs example inputs"),
        ({"example_inputs": (normal(3, 9),)}, "cannot be exported with these example inputs"),
        ({"target": "executroch"}, "No installed lowering target is called 'executroch'"),
        ({"target": "xnnpack"}, "is no lowering target"),
        ({"backends": ["executorch"]}, "is a lowering target and has no quantizer"),
        ({"backends": ["xnpack"]}, "No installed backend is called 'xnpack'"),
    ],
)
def test_what_is_asked_has_to_be_there(options: dict[str, Any], problem: str) -> None:
    """Inputs, the target and the backends are checked, each with an answer of its own."""
    model = converted(nn.Linear(8, 4), xnnpack(), normal(3, 8))
    with pytest.raises(tq.TorchquiltError, match=problem) as caught:
        tq.lower(model, **{"example_inputs": (normal(3, 8),), **options})
    assert caught.value.remedy


def test_backends_have_to_be_named_where_nothing_is_known_of_them() -> None:
    """A float program does not say which backend should lower it."""
    with pytest.raises(tq.LoweringError, match="which backends") as caught:
        tq.lower(export(nn.Linear(8, 4), normal(3, 8)))
    assert "backends=" in str(caught.value.remedy)


def test_dynamic_shapes_of_a_program_are_refused() -> None:
    """They would have no effect."""
    with pytest.raises(tq.LoweringError, match="lowered as it is"):
        tq.lower(
            export(nn.Linear(8, 4), normal(3, 8)),
            target="executorch",
            backends=[],
            dynamic_shapes={"x": None},
        )


def broken() -> list[Any]:
    """Partitioners that cannot be made."""
    raise RuntimeError("no partitioner today")


def bad_pass(program: Any) -> Any:
    """A pass that fails."""
    raise RuntimeError("no pass today")


@pytest.mark.parametrize(
    ("contribution", "problem"),
    [
        ({"options": {"do_quant_fusion_and_const_prop": False}}, "Two backends ask for different values"),
        ({"passes": (bad_pass,)}, "A pass of the backend 'xnnpack' failed"),
        ({"libraries": ("library_that_is_not_there",)}, "library_that_is_not_there of the backend 'xnnpack'"),
    ],
    ids=["options", "passes", "libraries"],
)
def test_what_a_backend_gives_that_does_not_work_names_it(
    monkeypatch: pytest.MonkeyPatch, contribution: dict[str, Any], problem: str
) -> None:
    """Options that contradict those of another backend, a pass that fails, a library that is not there."""
    changed = attrs.evolve(xnnpack_lowering.CONTRIBUTION, **contribution)
    monkeypatch.setattr(xnnpack_lowering, "CONTRIBUTION", changed)
    with pytest.raises(tq.LoweringError, match=problem) as caught:
        tq.lower(converted(Encoder(), composed(), TOKENS), (TOKENS,))
    assert "xnnpack" in str(caught.value.backend)


def test_partitioners_that_cannot_be_made_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original error is the cause."""
    monkeypatch.setattr(xnnpack_lowering, "CONTRIBUTION", Contribution(partitioners=broken))
    with pytest.raises(tq.LoweringError, match="partitioners of the backend 'xnnpack'") as caught:
        lowered(nn.Linear(8, 4), normal(3, 8))
    assert "no partitioner today" in str(caught.value.got)


@pytest.mark.parametrize("value", ["nothing", None])
def test_what_is_no_contribution_is_refused(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    """The manifest may name anything; the error names the backend."""
    if value is None:
        monkeypatch.delattr(embedding_lowering, "CONTRIBUTION")
    else:
        monkeypatch.setattr(embedding_lowering, "CONTRIBUTION", value)
    with pytest.raises(tq.PluginLoadError, match="'executorch_embedding'"):
        tq.lower(converted(Encoder(), composed(), TOKENS), (TOKENS,))


# --- Loading and running ------------------------------------------------------------------------------------


def test_a_kernel_that_the_runtime_lacks_names_the_operator_of_the_model() -> None:
    """A kernel that the runtime here lacks is found before it is called; a device may have it."""
    program = lowered(Behind(lambda x: x.sort()[0]), normal(8, 8))
    with pytest.raises(tq.ProgramError, match=r"no kernel for aten::sort\.values") as caught:
        program.run(normal(8, 8))
    assert caught.value.operators == ("aten::sort.values",)
    assert str(caught.value.node).startswith("sort (aten.sort.default, module rest, ")


def test_a_kernel_that_fails_names_the_operator_of_the_model(capfd: pytest.CaptureFixture[str]) -> None:
    """The error has operator and reason, which the runtime only writes to standard error."""
    program = lowered(Behind(lambda x: torch.fft.fft(x).real), normal(8, 8), verify=False)
    with pytest.raises(tq.ProgramError, match="failed in the runtime") as caught:
        program.run(normal(8, 8))
    assert str(caught.value.node).startswith("fft_fft (aten._fft_r2c.default, module rest, ")
    assert "InvalidArgument" in str(caught.value.got)
    assert "onesided" in str(caught.value.got)
    assert "onesided" in capfd.readouterr().err


def test_a_delegate_that_cannot_be_loaded_names_its_operators_and_itself() -> None:
    """A payload of another version, here one without its magic number, is refused by the runtime."""
    program = lowered(nn.Linear(8, 4), normal(3, 8))
    assert program.buffer.count(b"XH00") == 1
    damaged = program.buffer.replace(b"XH00", b"XX99")
    program = attrs.evolve(program, buffer=damaged, runner=ExecuTorchTarget().open(damaged, ()))
    with pytest.raises(tq.ProgramError, match="cannot load the program") as caught:
        program.run(normal(3, 8))
    assert caught.value.backend == "XnnpackBackend"
    assert str(caught.value.node).startswith("linear (aten.linear.default")
    assert "0x" in str(caught.value.got)


def test_a_delegate_that_is_not_here_is_named() -> None:
    """A program for other hardware is not given to the runtime."""
    program = lowered(nn.Linear(8, 4), normal(3, 8))
    other = program.buffer.replace(b"XnnpackBackend", b"XnnpackBackenD")
    program = attrs.evolve(program, buffer=other, runner=ExecuTorchTarget().open(other, ()))
    with pytest.raises(tq.ProgramError, match="no delegate 'XnnpackBackenD'") as caught:
        program.run(normal(3, 8))
    assert "XnnpackBackend" in str(caught.value.expected)


INPUTS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "two": (normal(3, 8), normal(3, 8)),
    "shape": (normal(3, 9),),
    "rank": (normal(3, 8, 1),),
    "more rows": (normal(4, 8),),
    "dtype": (torch.ones(3, 8, dtype=torch.int32),),
    "double": (normal(3, 8).double(),),
    "number": (1.0,),
    "text": ("x",),
    "nothing": (None,),
    "meta": (torch.empty(3, 8, device="meta"),),
    "sparse": (normal(3, 8).to_sparse(),),
    "list": ([normal(3, 8)],),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_not_those_of_the_program_are_refused(name: str) -> None:
    """Before the runtime sees them; it is an error of value, too, and says what is taken."""
    program = lowered(nn.Linear(8, 4), normal(3, 8))
    with pytest.raises(tq.ProgramInputError) as caught:
        program.run(*INPUTS[name])
    assert isinstance(caught.value, ValueError)
    assert caught.value.expected
    assert caught.value.remedy
