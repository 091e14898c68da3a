"""Specs: what makes no sense is refused when it is made, and what makes sense is a value."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given

import torchquilt as tq
from strategies import specs
from torchquilt.spec.dtypes import INTEGER_RANGES
from torchquilt.spec.qspec import FLOAT32_EPS, Granularity, ZeroPointDomain

Spec = tq.QuantizationSpec

# What is passed → the field that is at fault, what it got, and a part of what would do.
REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "empty range": ({"quant_min": 5, "quant_max": 4}, "quant_min", "5", "quant_min < quant_max"),
    "one number": ({"quant_min": 5, "quant_max": 5}, "quant_min", "5", "quant_min < quant_max"),
    "below int8": ({"quant_min": -129}, "quant_min", "-129", "-128"),
    "above int8": ({"quant_max": 128}, "quant_max", "128", "127"),
    "below uint8": ({"dtype": "uint8", "quant_min": -1}, "quant_min", "-1", "0"),
    "above uint16": ({"dtype": torch.uint16, "quant_max": 2**16}, "quant_max", "65536", "65535"),
    "range as float": ({"quant_min": -8.0, "quant_max": 7}, "quant_min", "-8.0", "int"),
    "range as bool": ({"quant_min": False, "quant_max": 7}, "quant_min", "False", "int"),
    "float dtype": ({"dtype": torch.float32}, "dtype", "float32", "torch.int8"),
    "int64": ({"dtype": torch.int64}, "dtype", "int64", "torch.int8"),
    "int4 as text": ({"dtype": "int4"}, "dtype", "int4", "torch.int8"),
    "no dtype": ({"dtype": None}, "dtype", "None", "torch.int8"),
    "unknown granularity": ({"granularity": "per_channel"}, "granularity", "per_channel", "per_axis"),
    "granularity in capitals": ({"granularity": "PER_TENSOR"}, "granularity", "PER_TENSOR", "per_tensor"),
    "unknown domain": ({"zero_point_domain": "none"}, "zero_point_domain", "none", "float"),
    "group size per tensor": ({"group_size": 32}, "group_size", "32", "per_group"),
    "axis per tensor": ({"ch_axis": 0}, "ch_axis", "0", "per_axis"),
    "axis per group": (
        {"granularity": "per_group", "group_size": 4, "ch_axis": 0},
        "ch_axis",
        "0",
        "per_axis",
    ),
    "per axis without axis": ({"granularity": "per_axis"}, "ch_axis", "None", "per_axis"),
    "per group without size": ({"granularity": "per_group"}, "group_size", "None", "per_group"),
    "axis as text": ({"granularity": "per_axis", "ch_axis": "0"}, "ch_axis", "'0'", "int"),
    "axis as bool": ({"granularity": "per_axis", "ch_axis": True}, "ch_axis", "True", "int"),
    "group of none": ({"granularity": "per_group", "group_size": 0}, "group_size", "0", "int"),
    # quantize_per_channel_group takes no groups of one element.
    "group of one": ({"granularity": "per_group", "group_size": 1}, "group_size", "1", "int"),
    "group as bool": ({"granularity": "per_group", "group_size": True}, "group_size", "True", "int"),
    "group as float": ({"granularity": "per_group", "group_size": 32.0}, "group_size", "32.0", "int"),
    "per token static": ({"granularity": "per_token"}, "is_dynamic", "False", "is_dynamic=True"),
    "per axis dynamic": (
        {"granularity": "per_axis", "ch_axis": 0, "is_dynamic": True},
        "granularity",
        "per_axis",
        "per_token",
    ),
    "per group dynamic": (
        {"granularity": "per_group", "group_size": 4, "is_dynamic": True},
        "granularity",
        "per_group",
        "per_token",
    ),
    "per token of part of int8": (
        {"granularity": "per_token", "is_dynamic": True, "quant_min": -8, "quant_max": 7},
        "quant_min",
        "-8",
        "-128",
    ),
    "per token of uint8": (
        {"granularity": "per_token", "is_dynamic": True, "dtype": "uint8"},
        "dtype",
        "uint8",
        "int8",
    ),
    "per token symmetric": (
        {"granularity": "per_token", "is_dynamic": True, "symmetric": True},
        "symmetric",
        "True",
        "symmetric=False",
    ),
    "uint16 per axis": (
        {"granularity": "per_axis", "ch_axis": 0, "dtype": "uint16"},
        "granularity",
        "per_axis",
        "per_tensor",
    ),
    "uniform per tensor": ({"uniform": True}, "uniform", "per_tensor", "per_axis"),
    "symmetric int8 with a zero point": ({"symmetric": True, "zero_point": 3}, "zero_point", "3", "0"),
    "symmetric uint8 with another": (
        {"dtype": "uint8", "symmetric": True, "zero_point": 0},
        "zero_point",
        "0",
        "128",
    ),
    "affine with a zero point": ({"zero_point": 0}, "zero_point", "0", "None"),
    "symmetric without zero": (
        {"symmetric": True, "quant_min": 1, "quant_max": 9},
        "quant_min",
        "1",
        "0",
    ),
    "float zero point, symmetric": (
        {"symmetric": True, "zero_point_domain": "float"},
        "zero_point_domain",
        "float",
        "int",
    ),
    "eps of zero": ({"eps": 0.0}, "eps", "0.0", "0 < eps"),
    "eps below zero": ({"eps": -1e-5}, "eps", "-1e-05", "0 < eps"),
    "eps of infinity": ({"eps": float("inf")}, "eps", "inf", "0 < eps"),
    "eps of nan": ({"eps": float("nan")}, "eps", "nan", "0 < eps"),
    "eps as text": ({"eps": "small"}, "eps", "small", "0 < eps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_spec_that_makes_no_sense_is_refused(case: str) -> None:
    """The error names the field, what it got, and what would have been taken."""
    fields, field, got, expected = REFUSED[case]
    with pytest.raises(tq.SpecError) as caught:
        Spec(**{"dtype": "int8", **fields})
    error = caught.value
    assert error.field == field
    assert got in str(error.got)
    assert expected in str(error.expected)
    assert isinstance(error, ValueError)
    for part in (str(error.got), str(error.expected)):
        assert part in str(error)


def test_a_refusal_says_what_to_do() -> None:
    """An int4 range is had by narrowing int8, and the error says so."""
    with pytest.raises(tq.SpecError) as caught:
        Spec("int4")
    assert "quant_min=-8" in str(caught.value.remedy)


@pytest.mark.parametrize("name", INTEGER_RANGES)
def test_the_range_is_that_of_the_dtype_unless_it_is_given(name: str) -> None:
    """Each integer type comes with its whole range, by name or as torch.dtype."""
    spec = Spec(name)
    info = torch.iinfo(getattr(torch, name))
    assert (spec.quant_min, spec.quant_max) == (info.min, info.max)
    assert spec == Spec(getattr(torch, name))
    assert spec.dtype is getattr(torch, name)


@pytest.mark.parametrize(
    ("fields", "zero_point"),
    [({"dtype": "int8"}, 0), ({"dtype": "uint8"}, 128), ({"dtype": "uint8", "quant_max": 15}, 8)],
)
def test_a_symmetric_spec_has_the_zero_point_of_its_middle(fields: dict[str, Any], zero_point: int) -> None:
    """It is filled in, and giving it explicitly makes the same spec."""
    spec = Spec(**fields, symmetric=True)
    assert spec.zero_point == zero_point
    assert spec == Spec(**fields, symmetric=True, zero_point=zero_point)
    assert hash(spec) == hash(Spec(**fields, symmetric=True, zero_point=zero_point))


@given(specs(("per_tensor", "per_axis", "per_group")), specs(("per_tensor", "per_axis", "per_group")))
def test_specs_are_values(one: tq.QuantizationSpec, other: tq.QuantizationSpec) -> None:
    """Equal specs have equal hashes, a pickled one is equal, and different ones differ in some field."""
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    fields = [
        name for name in type(one).__attrs_attrs__ if getattr(one, name.name) != getattr(other, name.name)
    ]
    assert (one == other) == (not fields)
    assert len({one, other}) == (1 if one == other else 2)


def test_text_and_members_of_enums_are_the_same() -> None:
    """Words of a recipe are the enums of code."""
    words = Spec("uint8", granularity="per_axis", ch_axis=0, zero_point_domain="float")
    members = Spec(
        torch.uint8, granularity=Granularity.PER_AXIS, ch_axis=0, zero_point_domain=ZeroPointDomain.FLOAT
    )
    assert words == members
    assert words.granularity is Granularity.PER_AXIS


@pytest.mark.parametrize("field", ["dtype", "quant_min", "granularity", "symmetric", "ch_axis", "eps"])
def test_a_spec_cannot_be_changed(field: str) -> None:
    """It is frozen."""
    with pytest.raises(AttributeError):
        setattr(Spec("int8"), field, 1)


@pytest.mark.parametrize(
    ("spec", "text", "bits"),
    [
        (Spec("int8"), "int8 per_tensor affine", 8),
        (
            Spec("int8", -8, 7, "per_axis", ch_axis=0, symmetric=True),
            "int8 per_axis(0) symmetric [-8, 7]",
            4,
        ),
        (Spec("int8", granularity="per_token", is_dynamic=True), "int8 per_token affine dynamic", 8),
        (Spec("int8", granularity="per_group", group_size=32), "int8 per_group(32) affine", 8),
        (
            Spec("uint8", granularity="per_axis", ch_axis=1, zero_point_domain="float"),
            "uint8 per_axis(1) affine float zero point",
            8,
        ),
        (Spec("uint16"), "uint16 per_tensor affine", 16),
    ],
    ids=str,
)
def test_a_spec_is_printed_in_short(spec: tq.QuantizationSpec, text: str, bits: int) -> None:
    """One line that says all that is unusual; bits are those that the range needs."""
    assert str(spec) == text
    assert spec.bits == bits


def test_the_smallest_scale_is_that_of_torch() -> None:
    """Eps is float32's unless it is given."""
    assert Spec("int8").eps == FLOAT32_EPS == torch.finfo(torch.float32).eps


