"""What is supported, as plain data: the answer to ``quantization_capabilities()``.

The rows are made from the support tables that annotation is done from (:mod:`torchquilt.support`), so
that neither can drift from the other.

Importing this module does not import torch, and a query needs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeAlias

import attrs

from torchquilt.config import QuantizationConfig
from torchquilt.errors import PatternError
from torchquilt.operators import ObjectType, object_type
from torchquilt.spec import INTEGER_RANGES, QuantizationSpec, dtype_name

#: Version of the JSON that :meth:`Capabilities.to_json` writes.
JSON_SCHEMA = 1


@attrs.frozen(cache_hash=True)
class AllowedSpec:
    """A family of specs that a backend takes for one role.

    Args:
        dtype: name of the integer dtype, ``"int8"``.
        quant_min, quant_max: the widest range; a spec may use any part of it.
        granularities: the values of :class:`torchquilt.spec.Granularity` that are taken.
        symmetric: required symmetry, or None where both are taken.
        is_dynamic: whether parameters are found at run time.
        ch_axis: the axis for ``per_axis``.
        group_sizes: the sizes for ``per_group``; empty: every size.
        zero_point_domain: ``"int"`` or ``"float"``.
        exact_range: a spec must use all of the range.
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
        """What of ``spec`` is not as it is here, a short text each; empty where the spec is taken."""
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
        return tuple(found)

    def __str__(self) -> str:
        words = [self.dtype, "|".join(self.granularities)]
        if self.symmetric is not None:
            words.append("symmetric" if self.symmetric else "affine")
        if self.is_dynamic:
            words.append("dynamic")
        if (self.quant_min, self.quant_max) != INTEGER_RANGES.get(self.dtype):
            words.append(f"[{self.quant_min}, {self.quant_max}]")
        return " ".join(words)


#: For each quantized role, in the order of roles, the specs that are taken.
SpecsByRole: TypeAlias = tuple[tuple[str, tuple[AllowedSpec, ...]], ...]


@lru_cache(maxsize=4096)  # asked again at every node for a few rows and configs
def differences_of(
    specs: SpecsByRole,
    roles: tuple[str, ...],
    is_qat: bool,
    config: QuantizationConfig,
) -> tuple[str, ...]:
    """What of a config a row does not take. Nothing that concerns the row's tensors is ignored."""
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
    if config.is_qat != is_qat:
        found.append(f"is_qat={config.is_qat} (takes {is_qat})")
    return tuple(found)


@attrs.frozen
class Capability:
    """One row of support as plain data: what a query returns.

    Args:
        backend: who does it.
        pattern: name of the operator pattern.
        operators: names of its operators in order.
        overloads: the ATen overloads of its first operator, which does the work.
        functionals, modules: the other names of that operator.
        roles: the roles of the tensors around the pattern.
        mode: ``static``, ``dynamic`` or ``weight_only``.
        specs: for each quantized role, the specs that are taken.
        sharing: see :class:`Sharing`.
        constraints: ``(code, text)`` of each condition besides.
        targets: the lowering targets on which it runs as integers.
        is_qat: whether it is for quantization-aware training.
        scope: where in the model it applies, in words; empty where the answer is not about a model.
    """

    backend: str
    pattern: str
    operators: tuple[str, ...]
    overloads: tuple[str, ...]
    functionals: tuple[str, ...]
    modules: tuple[str, ...]
    roles: tuple[str, ...]
    mode: str
    specs: SpecsByRole
    sharing: str = "none"
    constraints: tuple[tuple[str, str], ...] = ()
    targets: tuple[str, ...] = ()
    is_qat: bool = False
    scope: str = ""

    def is_about(self, subject: ObjectType) -> bool:
        """Whether the working operator of the pattern is the one that is meant."""
        if subject.kind == "module":
            return subject.name in self.modules
        return any(overload in self.overloads for overload in subject.overloads)

    def differences(self, config: QuantizationConfig) -> tuple[str, ...]:
        """What of ``config`` this row does not take; empty where it takes all of it."""
        return differences_of(self.specs, self.roles, self.is_qat, config)

    def spec_text(self) -> str:
        """The specs in one line."""
        return "; ".join(f"{role}: {' | '.join(map(str, specs))}" for role, specs in self.specs)


@attrs.frozen
class Support:
    """The answer to "is this supported?"; true or false by itself.

    Args:
        capability: the row that takes it, or the nearest one that does not; None where no row is
            about the operator at all.
        differences: what of the config the nearest row does not take; empty where it is supported.
    """

    capability: Capability | None
    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.capability is not None and not self.differences

    def __str__(self) -> str:
        if self.capability is None:
            return "no: no backend here has a row for this operator"
        row = f"{self.capability.pattern} ({self.capability.mode}) of {self.capability.backend}"
        return f"yes: {row}" if self else f"no: nearest is {row}, but {'; '.join(self.differences)}"


