"""Strict and non-strict exports, and programs that were saved and loaded: one model, one outcome."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import (
    ByFunction,
    Fn,
    calls,
    decisions,
    export,
    normal,
    sqnr,
)
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # from run_decompositions


class Model(nn.Module):
    """A model whose exports differ: tied weights, a layer under two names, in-place relu, buffer, constant.

    And a BatchNorm that is folded, a nested input that may be missing, and several outputs.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(16, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_mean = normal(8, seed=1)
        self.norm.running_var = normal(8, seed=2).abs() + 0.5
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 8)
        self.again = self.fc
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("factor", normal(8, seed=3), persistent=False)

    def forward(
        self, ids: torch.Tensor, options: dict[str, torch.Tensor | None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores at each position, and the mean of what they were computed from."""
        h = self.table(ids)
        h = h + self.act(self.norm(self.conv(h.transpose(1, 2)))).transpose(1, 2) * self.factor
        h = torch.cat([self.fc(h), self.again(torch.tanh(h))], -1)[..., :8]
        if options["mask"] is not None:
            h = h.masked_fill(options["mask"] == 0, 0.0)
        return self.head(h + torch.tensor([0.5])), h.mean(1)


INPUTS = (torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), {"mask": torch.ones(2, 4, 1), "bias": None})


def loaded(program: ExportedProgram) -> ExportedProgram:
    """The program, saved and loaded."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@functools.cache
def program(form: str) -> ExportedProgram:
    """The model, exported in one of the forms."""
    how, _, was = form.partition(", ")
    exported = export(Model(), *INPUTS, strict=how == "strict")
    return loaded(exported) if was else exported


OTHER_FORMS = ("strict", "non-strict, loaded", "strict, loaded")
forms = pytest.mark.parametrize("form", OTHER_FORMS)
modes = pytest.mark.parametrize(
    "asked", [{}, {"is_per_channel": True, "is_dynamic": True}], ids=["static", "dynamic"]
)


def composed(**asked: bool) -> tq.ComposableQuantizer:
    """Both backends, everywhere."""
    xnnpack = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack])


def prepare(exported: object, quantizer: object) -> GraphModule:
    """Prepared, with observers that are fast."""
    return tq.prepare_pt2e(exported, quantizer, activation_observer="minmax")


def convert(prepared: GraphModule, inputs: tuple[Any, ...] = INPUTS) -> GraphModule:
    """Calibrated with the example and converted."""
    return tq.convert_pt2e(tq.calibrate(prepared, [inputs]))


def assert_same_bits(one: GraphModule, other: GraphModule) -> None:
    """The same code, the same names and values in the state, and the same outputs."""
    assert one.code == other.code
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all(torch.equal(*pair) for pair in zip(one(*INPUTS), other(*INPUTS), strict=True))


# ----------------------------------------------------------------------------------------------------------
# Strict, non-strict, saved and loaded
# ----------------------------------------------------------------------------------------------------------


@forms
@modes
def test_annotations_do_not_depend_on_the_export(form: str, asked: dict[str, bool]) -> None:
    """Each node has the same specs from the same quantizer, and the ledger says the same to the last word."""
    one, other = (prepare(program(each), composed(**asked)) for each in ("non-strict", form))
    assert decisions(other) == decisions(one)
    assert len(decisions(one)) >= 4
    assert tq.ledger_of(other) == tq.ledger_of(one)


@forms
@modes
def test_what_is_converted_does_not_depend_on_the_export(form: str, asked: dict[str, bool]) -> None:
    """Code, stored tensors with their names, and outputs are the same to the last bit."""
    one, other = (convert(prepare(program(each), composed(**asked))) for each in ("non-strict", form))
    assert_same_bits(one, other)
    assert sqnr(Model().eval()(*INPUTS)[0], one(*INPUTS)[0]) > 20


RULES = {
    "class": lambda quantizer, config: quantizer.set_object_type(nn.Conv1d, config),
    "functional": lambda quantizer, config: quantizer.set_object_type(nn.functional.linear, config),
    "operator": lambda quantizer, config: quantizer.set_object_type(torch.ops.aten.linear.default, config),
    "name": lambda quantizer, config: quantizer.set_module_name("head", config),
}


