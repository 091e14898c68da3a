"""The support table of a backend, which both answers the query and drives the annotation.

:class:`torchquilt.PatternQuantizer` matches its rows and annotates from them.
:meth:`SupportTable.capabilities` returns the rows as plain data.

Importing this module does not import torch.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import attrs

from torchquilt.errors import PatternError
from torchquilt.spec.arithmetic_limits import ArithmeticLimits
from torchquilt.spec.config import ROLES, Mode, QuantizationConfig
from torchquilt.support.allowed_spec import AllowedSpec, SpecsByRole, differences_of
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.capability_row import Capability
from torchquilt.support.object_type import ObjectType
from torchquilt.support.operators import Operator
from torchquilt.support.pattern import Match, OperatorPattern

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: A function that writes a match in another form, see :class:`SupportRow`.
Rewrite: TypeAlias = "Callable[[GraphModule, Match], None]"

_NO_PRESETS: Mapping[str, QuantizationConfig] = MappingProxyType({})


@attrs.frozen
class Constraint:
    """A condition on a match, beyond its operators and specs.

    Args:
        code: stable code; a match that fails is rejected with ``constraint:<code>``.
        text: the condition in words, to be read after "only if": ``the batch has one sample``. Tables and
            rejections show it.
        holds: the condition. It reads the match, and must not write.
        found: the words for what a failing match has instead, to be read after a semicolon: ``it has 16``.
    """

    code: str
    text: str
    holds: Callable[[Match], bool]
    found: Callable[[Match], str] | None = None

    def rejection(self, match: Match) -> str:
        """Explain a failing match: the condition, and what the match has instead."""
        found = self.found(match) if self.found is not None else ""
        return f"{match.pattern.name}: only if {self.text}" + (f"; {found}" if found else "")


class Sharing(str, enum.Enum):
    """Sharing of parameters between a match's inputs and output."""

    NONE = "none"  #: every tensor has its own parameters
    OUTPUT_AS_INPUT = "output_as_input"  #: the output has the parameters of the first input
    ALL = "all"  #: all inputs and the output have one set of parameters (``cat``)
    #: like OUTPUT_AS_INPUT, but only if the input is quantized already
    FOLLOWS_INPUT = "follows_input"

    def __str__(self) -> str:
        return self.value


def _by_role(specs: Mapping[str, Iterable[AllowedSpec]] | SpecsByRole) -> SpecsByRole:
    """Specs in the order of roles. Takes its own result, too, as ``attrs.evolve`` needs."""
    specs = dict(specs)
    unknown = set(specs) - set(ROLES)
    if unknown:
        raise PatternError(
            "A support row gives specs for a role that does not exist.",
            expected=" | ".join(ROLES),
            got=", ".join(sorted(unknown)),
        )
    return tuple((role, tuple(specs[role])) for role in ROLES if role in specs)


def _to_tuple(rewrite: Rewrite | Iterable[Rewrite]) -> tuple[Rewrite, ...]:
    return (rewrite,) if callable(rewrite) else tuple(rewrite)


