"""Capabilities: what is queried is what is annotated, and the answer is plain data."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from operator import xor
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import INT8, WEIGHT, Fn, annotated, export, name_of, normal
from torchquilt.support import operators as ops
from torchquilt.support.object_type import object_type
from torchquilt.testing.configs import configs_of
from torchquilt.testing.specs import takes
from torchquilt_executorch_embedding import SUPPORT as EMBEDDING
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer, get_embedding_byte_config
from torchquilt_xnnpack import SUPPORT, XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config(is_per_channel=True)
# The rows for tables of 8 bits; there are as many for 4.
BYTES = [row for row in EMBEDDING.rows if "byte" in row.pattern.name]
# What takes the dynamic presets with weights of 8 bits.
IN_DYNAMIC = ("linear", "addmm", "matmul", "conv2d", "conv2d_pointwise", "conv_transpose2d")
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
CONFIG = {"static": STATIC, "dynamic": DYNAMIC, "weight_only": get_embedding_byte_config()}
BOTH = ExecuTorchEmbeddingQuantizer.backend_capabilities() | XNNPACKQuantizer.backend_capabilities()


# ----------------------------------------------------------------------------------------------------------
# Queries
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        nn.Linear,
        functional.linear,
        torch.ops.aten.linear.default,
        torch.ops.aten.linear,
        "linear",
        "nn.Linear",
        "torch.nn.functional.linear",
        "aten.linear.default",
    ],
    ids=name_of,
)
def test_an_operator_is_found_under_each_of_its_names(op: object) -> None:
    """Module class, functional, overload, packet, and the text of any of them give the same rows."""
    found = BOTH.filter(op)
    assert {row.operators[0] for row in found} == {"linear"}
    assert {row.mode for row in found} == {"static", "dynamic"}
    assert found == BOTH.filter("linear")


def functionals() -> list[tuple[str, str]]:
    """Each functional that an operator lists, with the operator's name."""
    return [(name, operator.name) for operator in ops.OPERATORS for name in operator.functionals]


@pytest.mark.parametrize(("full_name", "operator"), functionals())
def test_the_function_itself_is_understood(full_name: str, operator: str) -> None:
    """The object that people import, not only its name, leads to the operator that export makes of it."""
    module, _, name = full_name.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    wanted = next(known for known in ops.OPERATORS if known.name == operator)
    assert object_type(function).overloads == wanted.overloads


@pytest.mark.parametrize("operator", [op for op in ops.OPERATORS if op.modules], ids=lambda op: op.name)
def test_the_module_class_is_understood(operator: ops.Operator) -> None:
    """Each listed class exists in torch, and leads to the operator."""
    (full,) = operator.modules
    module, _, name = full.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert object_type(cls).name == full
    assert object_type(f"nn.{name}").name == full
    assert all(row.working == operator.name for row in BOTH.filter(cls))


@pytest.mark.parametrize("operator", ops.OPERATORS, ids=lambda op: op.name)
def test_every_overload_exists_in_torch(operator: ops.Operator) -> None:
    """A name in the table that torch does not have could never match."""
    for overload in operator.overloads:
        namespace, packet, name = overload.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), name)
        assert str(found) == overload
        arguments = [argument.name for argument in found._schema.arguments]
        for operand in operator.operands:
            # The in-place form of dropout calls its input self, and has no other form with keywords.
            # Of matmul and mm, which are one operator here, each has a name of its own for the second.
            assert arguments[operand.position] in (operand.keyword, "self", "mat2")


