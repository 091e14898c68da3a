"""Configs for a row: those that it takes, and some that it does not take and has to refuse.

Which config a row takes is asked of the table, as :meth:`torchquilt.Capabilities.supports` does for users.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch

from torchquilt.errors import SpecError
from torchquilt.spec.config import QuantizationConfig
from torchquilt.spec.qspec import Granularity, QuantizationSpec
from torchquilt.support.allowed_spec import AllowedSpec
from torchquilt.support.table import Sharing, SupportRow

# A row with more combinations than this is tried with each of its specs, though not with all pairs of them.
_MOST_CONFIGS = 8

# Where a row takes every size of group, or does not say which axis.
_GROUP_SIZE = 8
_AXIS = 0

# More of them disappear in the rounding of float32.
_MOST_BITS = 16

# What is asked of a row that does not take it: of each kind of spec one that is common somewhere.
_COMMON_SPECS = (
    QuantizationSpec("int8"),
    QuantizationSpec("uint8"),
    QuantizationSpec("int16"),
    QuantizationSpec("int8", symmetric=True),
    QuantizationSpec("int8", -8, 7, symmetric=True),
    QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=0, symmetric=True),
    QuantizationSpec("int8", -8, 7, "per_group", group_size=_GROUP_SIZE, symmetric=True),
    QuantizationSpec("int8", is_dynamic=True),
    QuantizationSpec("int8", granularity="per_token", is_dynamic=True),
)


def specs_of(allowed: AllowedSpec) -> tuple[QuantizationSpec, ...]:
    """A spec for each granularity, symmetry and group size that a family allows, with its widest range."""
    symmetries = (False, True) if allowed.symmetric is None else (allowed.symmetric,)
    found = []
    for granularity, symmetric in itertools.product(allowed.granularities, symmetries):
        per_group = granularity == Granularity.PER_GROUP
        for group_size in (allowed.group_sizes or (_GROUP_SIZE,)) if per_group else (None,):
            try:
                spec = QuantizationSpec(
                    allowed.dtype,
                    allowed.quant_min,
                    allowed.quant_max,
                    granularity,
                    symmetric=symmetric,
                    is_dynamic=allowed.is_dynamic,
                    ch_axis=_axis(allowed) if granularity == Granularity.PER_AXIS else None,
                    group_size=group_size,
                    zero_point_domain=allowed.zero_point_domain,
                )
            except SpecError:
                continue  # no spec can say this combination, so no rule can ask for it
            found.append(spec)
    return tuple(found)


def _axis(allowed: AllowedSpec) -> int:
    return _AXIS if allowed.ch_axis is None else allowed.ch_axis


def configs_of(row: SupportRow) -> tuple[QuantizationConfig, ...]:
    """Configs that a row takes; each of its specs is in at least one of them."""
    roles = [role for role, _ in row.specs]
    choices = [[spec for option in allowed for spec in specs_of(option)] for _, allowed in row.specs]
    if not all(choices):
        return ()
    each = [tuple(options[i % len(options)] for options in choices) for i in range(max(map(len, choices)))]
    combinations = dict.fromkeys([*each, *itertools.islice(itertools.product(*choices), _MOST_CONFIGS)])
    configs = [_config(dict(zip(roles, specs, strict=True))) for specs in combinations]
    return tuple(config for config in configs if _agrees(row, config))


def _config(specs: dict[str, Any]) -> QuantizationConfig:
    return QuantizationConfig(**specs)


def _agrees(row: SupportRow, config: QuantizationConfig) -> bool:
    """Whether tensors that share parameters are asked for with one spec."""
    if row.sharing is Sharing.NONE:
        return True
    return config.output_activation in (None, config.input_activation)


def near_misses(row: SupportRow) -> Iterator[QuantizationConfig]:
    """Configs that a row does not take and that differ from one that it takes in a single role."""
    for taken in configs_of(row)[:1]:
        for role in row.pattern.roles:
            for spec in (None, *_COMMON_SPECS):
                change: dict[str, Any] = {role: spec}
                try:
                    config = attrs.evolve(taken, **change)
                except SpecError:
                    continue  # what cannot be said cannot be asked for
                if row.differences(config):
                    yield config


def group_size(config: QuantizationConfig) -> int:
    """The size of the groups of a weight, 1 where it has none."""
    return (config.weight.group_size if config.weight else None) or 1


def least_sqnr(row: SupportRow, config: QuantizationConfig, dtypes: Iterable[torch.dtype]) -> float:
    """The signal to quantization noise ratio, in dB, that a row has to reach with the kit's data.

    A tensor that fills the range of ``b`` bits evenly has a ratio of 6.02 dB a bit (Bennett 1948, "Spectra of
    quantized signals"). The fewest bits of any role decide, or those of the float numbers that are computed
    with, if they are fewer. 12 dB, two bits, are granted for tensors that do not fill their range and for
    several of them being quantized at once; clipping costs more.

    Args:
        row: the row.
        config: what it is asked for.
        dtypes: the types of the model's tensors; integers do not count.
    """
    specs = [config.spec(role) for role, _ in row.specs]
    bits = [spec.bits for spec in specs if spec is not None]
    precisions = [-math.log2(torch.finfo(dtype).eps) for dtype in dtypes if dtype.is_floating_point]
    return 6.02 * min(*bits, _MOST_BITS, *precisions) - 12
