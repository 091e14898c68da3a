"""The ledger of a lowered model: the lowering status of each operator, and what is left outside."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional

import torchquilt as tq
import torchquilt_xnnpack.lowering as xnnpack_lowering
from plugins.executorch.models import TOKENS, Encoder, composed, converted, xnnpack
from strategies import ByFunction, Fn, normal
from torchquilt.reasons import LOWERING_STATUSES

INT8 = tq.QuantizationSpec("int8")


@cache
def encoder_ledger(is_dynamic: bool) -> tq.Ledger:
    """The joined ledger of the encoder."""
    program = tq.lower(converted(Encoder(), composed(is_dynamic=is_dynamic), TOKENS), (TOKENS,))
    assert program.ledger is not None
    return program.ledger


def codes(ledger: tq.Ledger) -> dict[str, str]:
    """Node → the code of its lowering status."""
    return {row.node: row.lowered.code for row in ledger if row.lowered is not None}


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_each_operator_has_a_lowering_status(is_dynamic: bool) -> None:
    """Delegated as integers or in float, by a kernel of the runtime with integers or not, or gone."""
    found = codes(encoder_ledger(is_dynamic))
    as_integers = ("linear", "linear_1", "linear_2")
    assert {found[name] for name in as_integers} == {"delegated_as_integers"}
    assert found["embedding"] == "integer_kernel"
    assert found["softmax"] == "delegated_as_float"
    assert found["cumsum"] == "float_kernel"
    assert len(found) == len(encoder_ledger(is_dynamic))


def test_the_codes_that_are_documented_are_those_that_are_given() -> None:
    """The table in the module and that of the page say the same seven, all of which tests here meet."""
    met = {*codes(encoder_ledger(False)).values(), "fell_back_to_float", "refused_by_delegate", "removed"}
    assert {status.code for status in LOWERING_STATUSES} == met
    page = (Path(__file__).parents[3] / "docs/lowering.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)) == met


@pytest.mark.long
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("way", ["as it is", "saved"])
def test_an_operator_written_as_another_keeps_its_row(way: str, is_dynamic: bool, tmp_path: Path) -> None:
    """Products are written as linears, and export names those anew: by the names that other rows have."""
    torch.manual_seed(0)
    tensors = {"turned": nn.Parameter(normal(6, 6)), "bias": nn.Parameter(normal(6))}
    layers = {"first": nn.Linear(6, 6), "second": nn.Linear(6, 6)}
    module = Fn(
        lambda m, x: (
            m.first(torch.tanh(x @ m.turned)) + m.second(torch.sigmoid(torch.addmm(m.bias, x, m.turned)))
        ),
        **tensors,
        **layers,
    )
    x = normal(3, 6)
    quantized: Any = converted(module, xnnpack(is_dynamic=is_dynamic), x)
    if way == "saved":
        tq.save(quantized, tmp_path / "model.tq", (x,))
        quantized = tq.load(tmp_path / "model.tq")

    ledger = tq.lower(quantized, (x,), target="executorch").ledger

    assert ledger is not None
    found = codes(ledger)
    products = ("matmul", "linear", "addmm", "linear_1")
    assert {name: found[name] for name in products} == dict.fromkeys(products, "delegated_as_integers")


def test_what_is_fused_is_where_its_kernel_is() -> None:
    """A relu that the delegate computes in the kernel of the linear is delegated like that."""
    assert codes(encoder_ledger(False))["relu"] == "delegated_as_integers"


def test_what_is_folded_is_removed() -> None:
    """A tensor that is computed from constants alone is a constant of the program."""
    module = Fn(lambda m, tokens: m.table(tokens + torch.arange(5)), table=nn.Embedding(20, 8))
    program = tq.lower(converted(module, composed(), TOKENS), (TOKENS,))
    assert program.ledger is not None
    assert codes(program.ledger) == {
        "arange": "removed",
        "add": "float_kernel",
        "embedding": "integer_kernel",
    }


def test_the_place_and_the_reason_are_told() -> None:
    """For a delegated operator: which delegate, and which of its kernels, with the types it reads."""
    status = encoder_ledger(False)["linear"].lowered
    assert status is not None
    assert status.delegate == "XnnpackBackend 0"
    assert status.text == "the delegate runs FullyConnected(qint8, qcint8) -> qint8"


def test_the_lowering_statuses_are_printed_and_written() -> None:
    """The text has the number of each code, and the JSON is read again as the same ledger."""
    ledger = encoder_ledger(False)
    assert "integer_kernel: 1 operator, 1 of them quantized" in str(ledger)
    assert tq.Ledger.from_json(ledger.to_json()) == ledger


def test_a_ledger_that_was_written_before_has_no_lowering_statuses() -> None:
    """One of a model that has not been lowered reads as before, and prints nothing of lowering."""
    model = converted(Encoder(), composed(), TOKENS)
    assert {row.lowered for row in tq.ledger_of(model)} == {None}
    assert "lowered" not in str(tq.ledger_of(model))


def takes_cumsum(node: Node) -> tq.QuantizationAnnotation | None:
    """Annotates what the delegate does not take."""
    if node.target is not torch.ops.aten.cumsum.default:
        return None
    return tq.QuantizationAnnotation({node.args[0]: INT8}, INT8)  # type: ignore[dict-item]


class Cumulative(nn.Module):
    """Sums along the last dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum up."""
        return x.cumsum(-1)


class Sums(nn.Module):
    """A linear layer, and a module that sums up."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.sums = Cumulative()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum up what the layer returns."""
        return self.sums(self.fc(x))