@pytest.mark.parametrize(
    ("question", "count"),
    [
        ({"bits": 8}, len(SUPPORT.rows) + len(BYTES)),  # of some role
        ({"bits": 4}, sum("int4" in row.pattern.name for row in SUPPORT.rows) + len(BYTES)),
        ({"role": "weight", "backend": "xnnpack"}, sum("weight" in dict(row.specs) for row in SUPPORT.rows)),
        ({"role": "bias"}, 0),
        ({"role": "weight", "dtype": "uint8", "bits": 8}, len(BYTES)),
        ({"role": "input_activation", "dtype": "uint8"}, 0),
        ({"preset": "byte_per_row"}, 1),
        ({"preset": "dynamic_int8"}, len(IN_DYNAMIC)),
        ({"preset": "unknown"}, 0),
        ({"backend": "executorch_embedding"}, len(EMBEDDING.rows)),
        ({"backend": "xnnpack"}, len(SUPPORT.rows)),
        ({"backend": "unknown"}, 0),
        ({"mode": "weight_only"}, len(EMBEDDING.rows)),
        ({"mode": "dynamic"}, sum(row.mode == "dynamic" for row in SUPPORT.rows)),
        ({"dtype": torch.uint8}, len(BYTES)),
        ({"dtype": "int8"}, len(SUPPORT.rows) + len(EMBEDDING.rows) - len(BYTES)),
        ({"dtype": torch.int16}, 0),
        ({"target": "executorch"}, len(SUPPORT.rows) + len(EMBEDDING.rows)),
        ({"target": "nowhere"}, 0),
        ({"is_qat": True}, len(SUPPORT.rows) + len(EMBEDDING.rows)),
        ({"is_qat": False}, 0),
        ({"op": nn.Embedding}, len(EMBEDDING.rows)),
        ({"op": nn.Embedding, "mode": "static"}, 0),
        ({"op": "linear", "mode": "dynamic", "dtype": "int8", "backend": "xnnpack"}, 6),
    ],
    ids=name_of,
)
def test_rows_are_filtered_by_each_question(question: dict[str, Any], count: int) -> None:
    """Every given question narrows the rows, and together they all hold."""
    assert len(BOTH.filter(**question)) == count


INT16 = tq.AllowedSpec("int16", -(2**15), 2**15 - 1, ("per_tensor",), symmetric=True)
INT4 = tq.AllowedSpec("int8", -8, 7, ("per_group",), symmetric=True, group_sizes=(32,))
NARROW_TABLE = tq.SupportTable(
    "acme",
    (
        tq.SupportRow(
            tq.OperatorPattern.of(ops.LINEAR),
            {"input_activation": (INT16,), "output_activation": (INT16,), "weight": (INT4,)},
        ),
    ),
)


@pytest.mark.parametrize(
    ("question", "count"),
    [
        ({"bits": 4}, 1),
        ({"bits": 16}, 1),
        ({"bits": 8}, 0),
        ({"bits": 4, "dtype": "int8"}, 1),
        ({"bits": 4, "dtype": "int16"}, 0),
        ({"bits": 4, "role": "weight"}, 1),
        ({"bits": 4, "role": "input_activation"}, 0),
    ],
    ids=str,
)
def test_bits_are_those_of_a_range(question: dict[str, Any], count: int) -> None:
    """Four-bit weights are found by 4, whatever stores them; bits, dtype and role are about one spec."""
    assert len(NARROW_TABLE.capabilities().filter(**question)) == count


@pytest.mark.parametrize(("name", "known"), [("role", "weight"), ("mode", "weight_only")])
def test_a_role_or_mode_that_does_not_exist_is_no_question(name: str, known: str) -> None:
    """The error lists those that there are; nothing would be found, which is no answer."""
    with pytest.raises(tq.IntentError, match=f"no such {name}") as caught:
        BOTH.filter(**{name: "kernel"})  # type: ignore[arg-type]
    assert known in str(caught.value.expected)


@pytest.mark.parametrize("quantizer", [XNNPACKQuantizer, ExecuTorchEmbeddingQuantizer], ids=name_of)
def test_a_preset_finds_the_rows_that_it_asks_for(quantizer: type[tq.PatternQuantizer]) -> None:
    """The rows of a preset are those of which a quantizer made from it says that it would use them."""
    everything = quantizer.backend_capabilities()
    for preset in quantizer.PRESETS:
        asked = quantizer.from_preset(preset).quantization_capabilities()
        found = everything.filter(preset=preset)
        assert [(row.pattern, row.mode) for row in found] == [(row.pattern, row.mode) for row in asked]
        assert asked.filter(preset=preset) == asked


