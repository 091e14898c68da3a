"""Capabilities as plain data: the answer to ``quantization_capabilities()``.

The rows are made from the support tables that annotation is done from (:mod:`torchquilt.support`), so
that neither can drift from the other.

Importing this module does not import torch, and a query needs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import attrs

from torchquilt._internal.text_tables import Listing, aligned, counted, html_list, html_table
from torchquilt.allowed import AllowedSpec, SpecsByRole, differences_of
from torchquilt.errors import IntentError, PatternError
from torchquilt.operators import ObjectType, object_type
from torchquilt.spec.config import ROLES, QuantizationConfig
from torchquilt.spec.dtypes import dtype_name

#: Version of the JSON that :meth:`Capabilities.to_json` writes.
JSON_SCHEMA = 1

#: Shown where there is nothing.
_NONE = "–"


@attrs.frozen
class Capability:
    """One row of support as plain data: what a query returns.

    Args:
        backend: who does it.
        pattern: name of the operator pattern.
        operators: names of its operators in order.
        overloads: the ATen overloads of its working operator.
        functionals, modules: the other names of that operator.
        roles: the roles of the tensors around the pattern.
        mode: ``static``, ``dynamic`` or ``weight_only``.
        specs: for each quantized role, the specs that are taken.
        sharing: see :class:`Sharing`.
        constraints: ``(code, text)`` of each condition besides.
        targets: the lowering targets on which it runs as integers; on any other it does not.
        is_qat: whether it is for quantization-aware training.
        scope: where in the model it applies, in words; empty where the answer is not about a model.
        presets: names of the backend's presets whose config it takes.
        lead: how many operators stand before the working one.
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
    presets: tuple[str, ...] = ()
    lead: int = 0

    @property
    def working(self) -> str:
        """Name of the operator that does the work."""
        return self.operators[self.lead]

    def is_about(self, subject: ObjectType) -> bool:
        """Whether the working operator of the pattern is the one that is meant."""
        if subject.kind == "module":
            return subject.name in self.modules
        return any(overload in self.overloads for overload in subject.overloads)

    def differences(self, config: QuantizationConfig) -> tuple[str, ...]:
        """List the parts of ``config`` that this row does not take; empty where it takes all of it."""
        return differences_of(self.specs, self.roles, self.is_qat, config)

    def quantizes(self, role: str | None, dtype: str | None, bits: int | None) -> bool:
        """Whether one of its specs has all that is given: a role, the name of a dtype, a number of bits."""
        if role is None and dtype is None and bits is None:
            return True
        return any(
            dtype in (None, spec.dtype) and bits in (None, spec.bits)
            for name, specs in self.specs
            for spec in specs
            if role in (None, name)
        )

    @property
    def label(self) -> str:
        """Subject of the row, in a few words."""
        mode = f"{self.mode}, qat" if self.is_qat else self.mode
        where = f", {self.scope}" if self.scope else ""
        return f"{self.pattern} ({mode}) of {self.backend}{where}"

    def spec_text(self, between: str = "; ") -> str:
        """The specs in words. Roles that take the same ones stand together."""
        roles: dict[str, list[str]] = {}
        for role, specs in self.specs:
            text = " | ".join(map(str, specs))
            roles.setdefault(text, []).append(role.removesuffix("_activation"))
        return between.join(f"{', '.join(names)}: {text}" for text, names in roles.items())

    def __str__(self) -> str:
        """All that there is to say about the row, a line for each kind of thing."""
        names = (*self.modules, *self.functionals, *self.overloads)
        lines = [
            self.label,
            f"  operators: {' → '.join(self.operators)}; {self.working} is also called {', '.join(names)}",
            f"  specs: {self.spec_text()}",
            f"  runs as integers on: {', '.join(self.targets) or _NONE}",
            *([f"  presets: {', '.join(self.presets)}"] if self.presets else ()),
            *(f"  only if {text} ({code})" for code, text in self.constraints),
        ]
        return "\n".join(lines)


@attrs.frozen
class Support:
    """The answer to "is this supported?"; true or false by itself.

    Args:
        capability: the row that takes it, or the nearest one that does not; None where no row is
            about the operator at all.
        differences: why not, a short text each: what the nearest row does not take, or that there is no
            row; empty where it is supported.
        behind: the other backends that take it as well, but come later.
    """

    capability: Capability | None
    differences: tuple[str, ...]
    behind: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        why = "; ".join(self.differences)
        if self.capability is None:
            return f"no: {why}"
        if not self:
            return f"no: nearest is {self.capability.label}, but {why}"
        later = f", which comes before {' and '.join(self.behind)}" if self.behind else ""
        return f"yes: {self.capability.label}{later}"


