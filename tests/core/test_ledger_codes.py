"""The reason codes of the ledger: each one that is documented can be met, and no other is used."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

import torchquilt as tq
from strategies import WEIGHT, Fn, Nothing, export, normal, outputs_of
from torchquilt.reasons import REASONS
from torchquilt.support import operators as ops
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
WEIGHTS = tq.QuantizationConfig(weight=WEIGHT)
NARROW = tq.QuantizationConfig(weight=attrs.evolve(WEIGHT, quant_min=-7, quant_max=7))
X = normal(3, 6)
UINT8 = tq.QuantizationSpec("uint8")

#: A backend that has linear only with relu behind it.
FUSED = tq.SupportTable(
    "fused",
    (
        tq.SupportRow(
            tq.OperatorPattern.of(ops.LINEAR, ops.RELU),
            {"weight": (tq.AllowedSpec("int8", -127, 127, ("per_axis",), symmetric=True, ch_axis=0),)},
        ),
    ),
)

#: A backend that has linear, and says why it has no relu.
REFUSING = tq.SupportTable(
    "refusing",
    (attrs.evolve(FUSED.rows[0], pattern=tq.OperatorPattern.of(ops.LINEAR)),),
    refusals=(tq.Refusal(ops.RELU, "the chip has no relu"),),
)


def static() -> XNNPACKQuantizer:
    """XNNPACK, static, everywhere."""
    return XNNPACKQuantizer().set_global(STATIC)


def fused() -> tq.PatternQuantizer:
    """The backend of fused linears, everywhere."""
    return tq.PatternQuantizer(FUSED).set_global(WEIGHTS)


def explained(
    quantizer: object, function: Callable[..., Any], *inputs: torch.Tensor, **parts: Any
) -> tq.Ledger:
    """The ledger of a function as a model, with two linears if no parts are given; problems are no errors."""
    model = Fn(function, **(parts or {"fc": nn.Linear(6, 6), "act": nn.ReLU(), "out": nn.Linear(6, 6)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tq.explain(export(model, *(inputs or (X,))), quantizer, strict=False)


def written_to(m: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of the first linear is written to through a view."""
    hidden = m.fc(x)
    hidden.view(-1).mul_(2.0)
    return m.out(hidden)


def attention(m: Any, x: torch.Tensor) -> Any:
    """Attention whose scores are computed by a subgraph."""
    x = m.fc(x).unsqueeze(0).unsqueeze(0)
    return flex_attention(x, x, x, score_mod=lambda score, *_: score * 2.0)


def branches(m: Any, x: torch.Tensor) -> Any:
    """One linear or the other."""
    return torch.cond(x.sum() > 0, lambda x: m.fc(x), lambda x: m.out(x), (x,))


def decomposed() -> tq.Ledger:
    """A program in which linear is addmm."""
    program = export(nn.Linear(6, 6), X).run_decompositions()
    return tq.explain(program, outputs_of("permute"))


def kept_by_a_pass() -> tq.Ledger:
    """A concatenation of tensors of very different size."""
    model = Fn(lambda m, x: torch.tanh(torch.cat([m.fc(x), x / 1000])), fc=nn.Linear(6, 6))
    return tq.explain(tq.recovery.split_ranges(export(model, X), [(X,)]), static())


def converted_without_data_for_one_branch() -> tq.Ledger:
    """The branch that the data did not take is left in float."""
    program = export(Fn(branches, fc=nn.Linear(6, 6), out=nn.Linear(6, 6)), X)
    prepared = tq.calibrate(tq.prepare_pt2e(program, static()), [(X.abs(),)])
    return tq.ledger_of(tq.convert_pt2e(prepared, unseen="float"))


