"""Parts of a support table by themselves: allowed specs, rows, refusals, and the types that are asked for."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import name_of
from torchquilt.support import operators as ops
from torchquilt.support.object_type import object_type

INT16 = tq.AllowedSpec("int16", -(2**15), 2**15 - 1, ("per_tensor",), symmetric=True)
INT4 = tq.AllowedSpec("int8", -8, 7, ("per_group",), symmetric=True, group_sizes=(32,))


@pytest.mark.parametrize(
    ("allowed", "asked", "text"),
    [
        ({}, {"quant_min": -8, "quant_max": 7}, ""),
        ({}, {"dtype": "uint8", "quant_min": 0, "quant_max": 255}, "dtype=uint8 (takes int8)"),
        ({"symmetric": True}, {}, "symmetric=False (takes True)"),
        ({"exact_range": True}, {"quant_max": 126}, "range=[-128, 126] (takes exactly [-128, 127])"),
        ({"quant_max": 100}, {}, "range=[-128, 127] (takes within [-128, 100])"),
        ({"quant_min": -100}, {}, "range=[-128, 127] (takes within [-100, 127])"),
        (
            {"excluded_ranges": ((-8, 7),)},
            {"quant_min": -8, "quant_max": 7},
            "range=[-8, 7] (takes any other within [-128, 127])",
        ),
        (
            {"granularities": ("per_group",), "group_sizes": (32, 64)},
            {"granularity": "per_group", "group_size": 16},
            "group_size=16 (takes 32 or 64)",
        ),
        (
            {"granularities": ("per_group",)},
            {"granularity": "per_group", "group_size": 16},
            "",
        ),
        ({"granularities": ("per_axis",)}, {"granularity": "per_axis", "ch_axis": 1}, ""),
        (
            {"granularities": ("per_axis",), "ch_axis": 0},
            {"granularity": "per_axis", "ch_axis": 1},
            "ch_axis=1 (takes 0)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_difference_says_what_is_asked_and_what_is_taken(
    allowed: dict[str, Any], asked: dict[str, Any], text: str
) -> None:
    """In the words of the arguments of a spec."""
    takes = tq.AllowedSpec(**{"dtype": "int8", "quant_min": -128, "quant_max": 127,
                              "granularities": ("per_tensor",), **allowed})  # fmt: skip
    spec = tq.QuantizationSpec(**{"dtype": "int8", "quant_min": -128, "quant_max": 127, **asked})
    found = takes.differences(spec)
    assert (text in found) if text else found == ()


def test_an_allowed_spec_reads_as_what_it_takes() -> None:
    """Its range stands there where it is not that of the dtype, and sizes of groups with the groups."""
    full = tq.AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
    assert str(full) == "int8 per_tensor affine"
    narrow = tq.AllowedSpec("int8", -8, 7, ("per_axis", "per_group"), symmetric=True, group_sizes=(32, 64))
    assert str(narrow) == "int8 per_axis|per_group(32|64) symmetric [-8, 7]"
    assert str(tq.AllowedSpec("uint8", 0, 255, ("per_token",), is_dynamic=True)) == "uint8 per_token dynamic"
    assert (full.bits, narrow.bits) == (8, 4)


@pytest.mark.parametrize(
    ("specs", "mode"),
    [
        ({"weight": (INT4,)}, "weight_only"),
        ({"weight": (INT4,), "input_activation": (attrs.evolve(INT16, is_dynamic=True),)}, "dynamic"),
        ({"weight": (INT4,), "input_activation": (INT16,)}, "static"),
        ({"output_activation": (INT16,)}, "static"),
    ],
    ids=["weight_only", "dynamic", "static", "output"],
)  # fmt: skip
def test_the_mode_of_a_row_is_that_of_its_activations(specs: dict[Any, Any], mode: str) -> None:
    """Without any it quantizes weights alone."""
    table = tq.SupportTable("acme", (tq.SupportRow(tq.OperatorPattern.of(ops.LINEAR), specs),))
    assert [row.mode for row in table.capabilities()] == [mode]


@pytest.mark.parametrize(
    ("asked", "is_about"),
    [
        (nn.GELU, True),
        (nn.functional.gelu, True),
        (torch.ops.aten.gelu.default, True),
        (nn.ReLU, False),
        (torch.ops.aten.relu.default, False),
    ],
    ids=name_of,
)
def test_a_refusal_is_about_each_name_of_its_operator(asked: Any, is_about: bool) -> None:
    """The class, the function, and what they are in a graph."""
    assert tq.Refusal(ops.GELU, "it has no kernel").is_about(object_type(asked)) is is_about


def test_rows_of_longer_patterns_are_tried_first() -> None:
    """Whatever their order in the table is."""
    patterns = ((ops.LINEAR,), (ops.LINEAR, ops.RELU), (ops.CONV2D,))
    rows = tuple(tq.SupportRow(tq.OperatorPattern.of(*each), {"weight": (INT4,)}) for each in patterns)
    index = tq.SupportTable("acme", rows).rows_starting_with()
    assert [row.pattern.name for row in index["aten.linear.default"]] == ["linear_relu", "linear"]
    assert [row.pattern.name for row in index["aten.conv2d.default"]] == ["conv2d"]


def test_a_function_of_the_users_own_is_not_taken_for_one_of_torch() -> None:
    """Though it has the name of one: a rule about it would be about every linear."""

    def linear(x: torch.Tensor) -> torch.Tensor:
        return x

    with pytest.raises(tq.IntentError, match="not a type that a rule can be about"):
        object_type(linear)
    assert object_type(functional.linear).overloads == ("aten.linear.default",)


@pytest.mark.parametrize("row", [True, False])
@pytest.mark.parametrize("config", [True, False])
def test_a_config_for_training_needs_a_row_that_can_be_trained(config: bool, row: bool) -> None:
    """Any row takes one that is not."""
    spec = tq.QuantizationSpec("int16", symmetric=True)
    specs = {"input_activation": (INT16,), "output_activation": (INT16,)}
    asked = tq.QuantizationConfig(input_activation=spec, output_activation=spec, is_qat=config)
    found = tq.SupportRow(tq.OperatorPattern.of(ops.RELU), specs, is_qat=row).differences(asked)
    assert found == (("is_qat=True (cannot be trained)",) if config and not row else ())


def test_a_class_of_the_table_is_known_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its full name as by the short one."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("torch.nn.modules.linear.Linear", "torch.nn.Linear"):
        assert object_type(name).name == "torch.nn.modules.linear.Linear"