@cache
def sums(*backends: str) -> tq.LoweredProgram:
    """A model that is quantized where the delegate cannot run it."""
    model = converted(Sums(), tq.ComposableQuantizer([xnnpack(), ByFunction(takes_cumsum)]), normal(3, 8))
    return tq.lower(model, (normal(3, 8),), target="executorch", backends=backends, verify=True)


def test_what_was_quantized_and_runs_in_float_is_told() -> None:
    """The operator has the code for it, and its name stands in the printed ledger."""
    ledger = sums("xnnpack").ledger
    assert ledger is not None
    assert codes(ledger)["cumsum"] == "fell_back_to_float"
    assert "cumsum (aten.cumsum.default, module sums)" in str(ledger)


def test_conversions_that_are_left_name_what_they_stem_from() -> None:
    """Each quantize and dequantize outside of the delegate has the operator, its module and its line."""
    left = sums().leftovers
    assert {one.stems_from for one in left} == {"linear", "cumsum"}
    assert {one.op.partition("_per")[0] for one in left} == {
        "quantized_decomposed.quantize",
        "quantized_decomposed.dequantize",
    }
    last = left[-1]
    assert (last.stems_from, last.stems_from_op, last.module) == ("cumsum", "aten.cumsum.default", "sums")
    file, _, line = last.line.rpartition(":")
    assert file == __file__
    assert "cumsum" in open(file).read().splitlines()[int(line) - 1]  # noqa: SIM115, PTH123


def test_nothing_is_left_where_all_is_delegated() -> None:
    """Then there is nothing to list."""
    program = tq.lower(converted(nn.Linear(8, 4), xnnpack(), normal(3, 8)), (normal(3, 8),))
    assert (program.leftovers, program.float_islands) == ((), ())


def test_islands_of_float_are_what_hands_floats_to_each_other() -> None:
    """Two operators in a row are one island; behind an integer operator a new one begins."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(m.first(x)).cumsum(-1)
        return torch.softmax(m.second(x), -1)

    module = Fn(run, first=nn.Linear(8, 8), second=nn.Linear(8, 4))
    program = tq.lower(converted(module, xnnpack(), normal(3, 8)), (normal(3, 8),))
    assert program.float_islands == (("gelu", "cumsum"), ("softmax",))
    assert [one.node for one in program.integer_operations] == ["linear", "linear_1"]


def test_without_a_reader_the_graph_tells_what_is_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that does not say how its payload is read gets the same codes, from what operators read."""
    bare = attrs.evolve(xnnpack_lowering.CONTRIBUTION, readers={})
    monkeypatch.setattr(xnnpack_lowering, "CONTRIBUTION", bare)
    model = converted(Encoder(), composed(), TOKENS)
    program = tq.lower(model, (TOKENS,))
    assert program.ledger is not None
    assert codes(program.ledger) == codes(encoder_ledger(False))
    assert program.kernels == ()


def test_a_module_that_is_called_twice_has_a_lowering_status_for_each_call() -> None:
    """One ReLU called twice is two rows; the one is fused, the other computed by itself."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.relu(m.conv(x))
        return m.relu(functional.max_pool2d(x, 2))

    module = Fn(run, conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU())
    program = tq.lower(converted(module, xnnpack(), normal(2, 3, 8, 8)), (normal(2, 3, 8, 8),))
    assert program.ledger is not None
    assert set(codes(program.ledger).values()) == {"delegated_as_integers"}
    assert len(program.ledger) == 4