#: Code → a ledger in which it is a reason, and the operator that stays in float for it.
MET: dict[str, tuple[Callable[[], tq.Ledger], str]] = {
    "unsupported_op": (lambda: explained(static(), lambda m, x: functional.gelu(m.fc(x))), "gelu"),
    "no_kernel": (
        lambda: explained(tq.PatternQuantizer(REFUSING).set_global(WEIGHTS), lambda m, x: m.fc(m.act(x))),
        "relu",
    ),
    "not_the_operator": (lambda: explained(fused(), lambda m, x: torch.tanh(m.fc(x))), "linear"),
    "decomposed": (decomposed, "addmm"),
    "not_asked": (
        lambda: explained(XNNPACKQuantizer().set_module_name("fc", STATIC), lambda m, x: m.out(m.fc(x))),
        "linear",
    ),
    "excluded_by_intent": (
        lambda: explained(static().set_module_name("out", None), lambda m, x: m.out(m.fc(x))),
        "linear",
    ),
    "excluded_by_filter": (
        lambda: explained(
            static().set_filter_function(lambda node: node.name != "linear_1"), lambda m, x: m.out(m.fc(x))
        ),
        "linear",
    ),
    "different_intent": (
        lambda: explained(
            tq.PatternQuantizer(FUSED).set_module_name("fc", WEIGHTS).set_module_name("act", NARROW),
            lambda m, x: m.act(m.fc(x)),
        ),
        "linear",
    ),
    "config_not_supported": (
        lambda: explained(XNNPACKQuantizer().set_global(DYNAMIC), lambda m, x: m.act(m.fc(x))),
        "relu",
    ),
    "claimed_by:<quantizer>": (
        lambda: explained(
            tq.ComposableQuantizer([outputs_of("relu", name="mine"), fused()]), lambda m, x: m.act(m.fc(x))
        ),
        "linear",
    ),
    "constraint:<code>": (lambda: explained(static(), lambda m, x: functional.linear(m.fc(x), x)), "linear"),
    "constant": (
        lambda: explained(
            static(), lambda m, x: m.fc(x) + torch.cat([m.w, m.w]), fc=nn.Linear(6, 6), w=normal(6)[:3]
        ),
        "cat",
    ),
    "function_transform": (lambda: explained(static(), lambda m, x: m.out(torch.vmap(m.fc)(x))), "linear"),
    "random": (
        lambda: explained(static(), lambda m, x: m.out(functional.dropout(m.fc(x), training=True))),
        "dropout",
    ),
    "kept_in_float": (kept_by_a_pass, "cat"),
    "not_float": (lambda: explained(static(), lambda m, x: (m.fc(x), x.int() + x.int())), "add"),
    "no_elements": (lambda: explained(static(), lambda m, x: (m.fc(x), x[:0] + x[:0])), "add"),
    "writes_in_place": (lambda: explained(static(), written_to), "linear"),
    "used_elsewhere": (
        lambda: explained(fused(), lambda m, x: m.act(h := m.fc(x)) + h),
        "linear",
    ),
    "no_quantized_neighbour": (
        lambda: explained(static(), lambda m, x: m.fc(x.view(6, 3).view(3, 6))),
        "view",
    ),
    "neighbour_not_supported": (
        lambda: explained(
            tq.ComposableQuantizer([outputs_of("tanh", spec=UINT8), static()]),
            lambda m, x: m.fc(torch.tanh(x).view(3, 6)),
        ),
        "view",
    ),
    "not_profitable": (
        lambda: explained(static(), lambda m, x: (m.fc(x), torch.tanh(torch.tanh(x) + torch.sin(x)))),
        "add",
    ),
    "not_annotated": (lambda: explained(Nothing(), lambda m, x: m.fc(x)), "linear"),
    "control_flow": (lambda: explained(static(), branches), "cond"),
    "subgraph_not_entered": (
        lambda: explained(static(), attention, normal(16, 8), fc=nn.Linear(8, 8).requires_grad_(False)),
        "flex_attention",
    ),
    "never_reached": (converted_without_data_for_one_branch, "linear"),
}


def documented() -> list[str]:
    """The codes that there are, as docs write them."""
    return [reason.label for reason in REASONS]


def test_each_documented_code_has_a_case_here() -> None:
    """The table in the documentation and the cases of this file are about the same codes, each once."""
    assert sorted(documented()) == sorted(MET)


@pytest.mark.parametrize("code", MET)
def test_each_documented_code_can_be_met(code: str) -> None:
    """There is a model of which an operator stays in float for this reason, told by a sentence as well."""
    make, operator = MET[code]
    rows = [row for row in make().left_in_float if operator in row.op]
    wanted = code.replace("<quantizer>", "mine").replace("<code>", "constant_weight")
    assert wanted in [row.code for row in rows]
    assert all(reason.text for row in rows for reason in row.reasons)


def test_the_ranks_of_reasons_are_an_order() -> None:
    """No two reasons that a row gives are as telling as each other."""
    ranks = [reason.rank for reason in REASONS if reason.rank is not None]
    assert ranks == [*range(len(ranks))]


def test_a_reason_says_which_rule_asked_and_for_what() -> None:
    """Of each quantizer that left a node: its rule, and the config or float, if it asked at all."""
    first = XNNPACKQuantizer().set_module_name("fc", DYNAMIC).set_module_name("act", None)
    second = XNNPACKQuantizer().set_object_type(nn.Linear, DYNAMIC).set_object_type("relu", STATIC)
    ledger = explained(tq.ComposableQuantizer([first, second]), lambda m, x: m.out(m.act(m.fc(x))))
    (by_first, by_second) = sorted(ledger["relu"].reasons, key=lambda reason: reason.rule)
    assert (by_first.rule, by_first.asked, by_first.code) == ("module act", "float", "excluded_by_intent")
    assert (by_second.rule, by_second.asked) == ("type relu", str(STATIC))
    assert by_second.code == "no_quantized_neighbour"
    alone = explained(XNNPACKQuantizer().set_module_name("fc", DYNAMIC), lambda m, x: m.out(m.act(m.fc(x))))
    assert [(reason.rule, reason.asked) for reason in alone["linear_1"].reasons] == [("", "")]


def test_what_others_say_is_told_before_who_says_no_more() -> None:
    """Beside a quantizer without a table the reason of a table comes first."""
    quantizer = tq.ComposableQuantizer([Nothing(), XNNPACKQuantizer().set_module_name("fc", STATIC)])
    ledger = explained(quantizer, lambda m, x: functional.gelu(m.out(m.fc(x))))
    assert [reason.code for reason in ledger["linear_1"].reasons] == ["not_asked", "not_annotated"]
    assert [reason.code for reason in ledger["gelu"].reasons] == ["not_annotated"]
    assert ledger["gelu"].reasons[0].quantizer == "Nothing"