@attrs.frozen
class Capabilities:
    """What one or several backends support, in order of precedence: the first one that takes a thing wins.

    A sequence of :class:`Capability`. ``a | b`` puts the rows of ``b`` behind those of ``a`` and keeps
    who owns each; it is associative, and a row that is there already is not repeated.
    """

    rows: tuple[Capability, ...] = ()

    def __iter__(self) -> Iterator[Capability]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __or__(self, other: Capabilities) -> Capabilities:
        if not isinstance(other, Capabilities):
            return NotImplemented
        return Capabilities(tuple(dict.fromkeys((*self.rows, *other.rows))))

    @property
    def backends(self) -> tuple[str, ...]:
        """Who owns the rows, in order of precedence."""
        return tuple(dict.fromkeys(row.backend for row in self.rows))

    def filter(
        self,
        op: object = None,
        *,
        backend: str | None = None,
        mode: str | None = None,
        dtype: object = None,
        target: str | None = None,
    ) -> Capabilities:
        """The rows that fit all that is given.

        Args:
            op: a module class, a functional, an ATen overload or packet, or the name of one of these;
                rows whose working operator it is.
            backend: name of the owner.
            mode: ``static``, ``dynamic`` or ``weight_only``.
            dtype: a ``torch.dtype`` or its name; rows that use it for some role.
            target: a lowering target on which the row runs as integers.

        Raises:
            IntentError: ``op`` is nothing that a row can be about.
        """
        subject = None if op is None else object_type(op)
        wanted = None if dtype is None else dtype_name(dtype)

        def fits(row: Capability) -> bool:
            return (
                (subject is None or row.is_about(subject))
                and backend in (None, row.backend)
                and mode in (None, row.mode)
                and (wanted is None or any(s.dtype == wanted for _, specs in row.specs for s in specs))
                and (target is None or target in row.targets)
            )

        return Capabilities(tuple(row for row in self.rows if fits(row)))

    def supports(self, op: object, config: QuantizationConfig) -> Support:
        """Whether some row takes this operator with this config, and if none does, what the nearest lacks.

        Args:
            op: as in :meth:`filter`.
            config: what would be asked.
        """
        answers = [Support(row, row.differences(config)) for row in self.filter(op)]
        return min(answers, key=lambda answer: len(answer.differences), default=Support(None, ()))

    @property
    def content_hash(self) -> str:
        """SHA-256 of the rows, in hexadecimal; equal for equal capabilities, on every machine."""
        return hashlib.sha256(self._dumped(indent=None).encode()).hexdigest()

    def to_json(self) -> str:
        """The rows as JSON text, with a schema version."""
        return self._dumped(indent=1)

    def _dumped(self, indent: int | None) -> str:
        """JSON text, for people with line breaks; without them it is written ten times as fast."""
        rows = [attrs.asdict(row) for row in self.rows]
        return json.dumps({"schema": JSON_SCHEMA, "rows": rows}, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Capabilities:
        """The inverse of :meth:`to_json`; needs no torch.

        Raises:
            PatternError: the text is of another schema version, or not such JSON at all.
        """
        try:
            data = json.loads(text)
            if data["schema"] == JSON_SCHEMA:
                return cls(tuple(_capability_from(row) for row in data["rows"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PatternError("This is not JSON of capabilities.", got=repr(error)) from error
        raise PatternError(
            "These capabilities are of another schema version.",
            expected=JSON_SCHEMA,
            got=data["schema"],
            remedy="read them with the torchquilt that wrote them",
        )

    def __str__(self) -> str:
        """A table for a terminal: who, what, when, with which specs."""
        if not self.rows:
            return "no capabilities"
        scoped = any(row.scope for row in self.rows)
        header = ("backend", "pattern", "mode", *(("where",) if scoped else ()), "specs")
        lines = [
            (row.backend, row.pattern, row.mode, *((row.scope,) if scoped else ()), row.spec_text())
            for row in self.rows
        ]
        return aligned([header, *lines])


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as text in columns, a rule below the first row; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    rows = [rows[0], tuple("-" * width for width in (*widths, len(rows[0][-1]))), *rows[1:]]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def _capability_from(data: dict[str, Any]) -> Capability:
    """A row from JSON, whose lists become tuples again so that rows compare and hash."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    values["constraints"] = tuple((code, text) for code, text in data["constraints"])
    values["specs"] = tuple(
        (role, tuple(_allowed_from(spec) for spec in specs)) for role, specs in data["specs"]
    )
    return Capability(**values)


def _allowed_from(data: dict[str, Any]) -> AllowedSpec:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return AllowedSpec(**values)