# ----------------------------------------------------------------------------------------------------------
# The other specs
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"scale": 0.0}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"zero_point": 128}, "zero_point"),
        ({"zero_point": -1, "quant_min": 0, "quant_max": 127}, "zero_point"),
        ({"quant_min": 3, "quant_max": 3, "zero_point": 3}, "quant_min"),
        ({"quant_max": 200}, "quant_max"),
        ({"dtype": "float16"}, "dtype"),
    ],
    ids=str,
)
def test_fixed_parameters_that_make_no_sense_are_refused(fields: dict[str, Any], field: str) -> None:
    """Scale, zero point and range have to fit together."""
    with pytest.raises(tq.SpecError) as caught:
        tq.FixedQParamsQuantizationSpec(**{"dtype": "int8", "scale": 1.0, "zero_point": 0, **fields})
    assert caught.value.field == field


def derive(qparams: Any) -> Any:
    """Those of the first source."""
    return qparams[0]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"derived_from": ()}, "derived_from"),
        ({"granularity": "per_axis"}, "granularity"),
        ({"ch_axis": 0}, "granularity"),
        ({"granularity": "per_token"}, "granularity"),
        ({"granularity": "per_group"}, "granularity"),
        ({"quant_min": 5, "quant_max": 1}, "quant_min"),
        ({"dtype": torch.int64}, "dtype"),
    ],
    ids=str,
)
def test_derived_parameters_that_make_no_sense_are_refused(fields: dict[str, Any], field: str) -> None:
    """Derived parameters need a source, and are per tensor or per axis."""
    node = torch.fx.Graph().placeholder("x")
    with pytest.raises(tq.SpecError) as caught:
        tq.DerivedQuantizationSpec(
            **{"derived_from": (node,), "derive_qparams_fn": derive, "dtype": "int32", **fields}
        )
    assert caught.value.field == field


