"""Byte embeddings run: lowered with ExecuTorch, alone and composed with XNNPACK, and executed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from plugins.lowered import Lowered, lower
from plugins.oracle import Model, outline, outputs_of, quantized_by_us
from strategies import Fn, annotated, export, prepare, sqnr
from torchquilt.testing.configs import configs_of
from torchquilt_executorch_embedding import (
    SUPPORT,
    ExecuTorchEmbeddingQuantizer,
    call_kernels,
    get_embedding_config,
)
from torchquilt_executorch_embedding.kernels import pack
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

IDS = torch.tensor([[0, 8, 3, 3, 6], [5, 1, 7, 2, 4]])
KERNEL = "quantized_decomposed::embedding_byte.out"
_KERNELS = {8: "byte", 4: "4bit", 2: "2bit"}


def embedding(**options: Any) -> nn.Embedding:
    """Nine rows of eight."""
    return nn.Embedding(9, 8, **options)


#: (pattern, mode) of each row → its model.
MODELS: dict[tuple[str, str], Callable[[], nn.Module]] = {
    (row.pattern.name, "weight_only"): lambda: nn.Embedding(9, 128) for row in SUPPORT.rows
}

FORMS: dict[str, Callable[[], nn.Module]] = {
    "padding_idx": lambda: embedding(padding_idx=0),
    "functional": lambda: Fn(lambda m, ids: nn.functional.embedding(ids, m.table), table=embedding().weight),
    "ids of int32": lambda: Fn(lambda m, ids: m.table(ids.int()), table=embedding()),
    "one dimension of ids": lambda: Fn(lambda m, ids: m.table(ids[0]), table=embedding()),
    "one table read twice": lambda: Fn(lambda m, ids: m.table(ids) - m.table(ids % 4), table=embedding()),
    "two tables": lambda: Fn(
        lambda m, ids: m.word(ids) * m.position(ids % 4), word=embedding(), position=embedding()
    ),
}


class Tied(nn.Module):
    """An embedding whose table is also the weight of the output projection, if it is tied."""

    def __init__(self, *, is_tied: bool = True, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 9, bias=False)
        if is_tied:
            self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed, transform, project back."""
        return self.out(self.hidden(self.embed(ids)).relu())


@attrs.frozen(eq=False)
class Case:
    """A model on its way, and what the converted model and the runtime return."""

    prepared: GraphModule
    converted: GraphModule
    lowered: Lowered
    expected: torch.Tensor
    found: torch.Tensor


def dequantizing(lowered: Lowered) -> list[str]:
    """The operators of a program that make floats of a table outside of the byte kernel."""
    return [name for name in lowered.operators if "dequantize" in name]


def case_of(module: nn.Module, quantizer: object) -> Case:
    """Quantize, lower, run."""
    prepared = prepare(module, quantizer, IDS)
    converted = tq.convert_pt2e(tq.calibrate(prepared, [(IDS,)]))
    lowered = lower(converted, IDS)
    assert not dequantizing(lowered), "the runtime aborts the process at a float zero point"
    (expected,), (found,) = outputs_of(converted, (IDS,)), lowered.run(IDS)
    return Case(prepared, converted, lowered, expected, found)


def test_every_row_has_a_model() -> None:
    """No row of the table is without a model here."""
    assert {(row.pattern.name, row.mode) for row in SUPPORT.rows} <= set(MODELS)


@pytest.mark.parametrize(("pattern", "mode"), [(row.pattern.name, row.mode) for row in SUPPORT.rows])
def test_row_runs_as_claimed(pattern: str, mode: str) -> None:
    """The kernel that a row is named after is all that runs, and returns what the converted model does."""
    torch.manual_seed(0)
    (row,) = [row for row in SUPPORT.rows if row.pattern.name == pattern]
    (config,) = configs_of(row)
    case = case_of(MODELS[pattern, mode](), ExecuTorchEmbeddingQuantizer().set_global(config))
    kernel = pattern.partition("_group")[0]

    assert pattern in {annotation.pattern for annotation in annotated(case.prepared).values()}
    assert case.lowered.operators == (f"quantized_decomposed::{kernel}.out",)
    assert torch.equal(case.found, case.expected)
    assert len(case.lowered.buffer) < 9 * 128 * config.weight.bits // 8 + 3000


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_numbers_are_those_that_the_operator_unpacks(bits: int) -> None:
    """ExecuTorch's own definition of the operator finds the numbers where they were put."""
    numbers = torch.arange(32, dtype=torch.int8).reshape(2, 16) % 2**bits - 2 ** (bits - 1)
    operator = getattr(torch.ops.quantized_decomposed, f"embedding_{bits}bit").default
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    found = operator(pack(numbers, bits), torch.ones(2), None, low, high, torch.arange(2))
    assert torch.equal(found, numbers.float())