def test_what_is_asked_for_is_not_told_as_another_preset() -> None:
    """Two presets that one row takes are told apart where a quantizer was asked for one of them."""
    rows = XNNPACKQuantizer.from_preset("dynamic_int8").quantization_capabilities()
    assert {row.presets for row in rows} == {("dynamic_int8",)}
    rows = XNNPACKQuantizer().set_global(DYNAMIC).quantization_capabilities()
    assert {row.presets for row in rows} == {("dynamic_int8_per_channel",)}
    row, *_ = XNNPACKQuantizer.backend_capabilities().filter("linear", mode="dynamic")
    assert row.presets == ("dynamic_int8", "dynamic_int8_per_channel")


@pytest.mark.parametrize("op", ["liner", 3, len, lambda x: x, "torch.nn.Linea", "", "torch"], ids=name_of)
def test_a_question_about_nothing_is_an_error(op: object) -> None:
    """A text that is no operator name is refused; where a name is near, it is offered."""
    with pytest.raises(tq.IntentError) as caught:
        BOTH.filter(op)
    if op == "liner":
        assert "linear" in str(caught.value.remedy)


@pytest.mark.parametrize(
    "op",
    [
        functional.gelu,
        functional.softmax,
        torch.softmax,
        torch.sin,
        torch.Tensor.softmax,
        xor,
        functional.interpolate,  # which is not one operator
        nn.GELU,
        "gelu",
        "torch.nn.functional.gelu",
        "nn.LayerNorm",
        torch.ops.aten.sin.default,
        torch.ops.aten.sin,
        "aten.sin.default",
    ],
    ids=name_of,
)
def test_an_operator_without_rows_is_no(op: object) -> None:
    """An operator without a row gets a plain no that says so, by whatever name of torch it is asked for."""
    answer = BOTH.supports(op, STATIC)
    assert not answer
    assert answer.capability is None
    assert str(answer).startswith("no: no row of executorch_embedding, xnnpack is about ")
    assert object_type(op).name in str(answer)
    assert len(BOTH.filter(op)) == 0


class DerivedLinear(nn.Linear):
    """A class that derives from one that there are rows for."""


def test_a_class_that_derives_from_one_with_rows_is_no() -> None:
    """A row is about exactly one class; the answer says so, and which class has one."""
    answer = BOTH.supports(DerivedLinear, STATIC)
    assert not answer
    assert "exactly one class" in str(answer)
    assert "torch.nn.modules.linear.Linear" in str(answer)
    assert "exactly one class" not in str(BOTH.supports(nn.GELU, STATIC))


def test_without_rows_nothing_is_supported() -> None:
    """Empty capabilities answer no, and why."""
    assert str(tq.Capabilities().supports(nn.Linear, STATIC)).startswith("no: there is no row")


def test_a_target_is_a_part_of_the_question() -> None:
    """A row that takes the config but does not run there as integers is a no that says where it does."""
    assert BOTH.supports(nn.Linear, STATIC, target="executorch")
    answer = BOTH.supports(nn.Linear, STATIC, target="phone")
    assert not answer
    assert answer.differences == ("target=phone (runs as integers on executorch)",)


@pytest.mark.parametrize(
    ("op", "config", "pattern"),
    [
        (nn.Linear, STATIC, "linear"),
        (functional.linear, DYNAMIC, "linear"),
        (nn.Conv2d, STATIC, "conv2d"),
        (torch.add, STATIC, "add"),
        (nn.Embedding, get_embedding_byte_config(), "embedding_byte"),
    ],
)
def test_what_is_supported_is_yes_with_the_row(op: object, config: Any, pattern: str) -> None:
    """The answer is true, and names the row and its backend."""
    answer = BOTH.supports(op, config)
    assert answer
    assert not answer.differences
    assert answer.capability is not None
    assert answer.capability.pattern == pattern
    assert str(answer).startswith("yes")