@attrs.frozen
class Contest:
    """An operator that several backends have rows for.

    Args:
        operator: its name.
        backends: the first one keeps a node wherever a row of it applies, the next ones get what it leaves.
    """

    operator: str
    backends: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.operator}: {', then '.join(self.backends)}"


@attrs.frozen
class CapabilityChange:
    """Something that differs between two capabilities.

    Args:
        row: the label of the row; ``all rows`` where it is about their order.
        field: what of it differs, ``order`` for that; empty where one of the two has no such row.
        before, after: in words.
    """

    row: str
    field: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.row}: {self.field + ': ' if self.field else ''}{self.before} → {self.after}"


@attrs.frozen(repr=False)
class Capabilities:
    """Capabilities of one or several backends, in order of precedence: the first one that takes an operator
    wins.

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

    @property
    def contested(self) -> tuple[Contest, ...]:
        """The operators that several backends have rows for, and who comes first there."""
        name_of: dict[str, str] = {}
        owners: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for overload in row.overloads:
                name_of.setdefault(overload, row.working)
                owners.setdefault(overload, {})[row.backend] = None
        several = ((overload, tuple(names)) for overload, names in owners.items() if len(names) > 1)
        return tuple(dict.fromkeys(Contest(name_of[overload], names) for overload, names in several))

    def filter(
        self,
        op: object = None,
        *,
        backend: str | None = None,
        mode: str | None = None,
        role: str | None = None,
        dtype: object = None,
        bits: int | None = None,
        preset: str | None = None,
        target: str | None = None,
    ) -> Capabilities:
        """The rows that fit all that is given.

        Args:
            op: a module class, a functional, an ATen overload or packet, or the name of one of these;
                rows whose working operator it is. A class is that class alone, and none that derives from it.
            backend: name of the owner.
            mode: ``static``, ``dynamic`` or ``weight_only``.
            role: one of :data:`torchquilt.spec.config.ROLES`; rows that quantize it. Dtype and bits are about
                this role alone then, otherwise about any.
            dtype: a ``torch.dtype`` or its name.
            bits: as many as the widest range of a spec needs (4 for -8..7, in whatever dtype).
            preset: name of a preset of the owner; rows that take its config.
            target: a lowering target on which the row runs as integers.

        Raises:
            IntentError: ``op`` is nothing that a row can be about, or there is no such role.
        """
        if role not in (None, *ROLES):
            raise IntentError("There is no such role.", expected=" | ".join(ROLES), got=repr(role))
        subject = None if op is None else object_type(op)
        wanted = None if dtype is None else dtype_name(dtype)

        def fits(row: Capability) -> bool:
            return (
                (subject is None or row.is_about(subject))
                and backend in (None, row.backend)
                and mode in (None, row.mode)
                and row.quantizes(role, wanted, bits)
                and (preset is None or preset in row.presets)
                and (target is None or target in row.targets)
            )

        return Capabilities(tuple(row for row in self.rows if fits(row)))

    def supports(self, op: object, config: QuantizationConfig, *, target: str | None = None) -> Support:
        """Whether some row takes this operator with this config, and if none does, what the nearest lacks.

        Args:
            op: as in :meth:`filter`.
            config: what would be asked.
            target: a lowering target on which it has to run as integers.

        Raises:
            IntentError: ``op`` is nothing that a row can be about. An operator or a function of torch that
                nobody here has a row for is no error: the answer is "no".
        """
        order = {backend: number for number, backend in enumerate(self.backends)}
        answers: list[tuple[tuple[int, int, int], Support]] = []
        for row in self.filter(op):
            missing = () if target in (None, *row.targets) else (_not_on(target, row),)
            answer = Support(row, (*row.differences(config), *missing))
            # Of a pattern and a longer one that begins with it, the shorter one is what was asked about.
            rank = (len(answer.differences), order[row.backend], len(row.operators))
            answers.append((rank, answer))
        if not answers:
            return Support(None, (_no_row(self, op),))
        best = min(answers, key=lambda answer: answer[0])[1]
        takers = dict.fromkeys(a.capability.backend for _, a in answers if a and a.capability)
        return attrs.evolve(best, behind=tuple(takers)[1:])

    def diff(self, other: Capabilities) -> tuple[CapabilityChange, ...]:
        """List the differences of ``other``; empty exactly where the two are equal.

        Rows are the same that have one backend, pattern, mode and scope. A change of the order of rows is
        one, too, since who comes first keeps a node.
        """
        mine, theirs = _by_identity(self), _by_identity(other)
        changes: list[CapabilityChange] = []
        for key in dict.fromkeys((*mine, *theirs)):
            changes += _row_changes(mine.get(key), theirs.get(key))
        before = [row.label for key, row in mine.items() if key in theirs]
        after = [row.label for key, row in theirs.items() if key in mine]
        if before != after:
            changes.append(CapabilityChange("all rows", "order", ", ".join(before), ", ".join(after)))
        return Listing(changes)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the rows, in hexadecimal; equal for equal capabilities, on every machine."""
        return hashlib.sha256(self._dumped(indent=None).encode()).hexdigest()

    def to_json(self) -> str:
        """The rows as JSON text, with a schema version; beside them who comes first where they compete."""
        return self._dumped(indent=1)

    def _dumped(self, indent: int | None) -> str:
        """JSON text, for people with line breaks; without them it is written ten times as fast."""
        content = {
            "schema": JSON_SCHEMA,
            "rows": [attrs.asdict(row) for row in self.rows],
            "contested": [attrs.asdict(contest) for contest in self.contested],
        }
        return json.dumps(content, indent=indent)

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

    def __repr__(self) -> str:
        owners = ", ".join(self.backends) or "no backend"
        return f"<Capabilities: {counted(len(self.rows), 'row')} of {owners}; print them for the table>"

    def __str__(self) -> str:
        """A table for a terminal: who, what, when, where as integers, with which specs; then who comes first.

        Printing one row tells its constraints and presets as well.
        """
        if not self.rows:
            return "no capabilities"
        header, *cells = self._cells()
        specs = [row.spec_text() for row in self.rows]
        lines = [(*cell, spec) for cell, spec in zip(cells, specs, strict=True)]
        text = aligned([(*header, "specs"), *lines])
        contests = [f"  {contest}" for contest in self.contested]
        return "\n".join([text, *(["who takes a node first:", *contests] if contests else [])])

    def _repr_html_(self) -> str:
        """The same for a notebook, with the constraints."""
        if not self.rows:
            return "<p>no capabilities</p>"
        header, *cells = self._cells()
        details = ((row.spec_text("\n"), "\n".join(text for _, text in row.constraints)) for row in self.rows)
        rows = [(*cell, *detail) for cell, detail in zip(cells, details, strict=True)]
        contests = html_list("Who takes a node first:", [str(contest) for contest in self.contested])
        return html_table((*header, "specs", "only if"), rows) + contests

    def _cells(self) -> list[tuple[str, ...]]:
        """The columns that every table has, the header first; where is one only if some row says where."""
        scoped = any(row.scope for row in self.rows)
        return [
            ("backend", "pattern", "mode", *(("where",) if scoped else ()), "integers on"),
            *(
                (
                    row.backend,
                    row.pattern,
                    row.mode,
                    *((row.scope,) if scoped else ()),
                    ", ".join(row.targets) or _NONE,
                )
                for row in self.rows
            ),
        ]