def test_the_fusion_of_executorch_makes_the_byte_kernel_too() -> None:
    """Bytes per row need no step of ours: the quantization fusion of ExecuTorch finds them."""
    torch.manual_seed(0)
    converted = quantized_by_us(Model(embedding(), (IDS,)), ExecuTorchEmbeddingQuantizer())
    assert lower(converted, IDS).operators == (KERNEL,)


def bag() -> nn.Module:
    """An embedding bag beside an embedding."""
    parts = {"bag": nn.EmbeddingBag(9, 8, padding_idx=0), "table": embedding()}
    return Fn(lambda m, ids: m.bag(ids) + m.table(ids).sum(1), **parts)


def test_an_embedding_bag_stays_in_float_with_the_reason() -> None:
    """The runtime has no kernel for it, so there is no row, and the ledger says so."""
    ledger = tq.explain(export(bag(), IDS), ExecuTorchEmbeddingQuantizer())
    (row,) = (row for row in ledger if "embedding_bag" in row.op)
    assert row.code == "no_kernel"
    assert "ExecuTorch has no kernel for an embedding bag" in row.reasons[0].text
    assert ledger["embedding"].is_quantized


def test_a_rule_for_a_module_with_an_embedding_bag_says_what_the_runtime_lacks() -> None:
    """A rule by the name of the module is an error with the reason."""
    quantizer = ExecuTorchEmbeddingQuantizer().set_module_name("bag", get_embedding_config())
    with pytest.raises(tq.IntentError, match="no_kernel: ExecuTorch has no kernel for an embedding bag"):
        tq.explain(export(bag(), IDS), quantizer)


@pytest.mark.parametrize(
    "kind", [nn.EmbeddingBag, nn.functional.embedding_bag, torch.ops.aten.embedding_bag.padding_idx]
)
def test_a_rule_for_embedding_bags_says_what_the_runtime_lacks(kind: Any) -> None:
    """It is refused when it is given, before there is a model; to leave them in float is no mistake."""
    quantizer = ExecuTorchEmbeddingQuantizer()
    with pytest.raises(tq.IntentError, match="ExecuTorch has no kernel for an embedding bag"):
        quantizer.set_object_type(kind, get_embedding_config(4))
    assert quantizer.set_object_type(kind, None) == quantizer


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", FORMS)
def test_form_runs_on_the_kernel(name: str, bits: int) -> None:
    """However a table is read, the kernel reads it, and no float table is made at run time."""
    torch.manual_seed(0)
    case = case_of(FORMS[name](), ExecuTorchEmbeddingQuantizer().set_global(get_embedding_config(bits)))

    assert f"quantized_decomposed::embedding_{_KERNELS[bits]}.out" in case.lowered.operators
    assert "aten::embedding.out" not in case.lowered.operators
    assert sqnr(case.expected, case.found) > 100


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_of_both_dtypes_are_given_to_the_program(dtype: torch.dtype) -> None:
    """The kernel takes int64; a program that is given int32 widens them by itself."""
    ids = IDS.to(dtype)
    converted = quantized_by_us(Model(embedding(padding_idx=0), (ids,)), ExecuTorchEmbeddingQuantizer())
    program = lower(converted, ids)

    assert KERNEL in program.operators
    assert str(program.program.io.inputs[0]).startswith(f"input: {str(dtype).removeprefix('torch.')}[")
    assert torch.equal(program.run(ids)[0], converted(ids))


@pytest.mark.parametrize("option", ["sparse", "scale_grad_by_freq"])
def test_options_of_the_gradient_leave_no_dequantize_behind(option: str) -> None:
    """Options that only training reads: the table runs as bytes or stays in float, but the program runs.

    The pass that makes the byte kernel does not know the operator with these arguments, and what it leaves
    behind, a dequantize with a float zero point, aborts the process when it is run.
    """
    torch.manual_seed(0)
    converted = quantized_by_us(Model(embedding(**{option: True}), (IDS,)), ExecuTorchEmbeddingQuantizer())

    assert not dequantizing(lower(converted, IDS))


@pytest.mark.filterwarnings("ignore:Something was asked for in this model")
def test_what_the_kernel_does_not_take_stays_in_float() -> None:
    """Rows of bfloat16: no row of the table is for them."""
    model = Model(embedding().to(torch.bfloat16), (IDS,))

    assert outline(quantized_by_us(model, ExecuTorchEmbeddingQuantizer())) == ["embedding(-, -)", "output(-)"]