@pytest.mark.parametrize(
    ("op", "config", "difference"),
    [
        (nn.Conv1d, DYNAMIC, "input_activation"),
        (nn.Linear, tq.QuantizationConfig(weight=WEIGHT), "input_activation=None"),
        (nn.Linear, attrs.evolve(STATIC, bias=tq.QuantizationSpec("int32", symmetric=True)), "bias"),
        (nn.Linear, attrs.evolve(STATIC, output_activation=tq.QuantizationSpec("uint8")), "dtype=uint8"),
        (
            nn.Linear,
            attrs.evolve(DYNAMIC, input_activation=tq.QuantizationSpec("int8", is_dynamic=True)),
            "granularity=per_tensor",
        ),
        (
            nn.Linear,
            attrs.evolve(STATIC, weight=tq.QuantizationSpec("int8", granularity="per_axis", ch_axis=0)),
            "symmetric=False",
        ),
        (nn.Embedding, tq.QuantizationConfig(weight=WEIGHT), "symmetric=True"),
    ],
    ids=name_of,
)
def test_what_is_not_supported_says_what_differs(op: object, config: Any, difference: str) -> None:
    """The answer is false, with the nearest row and each thing of the config that it does not take."""
    answer = BOTH.supports(op, config)
    assert not answer
    assert answer.capability is not None
    assert any(difference in text for text in answer.differences)
    assert all(text in str(answer) for text in answer.differences)


def test_the_nearest_row_has_the_fewest_differences() -> None:
    """A dynamic config with one wrong number is compared with the dynamic row, not with the static ones."""
    near = attrs.evolve(DYNAMIC, weight=tq.QuantizationSpec("int16", symmetric=True))
    answer = BOTH.supports(nn.Linear, near)
    assert answer.capability is not None
    assert (answer.capability.pattern, answer.capability.mode) == ("linear", "dynamic")
    assert {text.split(":")[0] for text in answer.differences} == {"weight"}


# ----------------------------------------------------------------------------------------------------------
# What is queried is what is annotated
# ----------------------------------------------------------------------------------------------------------

IMAGE, SIGNAL, MATRIX = normal(2, 4, 6, 6), normal(2, 4, 8), normal(4, 8)
WIDE = normal(2, 256)
# Where what a row is about is not told by its first operator.
PARTICULAR: dict[str, tuple[Callable[..., Any], dict[str, Any], torch.Tensor]] = {
    "conv_transpose1d_grouped": (
        lambda m, x: m.conv(x),
        {"conv": nn.ConvTranspose1d(4, 4, 3, groups=2)},
        SIGNAL,
    ),
    "conv_transpose2d_grouped": (
        lambda m, x: m.conv(x),
        {"conv": nn.ConvTranspose2d(4, 4, 3, groups=2)},
        IMAGE,
    ),
    "pointwise conv2d": (lambda m, x: m.conv(x), {"conv": nn.Conv2d(4, 4, 1)}, IMAGE),
    "conv2d dynamic": (lambda m, x: m.conv(x), {"conv": nn.Conv2d(4, 4, 3)}, IMAGE[:1]),
    "conv_transpose2d dynamic": (lambda m, x: m.conv(x), {"conv": nn.ConvTranspose2d(4, 4, 3)}, IMAGE[:1]),
    "grouped linear": (lambda m, x: m.fc(x), {"fc": nn.Linear(256, 8)}, WIDE),
    "grouped addmm": (lambda m, x: torch.addmm(m.b, x, m.w), {"b": normal(8), "w": normal(256, 8)}, WIDE),
    "grouped matmul": (lambda m, x: x @ m.w, {"w": normal(256, 8)}, WIDE),
}

MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "view_as": lambda x: x.view_as(x.t()),
    "unflatten": lambda x: x.unflatten(0, (2, 2)),
    "atleast": torch.atleast_3d,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "movedim": lambda x: x.movedim(0, 1),
    "matrix_transpose": lambda x: x.mT,
    "narrow": lambda x: x.narrow(0, 1, 2),
    "detach": torch.detach,
    "expand": lambda x: x.expand(1, 4, 8),
    "repeat": lambda x: x.repeat(1, 1, 1),
}
JOINS = {
    "hstack": torch.hstack, "vstack": torch.vstack, "dstack": torch.dstack, "column_stack": torch.column_stack
}  # fmt: skip
SHUFFLES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: torch.channel_shuffle(x, 2),
}

# For each operator that can stand first in a row: an expression over x (behind something quantized where the
# operator follows), the parts that it needs, and an input.
FIRST: dict[str, tuple[Callable[..., Any], dict[str, Any], torch.Tensor]] = {
    "linear": (lambda m, x: m.fc(x), {"fc": nn.Linear(8, 8)}, MATRIX),
    "conv1d": (lambda m, x: m.conv(x), {"conv": nn.Conv1d(4, 4, 3)}, normal(2, 4, 8)),
    "conv2d": (lambda m, x: m.conv(x), {"conv": nn.Conv2d(4, 4, 3)}, IMAGE),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.w), {"b": normal(6), "w": normal(8, 6)}, MATRIX),
    "matmul": (lambda m, x: x @ m.w, {"w": normal(8, 6)}, MATRIX),
    "pad_conv1d": (lambda m, x: m.conv(functional.pad(x, (1, 0))), {"conv": nn.Conv1d(4, 4, 3)}, SIGNAL),
    "pad_conv2d": (lambda m, x: m.conv(functional.pad(x, (1, 0))), {"conv": nn.Conv2d(4, 4, 3)}, IMAGE),
    "conv_transpose1d": (lambda m, x: m.conv(x), {"conv": nn.ConvTranspose1d(4, 4, 3)}, SIGNAL),
    "conv_transpose2d": (lambda m, x: m.conv(x), {"conv": nn.ConvTranspose2d(4, 4, 3)}, IMAGE),
    "sub": (lambda m, x: x - m.c, {"c": normal(4, 8, seed=1)}, MATRIX),
    "rsub": (lambda m, x: 1.0 - x, {}, MATRIX),
    "div": (lambda m, x: x / 2.0, {}, MATRIX),
    "stack": (lambda m, x: torch.stack([x, m.c]), {"c": normal(4, 8, seed=1)}, MATRIX),
    "contiguous": (lambda m, x: m.fc(x).t().contiguous(), {"fc": nn.Linear(8, 8)}, MATRIX),
    "to": (lambda m, x: m.fc(x).to(torch.float32), {"fc": nn.Linear(8, 8)}, MATRIX),
    "t": (lambda m, x: m.fc(x).t(), {"fc": nn.Linear(8, 8)}, MATRIX),
    "select": (lambda m, x: m.fc(x)[1], {"fc": nn.Linear(8, 8)}, MATRIX),
    "pad": (lambda m, x: functional.pad(m.fc(x), (1, 0)), {"fc": nn.Linear(8, 8)}, MATRIX),
    "embedding": (lambda m, x: m.emb(x), {"emb": nn.Embedding(8, 128)}, torch.tensor([1, 2])),
    "add": (lambda m, x: x + m.c, {"c": normal(4, 8, seed=1)}, MATRIX),
    "mul": (lambda m, x: x * m.c, {"c": normal(4, 8, seed=1)}, MATRIX),
    "cat": (lambda m, x: torch.cat([x, m.c]), {"c": normal(4, 8, seed=1)}, MATRIX),
    "adaptive_avg_pool2d": (lambda m, x: functional.adaptive_avg_pool2d(x, 1), {}, IMAGE),
    "mean": (lambda m, x: m.conv(x).mean((2, 3), keepdim=True), {"conv": nn.Conv2d(4, 4, 3)}, IMAGE),
    "max_pool2d": (lambda m, x: functional.max_pool2d(m.conv(x), 2), {"conv": nn.Conv2d(4, 4, 3)}, IMAGE),
    "relu": (lambda m, x: torch.relu(torch.cat([x, m.c])), {"c": normal(4, 8, seed=1)}, MATRIX),
    "relu6": (
        lambda m, x: torch.ops.aten.relu6.default(torch.cat([x, m.c])),
        {"c": normal(4, 8, seed=1)},
        MATRIX,
    ),
    "hardtanh": (lambda m, x: functional.hardtanh(torch.cat([x, m.c])), {"c": normal(4, 8, seed=1)}, MATRIX),
    "clamp": (lambda m, x: torch.clamp(torch.cat([x, m.c]), -1, 1), {"c": normal(4, 8, seed=1)}, MATRIX),
    "view": (lambda m, x: m.fc(x).view(2, 16), {"fc": nn.Linear(8, 8)}, MATRIX),
    "reshape": (lambda m, x: m.fc(x).reshape(2, 16), {"fc": nn.Linear(8, 8)}, MATRIX),
    "flatten": (lambda m, x: m.fc(x).flatten(), {"fc": nn.Linear(8, 8)}, MATRIX),
    "permute": (lambda m, x: m.fc(x).permute(1, 0), {"fc": nn.Linear(8, 8)}, MATRIX),
    "transpose": (lambda m, x: m.fc(x).transpose(0, 1), {"fc": nn.Linear(8, 8)}, MATRIX),
    "slice": (lambda m, x: m.fc(x)[1:3], {"fc": nn.Linear(8, 8)}, MATRIX),
    "squeeze": (lambda m, x: m.fc(x).squeeze(0), {"fc": nn.Linear(8, 8)}, MATRIX[:1]),
    "unsqueeze": (lambda m, x: m.fc(x).unsqueeze(-1), {"fc": nn.Linear(8, 8)}, MATRIX),
    **{
        name: (lambda m, x, move=move: move(m.fc(x)), {"fc": nn.Linear(8, 8)}, MATRIX)
        for name, move in MOVES.items()
    },
    **{
        name: (lambda m, x, join=join: join([x, m.c]), {"c": normal(4, 8, seed=1)}, MATRIX)
        for name, join in JOINS.items()
    },
    **{
        name: (lambda m, x, move=move: move(m.conv(x)), {"conv": nn.Conv2d(4, 4, 3)}, IMAGE)
        for name, move in SHUFFLES.items()
    },
    "dropout": (lambda m, x: functional.dropout(m.fc(x), 0.5, m.training), {"fc": nn.Linear(8, 8)}, MATRIX),
}
AFTER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "relu6": torch.ops.aten.relu6.default,
    "hardtanh": functional.hardtanh,
    "clamp": lambda x: torch.clamp(x, -1, 1),
}