@attrs.frozen
class SupportRow:
    """One thing that a backend can do: a pattern, with its specs and conditions.

    Args:
        pattern: the operators to match.
        specs: the allowed specs of each role that is quantized. A role of the pattern that is missing here
            stays in float.
        sharing: the tensors that share quantization parameters.
        constraints: conditions on the match.
        targets: lowering targets on which the row runs as integers.
        channel_axis: the axis of the weight that a config's axis 0 means (1 for transposed conv).
        one_range_for_input: whether dynamic kernels find one set of parameters for the whole input, as for a
            convolution. Then ``per_token`` in a config means ``per_tensor``: the input is one token.
        profitable_alone: whether converting tensors for it alone is profitable, see
            :mod:`torchquilt.quantizers.profitability`.
        may_return_float: whether its kernels return floats as well. Then its output has quantization
            parameters only where an operator reads its integers, or where it is an output of the program, see
            :mod:`torchquilt.quantizers.float_outputs`.
        limits: limits of the integers in its kernels. Convert raises scales until the limits hold.
        rewrite: a function, or several to call in turn, that writes a claimed match in the form that the
            backend wants: operators that compute the same, and that the table has rows for. It takes the
            model and the match, and edits with functions of :mod:`torchquilt.backend`. It leaves a match
            alone that already has the form.
        is_qat: whether what it quantizes can be trained (:func:`torchquilt.prepare_qat_pt2e`), too.
    """

    pattern: OperatorPattern
    specs: SpecsByRole = attrs.field(converter=_by_role)
    sharing: Sharing = Sharing.NONE
    constraints: tuple[Constraint, ...] = ()
    targets: tuple[str, ...] = ()
    channel_axis: int = 0
    one_range_for_input: bool = attrs.field(default=False, kw_only=True)
    profitable_alone: bool = attrs.field(default=True, kw_only=True)
    may_return_float: bool = attrs.field(default=False, kw_only=True)
    limits: ArithmeticLimits | None = attrs.field(default=None, kw_only=True)
    rewrite: tuple[Rewrite, ...] = attrs.field(default=(), converter=_to_tuple, kw_only=True)
    is_qat: bool = True

    @property
    def mode(self) -> Mode:
        """``static``, ``dynamic`` or ``weight_only``."""
        allowed = dict(self.specs)
        if "input_activation" not in allowed and "output_activation" not in allowed:
            return "weight_only"
        if any(spec.is_dynamic for spec in allowed.get("input_activation", ())):
            return "dynamic"
        return "static"

    def differences(self, config: QuantizationConfig) -> tuple[str, ...]:
        """List the parts of ``config`` that this row does not take; empty where it takes all of it."""
        return differences_of(self.specs, self.pattern.roles, self.is_qat, config)

    def describe(
        self,
        backend: str,
        config: QuantizationConfig | None = None,
        scope: str = "",
        presets: Mapping[str, QuantizationConfig] = _NO_PRESETS,
    ) -> Capability:
        """The row as plain data.

        Args:
            backend: name of the backend.
            config: a config that the row takes; the description then has the specs of this config alone.
            scope: where in a model it applies, in words.
            presets: the presets of the backend; the description names those that the row takes.
        """
        working = self.pattern.working
        specs = self.specs
        if config is not None:
            asked = [(role, config.spec(role)) for role, _ in specs]
            specs = tuple((role, (AllowedSpec.of(spec),)) for role, spec in asked if spec is not None)
        return Capability(
            backend=backend,
            pattern=self.pattern.name,
            operators=tuple(operator.name for operator in self.pattern.operators),
            overloads=working.overloads,
            functionals=working.functionals,
            modules=working.modules,
            anchor_index=self.pattern.anchor_index,
            roles=self.pattern.roles,
            mode=self.mode,
            specs=specs,
            sharing=str(self.sharing),
            constraints=tuple((constraint.code, constraint.text) for constraint in self.constraints),
            targets=self.targets,
            is_qat=self.is_qat,
            scope=scope,
            limits=() if self.limits is None else self.limits.stated,
            presets=tuple(name for name, preset in presets.items() if self._is_asked_by(preset, config)),
        )

    def _is_asked_by(self, preset: QuantizationConfig, config: QuantizationConfig | None) -> bool:
        """Whether a preset asks the row for something, and for the same as ``config`` where that is given."""
        same = config is None or all(preset.spec(role) == config.spec(role) for role in self.pattern.roles)
        return same and not self.differences(preset)


@attrs.frozen
class Refusal:
    """An operator that users will ask about, and that a backend cannot support.

    Args:
        operator: the operator.
        text: one sentence that names what is missing, without a full stop.
    """

    operator: Operator
    text: str

    def is_about(self, kind: ObjectType) -> bool:
        """Whether a rule about this type is about the operator."""
        names = (*self.operator.functionals, *self.operator.modules)
        return kind.name in names or not set(kind.overloads).isdisjoint(self.operator.overloads)


@attrs.frozen
class SupportTable:
    """All rows of a backend. Longer patterns are tried first; among equally long ones, the order here counts.

    Args:
        backend: name of the backend, as in its plugin manifest.
        rows: the rows.
        refusals: operators without a row, with the reason that the ledger and errors give.
    """

    backend: str
    rows: tuple[SupportRow, ...]
    refusals: tuple[Refusal, ...] = ()

    def __attrs_post_init__(self) -> None:
        seen: set[tuple[object, ...]] = set()
        for row in self.rows:
            key = (row.pattern.name, row.mode)
            if key in seen:
                raise PatternError(
                    f"The table of {self.backend} has two rows for one pattern and mode.",
                    expected="one row for each pattern and mode; several specs go into one row",
                    got=f"pattern {row.pattern.name}, mode {row.mode}, twice",
                )
            seen.add(key)

    def refusal_of(self, kind: ObjectType) -> Refusal | None:
        """The reason that the backend states for having no row for a type, or None."""
        return next((refusal for refusal in self.refusals if refusal.is_about(kind)), None)

    def rows_starting_with(self) -> dict[str, tuple[SupportRow, ...]]:
        """Overload of the first operator → rows, the longest pattern first."""
        index: dict[str, list[SupportRow]] = {}
        for row in sorted(self.rows, key=lambda row: -len(row.pattern.operators)):
            for overload in row.pattern.first_overloads:
                index.setdefault(overload, []).append(row)
        return {overload: tuple(rows) for overload, rows in index.items()}

    def capabilities(self, presets: Mapping[str, QuantizationConfig] = _NO_PRESETS) -> Capabilities:
        """All that the backend can do, as plain data.

        Args:
            presets: name → config; each row names those that it takes. The table itself has none.
        """
        return Capabilities(tuple(row.describe(self.backend, presets=presets) for row in self.rows))