@pytest.mark.parametrize("spread", [0.02, 1.0])
@pytest.mark.parametrize("preset", ExecuTorchEmbeddingQuantizer.PRESETS)
def test_rows_of_float16_are_looked_up_in_float16(preset: str, spread: float) -> None:
    """A table of float16 has parameters of float16 in the program; that costs as much as float16 itself does.

    Rows of which none is around 0 are among them: their zero points are far outside of the range.
    """
    torch.manual_seed(0)
    module = nn.Embedding(9, 128)
    with torch.no_grad():
        module.weight.mul_(spread)
        module.weight[3] += 4 * spread
    case = case_of(module.to(torch.float16), ExecuTorchEmbeddingQuantizer.from_preset(preset))
    (kernel,) = case.lowered.operators

    assert kernel.startswith("quantized_decomposed::embedding_")
    assert kernel.endswith(".dtype_out")
    assert case.found.dtype is case.expected.dtype is torch.float16
    assert sqnr(case.expected.double(), case.found.double()) > 55


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("preset", ["byte_group32", "int4_per_row", "int4_group32", "int2_group32"])
def test_a_table_of_any_form_is_tied_to_a_linear_of_xnnpack(preset: str, is_dynamic: bool) -> None:
    """The tensor becomes two: packed for the kernel, and int8 for the projection. Both run as integers."""
    torch.manual_seed(0)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    tables = ExecuTorchEmbeddingQuantizer.from_preset(preset)
    quantizer = tq.ComposableQuantizer([tables, XNNPACKQuantizer().set_global(config)])
    case = case_of(Tied(width=32), quantizer)
    (kernel,) = case.lowered.operators

    assert kernel == f"quantized_decomposed::embedding_{_KERNELS[tables.PRESETS[preset]().weight.bits]}.out"
    assert sum(name.startswith("FullyConnected(q") for name in case.lowered.kernels) == 2
    assert sqnr(case.expected, case.found) > 40


@cache
def composed(is_tied: bool, is_dynamic: bool) -> Case:
    """An embedding and linears, each quantized by the plugin for it."""
    torch.manual_seed(0)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    quantizer = tq.ComposableQuantizer(
        [ExecuTorchEmbeddingQuantizer(), XNNPACKQuantizer().set_global(config)]
    )
    return case_of(Tied(is_tied=is_tied), quantizer)


modes = pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
ties = pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])


@modes
@ties
def test_composition_runs_each_part_where_it_belongs(is_tied: bool, is_dynamic: bool) -> None:
    """The embedding runs as the byte kernel and the linears as integers in the delegate, tied or not."""
    lowered = composed(is_tied, is_dynamic).lowered
    linear = (
        "FullyConnected(qdint8, qcint8) -> fp32" if is_dynamic else "FullyConnected(qint8, qcint8) -> qint8"
    )

    assert lowered.operators == (KERNEL,)
    assert [kernel for kernel in lowered.kernels if kernel.startswith("FullyConnected")] == [linear, linear]


@modes
@ties
def test_composition_returns_what_the_converted_model_returns(is_tied: bool, is_dynamic: bool) -> None:
    """Runtime and converted model agree: within one quantization step, or 60 dB where it is dynamic."""
    case = composed(is_tied, is_dynamic)
    (output,) = (node for node in case.converted.graph.nodes if node.op == "output")

    if is_dynamic:
        assert sqnr(case.expected, case.found) > 60
    else:
        step = float(output.all_input_nodes[0].args[1])
        assert (case.expected - case.found).abs().max() <= 1.001 * step


@pytest.mark.parametrize("preset", ["byte_per_row", "int4_group32", "int2_group128"])
def test_a_program_is_lowered_with_executorch_alone(preset: str) -> None:
    """For who does without tq.lower: the program computes the same, and runs on the runtime."""
    case = case_of(nn.Embedding(9, 128), ExecuTorchEmbeddingQuantizer.from_preset(preset))
    program = call_kernels(torch.export.export(case.converted, (IDS,)))
    assert torch.equal(program.module()(IDS), case.found)

    written = to_edge_transform_and_lower(program).to_executorch()
    (found,) = Runtime.get().load_program(written.buffer).load_method("forward").execute([IDS])
    assert torch.equal(found, case.found)


def test_a_table_that_something_else_reads_is_not_packed() -> None:
    """The program says so, instead of handing packed numbers to who reads them one by one."""
    module = Fn(lambda m, ids: m.embed(ids) + m.embed.weight.sum(), embed=nn.Embedding(9, 128))
    quantizer = ExecuTorchEmbeddingQuantizer.from_preset("byte_per_row")
    prepared = prepare(module, quantizer, IDS)
    converted = tq.convert_pt2e(prepared)
    (found,) = lower(converted, IDS).run(IDS)
    torch.testing.assert_close(found, converted(IDS))