def _not_on(target: str | None, row: Capability) -> str:
    return f"target={target} (runs as integers on {', '.join(row.targets) or 'none'})"


def _no_row(capabilities: Capabilities, op: object) -> str:
    """Why nothing is known about an operator, in a sentence."""
    name = object_type(op).name
    owners = ", ".join(capabilities.backends)
    text = f"no row of {owners} is about {name}" if owners else f"there is no row, so none is about {name}"
    for base in op.__mro__[1:] if isinstance(op, type) else ():
        if capabilities.filter(base):
            known = f"{base.__module__}.{base.__qualname__}"
            return f"{text}; a row is about exactly one class, and {known} has one"
    return text


def _by_identity(capabilities: Capabilities) -> dict[tuple[object, ...], Capability]:
    """Rows by what tells them apart; several that only differ in what they take are numbered."""
    found: dict[tuple[object, ...], Capability] = {}
    counts: dict[tuple[object, ...], int] = {}
    for row in capabilities:
        key = (row.backend, row.pattern, row.mode, row.is_qat, row.scope)
        counts[key] = counts.get(key, 0) + 1
        found[(*key, counts[key])] = row
    return found


def _row_changes(before: Capability | None, after: Capability | None) -> Iterator[CapabilityChange]:
    if before is None or after is None:
        (present,) = filter(None, (before, after))
        words = ("absent", "present") if before is None else ("present", "absent")
        yield CapabilityChange(present.label, "", *words)
        return
    for role in ROLES:
        old, new = dict(before.specs).get(role, ()), dict(after.specs).get(role, ())
        if old != new:
            yield CapabilityChange(before.label, role, _in_words(old), _in_words(new))
    for field in attrs.fields(Capability):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.name != "specs" and old != new:
            yield CapabilityChange(before.label, field.name, _in_words(old), _in_words(new))


def _in_words(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    parts = (f"{item[1]} ({item[0]})" if isinstance(item, tuple) else str(item) for item in value)
    return ", ".join(parts) or _NONE


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
    values["other_ranges"] = tuple(map(tuple, data["other_ranges"]))
    return AllowedSpec(**values)
