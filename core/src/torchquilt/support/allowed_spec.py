"""Families of specs that a backend takes, and what of a config lies outside of them.

Importing this module does not import torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import attrs

from torchquilt.spec.config import QuantizationConfig, Role
from torchquilt.spec.dtypes import INTEGER_RANGES, dtype_name
from torchquilt.spec.qspec import QuantizationSpec


@attrs.frozen(cache_hash=True)
class AllowedSpec:
    """A family of specs that a backend takes for one role.

    Args:
        dtype: name of the integer dtype, ``"int8"``.
        quant_min, quant_max: the widest range; a spec may use any part of it.
        granularities: the values of :class:`torchquilt.spec.qspec.Granularity` that are taken.
        symmetric: required symmetry, or None where both are taken.
        is_dynamic: whether parameters are found at run time.
        ch_axis: the axis for ``per_axis``.
        group_sizes: the sizes for ``per_group``; empty: every size.
        zero_point_domain: ``"int"`` or ``"float"``.
        exact_range: a spec must use all of the range.
        excluded_ranges: ranges within this one that a spec must not use, since they mean something else to
            the backend (-8..7 in int8 is a weight of 4 bits).
    """

    dtype: str
    quant_min: int
    quant_max: int
    granularities: tuple[str, ...]
    symmetric: bool | None = None
    is_dynamic: bool = False
    ch_axis: int | None = None
    group_sizes: tuple[int, ...] = ()
    zero_point_domain: str = "int"
    exact_range: bool = False
    excluded_ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, spec: QuantizationSpec) -> AllowedSpec:
        """The family that holds this one spec."""
        return cls(
            dtype_name(spec.dtype),
            spec.quant_min,
            spec.quant_max,
            (str(spec.granularity),),
            symmetric=spec.symmetric,
            is_dynamic=spec.is_dynamic,
            ch_axis=spec.ch_axis,
            group_sizes=() if spec.group_size is None else (spec.group_size,),
            zero_point_domain=str(spec.zero_point_domain),
            exact_range=True,
        )

    def differences(self, spec: QuantizationSpec) -> tuple[str, ...]:
        """List the fields of ``spec`` that differ from here, a short text each; empty where the spec is
        taken.
        """
        found = []

        def compare(field: str, expected: object, got: object) -> None:
            if expected != got:
                found.append(f"{field}={got} (takes {expected})")

        compare("dtype", self.dtype, dtype_name(spec.dtype))
        compare("is_dynamic", self.is_dynamic, spec.is_dynamic)
        if str(spec.granularity) not in self.granularities:
            found.append(f"granularity={spec.granularity} (takes {' or '.join(self.granularities)})")
        if self.symmetric is not None:
            compare("symmetric", self.symmetric, spec.symmetric)
        if spec.ch_axis is not None and self.ch_axis is not None:
            compare("ch_axis", self.ch_axis, spec.ch_axis)
        if self.group_sizes and spec.group_size is not None and spec.group_size not in self.group_sizes:
            found.append(f"group_size={spec.group_size} (takes {' or '.join(map(str, self.group_sizes))})")
        compare("zero_point_domain", self.zero_point_domain, str(spec.zero_point_domain))
        given, widest = (spec.quant_min, spec.quant_max), (self.quant_min, self.quant_max)
        outside = given[0] < widest[0] or given[1] > widest[1]
        if given != widest if self.exact_range else outside:
            kind = "exactly" if self.exact_range else "within"
            found.append(f"range=[{given[0]}, {given[1]}] (takes {kind} [{widest[0]}, {widest[1]}])")
        elif given in self.excluded_ranges:
            found.append(
                f"range=[{given[0]}, {given[1]}] (takes any other within [{widest[0]}, {widest[1]}])"
            )
        return tuple(found)

    @property
    def bits(self) -> int:
        """Bits that the widest range needs (4 for -8..7 in int8)."""
        return (self.quant_max - self.quant_min).bit_length()

    def __str__(self) -> str:
        sizes = f"({'|'.join(map(str, self.group_sizes))})" if self.group_sizes else ""
        words = [self.dtype, "|".join(g + sizes * (g == "per_group") for g in self.granularities)]
        if self.symmetric is not None:
            words.append("symmetric" if self.symmetric else "affine")
        if self.is_dynamic:
            words.append("dynamic")
        if (self.quant_min, self.quant_max) != INTEGER_RANGES.get(self.dtype):
            words.append(f"[{self.quant_min}, {self.quant_max}]")
        return " ".join(words)


#: For each quantized role, in the order of roles, the specs that are taken.
SpecsByRole: TypeAlias = tuple[tuple[Role, tuple[AllowedSpec, ...]], ...]


@lru_cache(maxsize=4096)  # asked again at every node for a few rows and configs
def differences_of(
    specs: SpecsByRole,
    roles: tuple[Role, ...],
    is_qat: bool,
    config: QuantizationConfig,
) -> tuple[str, ...]:
    """List the parts of a config that a row does not take. Nothing that concerns the row's tensors is
    ignored.
    """
    allowed = dict(specs)
    found = []
    for role in roles:
        spec = config.spec(role)
        if spec is None and role in allowed:
            found.append(f"{role}=None (takes {' or '.join(map(str, allowed[role]))})")
        elif spec is not None and role not in allowed:
            found.append(f"{role}={spec} (stays in float)")
        elif spec is not None:
            differences = [option.differences(spec) for option in allowed[role]]
            if all(differences):
                found.extend(f"{role}: {text}" for text in min(differences, key=len))
    if config.is_qat and not is_qat:
        found.append("is_qat=True (cannot be trained)")
    return tuple(found)
