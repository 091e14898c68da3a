"""QuantizationConfig: a spec for each role, and what a role cannot have."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

import torchquilt as tq
from strategies import INT8, WEIGHT, name_of

Config = tq.QuantizationConfig
DYNAMIC = tq.QuantizationSpec("int8", granularity="per_token", is_dynamic=True)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (Config(input_activation=INT8, output_activation=INT8, weight=WEIGHT), "static"),
        (Config(output_activation=INT8), "static"),
        (Config(input_activation=DYNAMIC, weight=WEIGHT), "dynamic"),
        (Config(weight=WEIGHT), "weight_only"),
        (Config(bias=INT8), "weight_only"),
    ],
)
def test_the_mode_says_when_activations_are_measured(config: tq.QuantizationConfig, mode: str) -> None:
    """static, dynamic or weight_only follows from the specs; it is the first word when printed."""
    assert config.mode == mode
    assert str(config).startswith(mode)


@pytest.mark.parametrize("role", ["output_activation", "weight", "bias"])
def test_only_the_input_can_be_dynamic(role: str) -> None:
    """Parameters found at run time exist for the input alone; the error names the role."""
    with pytest.raises(tq.SpecError) as caught:
        Config(**{role: DYNAMIC})
    assert caught.value.field == role


@pytest.mark.parametrize("role", ["input_activation", "output_activation", "weight", "bias"])
@pytest.mark.parametrize("value", ["int8", 8, tq.FixedQParamsQuantizationSpec("int8", 1.0, 0)], ids=name_of)
def test_a_role_takes_a_spec_of_ours(role: str, value: Any) -> None:
    """Anything else is refused, with the type that was found."""
    with pytest.raises(tq.SpecError) as caught:
        Config(**{role: value})
    assert caught.value.field == role
    assert type(value).__name__ in str(caught.value.got)


def test_a_spec_of_torchao_is_refused() -> None:
    """The error says whose it is."""
    module = importlib.import_module("torchao.quantization.pt2e.quantizer")
    foreign = module.SharedQuantizationSpec(None)
    with pytest.raises(tq.SpecError) as caught:
        Config(weight=foreign)
    assert "torchao" in str(caught.value.got)


def test_a_config_of_nothing_is_refused() -> None:
    """Leaving in float is said by None in place of a config."""
    with pytest.raises(tq.SpecError, match="quantizes nothing") as caught:
        Config()
    assert "None" in str(caught.value.remedy)


def test_configs_are_values() -> None:
    """Equal specs make equal, hashable, frozen configs."""
    one, other = Config(weight=WEIGHT), Config(weight=WEIGHT)
    assert one == other
    assert len({one, other, Config(weight=INT8)}) == 2
    with pytest.raises(AttributeError):
        one.weight = INT8  # type: ignore[misc]


def test_a_config_is_printed_with_its_specs() -> None:
    """A printed config shows the spec of each role."""
    text = str(Config(input_activation=DYNAMIC, weight=WEIGHT))
    assert f"input_activation: {DYNAMIC}" in text
    assert f"weight: {WEIGHT}" in text
    assert "output" not in text