def model_for(row: tq.Capability) -> tuple[nn.Module, torch.Tensor]:
    """A model in which the row's pattern stands."""
    name = "_".join(row.operators[: row.anchor_index + 1])
    particular = (
        f"{name}_grouped" if "grouped" in row.pattern else "",
        f"pointwise {name}" if "pointwise" in row.pattern else "",
        f"{name} {row.mode}",
        f"grouped {name}" if "group" in row.pattern else "",
    )
    found = next((PARTICULAR[key] for key in particular if key in PARTICULAR), None)
    function, parts, x = found or FIRST[name]

    def forward(module: Any, *inputs: torch.Tensor) -> torch.Tensor:
        value = function(module, *inputs)
        for name in row.operators[row.anchor_index + 1 :]:
            value = AFTER[name](value)
        return value

    return Fn(forward, **parts), x


CLAIMS = [(EMBEDDING, row) for row in EMBEDDING.rows] + [(SUPPORT, row) for row in SUPPORT.rows]


def config_of(row: tq.SupportRow) -> tq.QuantizationConfig:
    """A config that the row takes: the usual one of its mode, if it does."""
    usual = CONFIG[row.mode]
    return next(iter(configs_of(row))) if row.differences(usual) else usual


def patterns_in(quantizer: tq.PatternQuantizer, row: tq.SupportRow) -> list[str]:
    """The patterns that a quantizer annotates in the model for a row."""
    model, x = model_for(row.describe("any"))
    graph = export(model, x).module()
    quantizer.transform_for_annotation(graph)
    quantizer.annotate(graph)
    return [found.pattern for found in annotated(graph).values()]