@forms
@pytest.mark.parametrize("rule", RULES)
def test_rules_mean_the_same_in_each_export(form: str, rule: str) -> None:
    """A class, a functional, an operator or a module name is found in each form alike."""
    config = get_symmetric_quantization_config()
    one, other = (
        tq.explain(program(each), RULES[rule](XNNPACKQuantizer(), config)) for each in ("non-strict", form)
    )
    assert other.diff(one) == ()
    assert one.quantized


@pytest.mark.parametrize("form", ["non-strict", *OTHER_FORMS])
def test_a_program_and_its_module_are_the_same_to_prepare(form: str) -> None:
    """prepare_pt2e takes the ExportedProgram or its .module(), for the same result."""
    quantizer = composed()
    one, other = (convert(prepare(each, quantizer)) for each in (program(form), program(form).module()))
    assert_same_bits(one, other)


class Unreadable:
    """Anything that is done with it fails, except to copy it."""

    def _fail(self, *_: object) -> Any:
        raise AssertionError("source_fn_stack was read")

    __iter__ = __len__ = __getitem__ = __bool__ = __contains__ = __eq__ = __str__ = __repr__ = _fail
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("instead", [None, Unreadable()], ids=["deleted", "unreadable"])
@modes
def test_source_fn_stack_is_never_read(asked: dict[str, bool], instead: object) -> None:
    """Without what only a strict export says of the source, or with garbage there, nothing changes."""
    module = program("strict").module()
    held = [node for node in module.graph.nodes if "source_fn_stack" in node.meta]
    assert len(held) > 10
    for node in held:
        del node.meta["source_fn_stack"]
        if instead is not None:
            node.meta["source_fn_stack"] = instead
    one, other = prepare(program("strict"), composed(**asked)), prepare(module, composed(**asked))
    assert decisions(other) == decisions(one)
    assert_same_bits(convert(one), convert(other))


# ----------------------------------------------------------------------------------------------------------
# Decomposed programs
# ----------------------------------------------------------------------------------------------------------

X = normal(2, 3, 8, 8)