def test_sources_may_be_given_as_a_list() -> None:
    """The list that torchao's spec takes makes the same, hashable spec."""
    node = torch.fx.Graph().placeholder("x")
    one = tq.DerivedQuantizationSpec([node], derive, "int32")  # type: ignore[arg-type]
    assert hash(one) == hash(tq.DerivedQuantizationSpec((node,), derive, "int32"))
    assert one == tq.DerivedQuantizationSpec((node,), derive, "int32")


def test_shared_specs_are_values() -> None:
    """Equal when they point to the same edge or node."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.relu.default, (x,))
    assert tq.SharedQuantizationSpec((x, y)) == tq.SharedQuantizationSpec((x, y))
    assert tq.SharedQuantizationSpec((x, y)) != tq.SharedQuantizationSpec(y)
    assert len({tq.SharedQuantizationSpec(x), tq.SharedQuantizationSpec(x)}) == 1


# ----------------------------------------------------------------------------------------------------------
# Without torch
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        "spec.qspec",
        "spec.config",
        "spec.annotation",
        "support.pattern",
        "support.operators",
        "support.capabilities",
        "intent.intent",
        "errors",
    ],
)
def test_the_contract_is_read_without_torch(module: str) -> None:
    """Importing this module of the contract does not import torch."""
    code = f"import sys, torchquilt.{module}; sys.exit('torch' in sys.modules)"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr or "torch was imported"