def asked_for(table: tq.SupportTable, config: tq.QuantizationConfig) -> tq.PatternQuantizer:
    """A quantizer over a table, asked everywhere for a config."""
    return tq.PatternQuantizer(table).set_global(config)


@pytest.mark.parametrize(
    ("table", "row"), CLAIMS, ids=[f"{table.backend} {row.pattern.name} {row.mode}" for table, row in CLAIMS]
)
def test_what_is_claimed_is_annotated(table: tq.SupportTable, row: tq.SupportRow) -> None:
    """A row of quantization_capabilities() is annotated where it stands, on each of its operators."""
    quantizer = asked_for(table, config_of(row))
    claimed = [found.pattern for found in quantizer.quantization_capabilities()]
    assert row.pattern.name in claimed
    assert patterns_in(quantizer, row).count(row.pattern.name) == len(row.pattern.operators)


@pytest.mark.parametrize(
    ("table", "row"), CLAIMS, ids=[f"{table.backend} {row.pattern.name} {row.mode}" for table, row in CLAIMS]
)
def test_what_is_left_out_of_the_table_is_not_annotated(table: tq.SupportTable, row: tq.SupportRow) -> None:
    """Without its row a pattern is neither claimed nor annotated, whatever else the table has."""
    rest = attrs.evolve(table, rows=tuple(other for other in table.rows if other is not row))
    if not any(not other.differences(config_of(row)) for other in rest.rows):
        with pytest.raises((tq.UnsupportedConfigError, ValueError)):
            asked_for(rest, config_of(row))
        return
    quantizer = asked_for(rest, config_of(row))
    assert row.pattern.name not in [found.pattern for found in quantizer.quantization_capabilities()]
    assert row.pattern.name not in patterns_in(quantizer, row)


@pytest.mark.parametrize(
    ("table", "row"), CLAIMS, ids=[f"{table.backend} {row.pattern.name} {row.mode}" for table, row in CLAIMS]
)
def test_what_is_annotated_has_specs_that_the_row_claims(table: tq.SupportTable, row: tq.SupportRow) -> None:
    """Every spec in an annotation is one that the queried row allows for some role."""
    quantizer = asked_for(table, config_of(row))
    model, x = model_for(row.describe("any"))
    graph = export(model, x).module()
    quantizer.annotate(graph)
    rows = {other.pattern.name: other for other in table.rows if other.mode == row.mode}
    for found in annotated(graph).values():
        claiming = rows[found.pattern]
        for spec in (*found.input_qspec_map.values(), found.output_qspec):
            if isinstance(spec, tq.QuantizationSpec):
                assert any(takes(claiming, role, spec) for role in claiming.pattern.roles)


def test_a_quantizer_that_is_asked_for_nothing_claims_nothing() -> None:
    """Before anything is asked there is no capability; what the backend could do is another question."""
    assert len(XNNPACKQuantizer().quantization_capabilities()) == 0
    assert len(XNNPACKQuantizer.backend_capabilities()) == len(SUPPORT.rows)
    assert len(ExecuTorchEmbeddingQuantizer().quantization_capabilities()) == 1