class Image(nn.Module):
    """Operators that the core ATen operators do not have: conv, BatchNorm, max_pool, linear, softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.fc, self.last = nn.Linear(4, 8), nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        h = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        h = self.up(h).mean((2, 3))
        return torch.softmax(self.last(torch.relu(self.fc(h))), -1)


@functools.cache
def decomposed() -> ExportedProgram:
    """The image model in core ATen operators."""
    return export(Image(), X).run_decompositions()


MADE = {
    "convolution": "aten.conv2d",
    "convolution_1": "aten.conv_transpose2d",
    "_native_batch_norm_legit_no_training": "aten.batch_norm",
    "max_pool2d_with_indices": "aten.max_pool2d",
    "_softmax": "aten.softmax",
}


@pytest.mark.filterwarnings("ignore:Something was asked for")  # strict=False warns of it
def test_the_ledger_says_that_a_program_was_decomposed() -> None:
    """Each operator that decomposition made names the one that it was, and what to do."""
    ledger = tq.explain(decomposed(), composed(), strict=False)
    rows = {row.node: row for row in ledger if row.code == "decomposed"}
    assert set(rows) == set(MADE)
    for node, was in MADE.items():
        assert was in rows[node].reasons[0].text
        assert "run_decompositions()" in rows[node].reasons[0].text
    assert "decomposed" in str(ledger)


@pytest.mark.filterwarnings("ignore:Something was asked for")
def test_an_operator_that_was_written_by_hand_is_not_said_to_be_decomposed() -> None:
    """Products of inputs and max_pool2d with indices come from people, too, and are not blamed."""
    model = Fn(
        lambda self, x: (
            torch.addmm(self.bias, x, x.t() @ x)
            + torch.mm(x, x.t() @ x)
            + nn.functional.max_pool2d(x[None], 1, return_indices=True)[1][0]
        ),
        bias=normal(8),
    )
    ledger = tq.explain(export(model, normal(2, 8)), composed(), strict=False)
    assert {row.op for row in ledger} >= {"aten.addmm.default", "aten.mm.default"}
    assert not [row for row in ledger if row.code == "decomposed"]


dynamic = functools.partial(get_symmetric_quantization_config, is_per_channel=True, is_dynamic=True)
BY_MODULE = {
    "everywhere": lambda quantizer: quantizer.set_global(dynamic()),
    "module name": lambda quantizer: quantizer.set_module_name("fc", dynamic()),
    "module class": lambda quantizer: quantizer.set_object_type(nn.Linear, dynamic()),
}
BY_OPERATOR = {
    "functional": lambda quantizer: quantizer.set_object_type(nn.functional.linear, dynamic()),
    "operator": lambda quantizer: quantizer.set_object_type(torch.ops.aten.linear.default, dynamic()),
}


def test_a_backend_that_would_not_have_taken_it_either_does_not_blame_decomposition() -> None:
    """A quantizer of embeddings has nothing to do in a model without, decomposed or not."""
    with pytest.raises(tq.IntentError) as caught:
        tq.prepare_pt2e(decomposed(), ExecuTorchEmbeddingQuantizer())
    assert "decompos" not in str(caught.value)


@pytest.mark.parametrize("asked", BY_MODULE)
def test_linears_of_a_decomposed_program_are_quantized_as_what_they_became(asked: str) -> None:
    """XNNPACK has rows for addmm and mm with a constant weight, which is what linears become."""
    ledger = tq.explain(decomposed(), BY_MODULE[asked](XNNPACKQuantizer()))
    assert ledger["addmm"].pattern == "linear"


@pytest.mark.parametrize("asked", BY_OPERATOR)
def test_what_cannot_be_done_to_a_decomposed_program_is_refused_with_the_cause(asked: str) -> None:
    """The error of a rule that nothing came of names decomposition and says when to prepare."""
    with pytest.raises(tq.IntentError) as caught:
        tq.prepare_pt2e(decomposed(), BY_OPERATOR[asked](XNNPACKQuantizer()))
    assert "is what run_decompositions() makes of aten." in str(caught.value)
    assert "prepare the program" in str(caught.value)


def weights_of_core_operators() -> ByFunction:
    """The weights of convolutions and matrix products, per output channel, and all activations."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        name = str(node.target)
        spec = tq.QuantizationSpec("int8")
        if name == "aten.convolution.default":
            axis = 1 if node.args[6] else 0
            weight = tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=axis, symmetric=True)
            return tq.QuantizationAnnotation({node.args[0]: spec, node.args[1]: weight}, spec)
        if name in ("aten.addmm.default", "aten.mm.default"):
            x, weight = node.args[-2:]
            columns = tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=1, symmetric=True)
            return tq.QuantizationAnnotation({x: spec, weight: columns}, spec)
        return None

    return ByFunction(decide)


def test_a_quantizer_of_core_operators_quantizes_a_decomposed_program() -> None:
    """Rows for addmm and convolution are enough: weights behind a permute are stored as integers."""
    model = Image().eval()
    quantized = convert(prepare(decomposed(), weights_of_core_operators()), (X,))
    assert not calls(quantized, "permute")
    weights = {name: t for name, t in quantized.state_dict().items() if t.dim() > 1}
    assert len(weights) == 4
    assert all(tensor.dtype is torch.int8 for tensor in weights.values())
    assert sqnr(model(X), quantized(X)) > 30
    again = loaded(torch.export.export(quantized, (X,))).module()
    assert torch.equal(again(X), quantized(X))


def test_a_program_that_is_only_functional_is_quantized_as_it_is() -> None:
    """run_decompositions({}) leaves linear and relu as they are, and so is the outcome."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)).eval()
    x = normal(4, 8)
    exported = export(model, x)
    plain, functional = (
        convert(prepare(each, composed()), (x,)) for each in (exported, exported.run_decompositions({}))
    )
    assert len(calls(functional, "aten.linear")) == 2
    assert torch.equal(functional(x), plain(x))