@pytest.mark.parametrize("config", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_a_configured_quantizer_claims_what_takes_its_config(config: tq.QuantizationConfig) -> None:
    """The rows are those of the mode that was asked for."""
    rows = XNNPACKQuantizer().set_global(config).quantization_capabilities()
    assert {row.mode for row in rows} == {config.mode}
    assert {row.scope for row in rows} == {"everywhere"}


def test_a_rule_about_a_type_claims_that_operator_alone() -> None:
    """set_object_type(nn.Linear) says nothing of convolutions, set_module_name may be about anything."""
    by_type = XNNPACKQuantizer().set_object_type(nn.Linear, STATIC).quantization_capabilities()
    assert {row.operators[0] for row in by_type} == {"linear"}
    by_name = XNNPACKQuantizer().set_module_name("a", STATIC).quantization_capabilities()
    assert {"linear", "conv2d"} <= {row.operators[0] for row in by_name}


def test_what_is_excluded_is_not_claimed() -> None:
    """With the operator left in float wherever it comes from, no row for it is claimed."""
    quantizer = XNNPACKQuantizer().set_global(STATIC).set_object_type(functional.linear, None)
    assert not quantizer.quantization_capabilities().supports(nn.Linear, STATIC)


# ----------------------------------------------------------------------------------------------------------
# Tables that are not well formed
# ----------------------------------------------------------------------------------------------------------

LINEAR = tq.OperatorPattern.of(ops.LINEAR)
ALLOWED = (tq.AllowedSpec("int8", -127, 127, ("per_axis",), symmetric=True, ch_axis=0),)


def test_two_rows_for_one_thing_are_refused() -> None:
    """A pattern and mode stand once in a table; the error names them."""
    rows = tuple(tq.SupportRow(LINEAR, {"weight": ALLOWED}, targets=targets) for targets in ((), ("x",)))
    with pytest.raises(tq.PatternError) as caught:
        tq.SupportTable("acme", rows)
    assert "linear" in str(caught.value.got)
    assert "acme" in str(caught.value)


def test_a_row_can_be_derived_from_another() -> None:
    """attrs.evolve of a row keeps what is not named, so that a table can be made from another one."""
    row = tq.SupportRow(LINEAR, {"weight": ALLOWED})
    other = attrs.evolve(row, targets=("phone",))
    assert (other.specs, other.pattern, other.targets) == (row.specs, row.pattern, ("phone",))
    assert attrs.evolve(other, targets=()) == row


def test_a_role_that_does_not_exist_is_refused() -> None:
    """The error lists the roles."""
    with pytest.raises(tq.PatternError) as caught:
        tq.SupportRow(LINEAR, {"kernel": ALLOWED})
    assert "kernel" in str(caught.value.got)
    assert "weight" in str(caught.value.expected)


def test_longer_patterns_are_tried_first() -> None:
    """Whatever the order of the rows is, linear + relu is found before linear."""
    short = tq.SupportRow(LINEAR, {"weight": ALLOWED})
    long = tq.SupportRow(tq.OperatorPattern.of(ops.LINEAR, ops.RELU), {"weight": ALLOWED})
    for rows in ((short, long), (long, short)):
        quantizer = asked_for(tq.SupportTable("acme", rows), tq.QuantizationConfig(weight=WEIGHT))
        graph = export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), normal(2, 4)).module()
        quantizer.annotate(graph)
        assert {found.pattern for found in annotated(graph).values()} == {"linear_relu"}


@pytest.mark.parametrize(
    ("spec", "difference"),
    [
        (WEIGHT, None),
        (attrs.evolve(WEIGHT, quant_min=-7, quant_max=7), None),
        (attrs.evolve(WEIGHT, quant_min=-128), "range"),
        (attrs.evolve(WEIGHT, ch_axis=1), "ch_axis"),
        (attrs.evolve(WEIGHT, symmetric=False, zero_point=None), "symmetric"),
        (attrs.evolve(WEIGHT, granularity="per_tensor", ch_axis=None), "granularity"),
        (INT8, "granularity"),
        (tq.QuantizationSpec("uint8", 0, 100, "per_axis", ch_axis=0, symmetric=True), "dtype"),
        (
            tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=0, zero_point_domain="float"),
            "zero_point_domain",
        ),
    ],
    ids=name_of,
)
def test_a_family_of_specs_says_what_differs(spec: tq.QuantizationSpec, difference: str | None) -> None:
    """A spec inside of the family has no differences; outside each field that differs is named."""
    found = ALLOWED[0].differences(spec)
    assert bool(found) == (difference is not None)
    assert difference is None or any(text.startswith(difference) for text in found)
