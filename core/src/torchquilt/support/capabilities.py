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

from torchquilt._internal.json_values import from_document, parsed, to_plain
from torchquilt._internal.text_tables import Listing, aligned, counted, html_list, html_table
from torchquilt.errors import IntentError, PatternError
from torchquilt.spec.config import MODES, ROLES, Mode, QuantizationConfig, Role
from torchquilt.spec.dtypes import dtype_name
from torchquilt.support.capability_row import NONE, Capability, Contest, Support, capability_from, in_words
from torchquilt.support.object_type import object_type

#: Version of the JSON that :meth:`Capabilities.to_json` writes.
JSON_SCHEMA = 1


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
        """Owners of the rows, in order of precedence."""
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
        mode: Mode | None = None,
        role: Role | None = None,
        dtype: object = None,
        bits: int | None = None,
        preset: str | None = None,
        target: str | None = None,
        is_qat: bool | None = None,
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
            is_qat: whether the row can be trained.

        Raises:
            IntentError: ``op`` is nothing that a row can be about, or there is no such role or mode.
        """
        for name, value, known in (("role", role, ROLES), ("mode", mode, MODES)):
            if value is not None and value not in known:
                raise IntentError(f"There is no such {name}.", expected=" | ".join(known), got=repr(value))
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
                and is_qat in (None, row.is_qat)
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
                no backend has a row for is no error: the answer is "no".
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
        rows = tuple(attrs.evolve(row, probed="") for row in self.rows)  # a date is no difference
        return hashlib.sha256(Capabilities(rows)._dumped(indent=None).encode()).hexdigest()

    def to_json(self) -> str:
        """The rows as JSON text, with a schema version; beside them who comes first where they compete."""
        return self._dumped(indent=1)

    def _dumped(self, indent: int | None) -> str:
        """JSON text, for people with line breaks; without them it is written ten times as fast."""
        rows = to_plain(self.rows)
        for row in rows:
            if not row["probed"]:
                del row["probed"]  # as of the most
        content = {
            "schema": JSON_SCHEMA,
            "rows": rows,
            "contested": to_plain(self.contested),
        }
        return json.dumps(content, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Capabilities:
        """The inverse of :meth:`to_json`; needs no torch.

        Raises:
            PatternError: the text is of another schema version, or not such JSON at all.
        """
        data = parsed(text, "capabilities", PatternError)
        return from_document(data, JSON_SCHEMA, "capabilities", PatternError, _capabilities_from)

    def __repr__(self) -> str:
        owners = ", ".join(self.backends) or "no backend"
        return f"<Capabilities: {counted(len(self.rows), 'row')} of {owners}; print them for the table>"

    def __str__(self) -> str:
        """A table for a terminal: who, what, when, where as integers, with which specs and limits; then who
        comes first.

        Printing one row tells its constraints and presets as well.
        """
        if not self.rows:
            return "no capabilities"
        text = aligned(self.cells("; "))
        contests = [f"  {contest}" for contest in self.contested]
        return "\n".join([text, *(["who takes a node first:", *contests] if contests else [])])

    def _repr_html_(self) -> str:
        """The same for a notebook, with the constraints."""
        if not self.rows:
            return "<p>no capabilities</p>"
        header, *cells = self.cells()
        conditions = ("\n".join(text for _, text in row.constraints) for row in self.rows)
        rows = [(*cell, condition) for cell, condition in zip(cells, conditions, strict=True)]
        contests = html_list("Who takes a node first:", [str(contest) for contest in self.contested])
        return html_table((*header, "only if"), rows) + contests

    def cells(self, between: str = "\n", *, is_narrow: bool = False) -> list[tuple[str, ...]]:
        """The table as text, the header first. A column is there only if some row has something for it.

        Args:
            between: stands between the parts of one cell.
            is_narrow: whether limits stand below the specs instead of in a column of their own.
        """
        scoped = any(row.scope for row in self.rows)
        limited = not is_narrow and any(row.limits for row in self.rows)
        probed = any(row.probed for row in self.rows)
        where, limits = (("where",) if scoped else ()), (("limits",) if limited else ())
        known = ("known from",) if probed else ()
        return [
            ("backend", "pattern", "mode", *where, "integers on", "specs", *limits, *known),
            *(
                (
                    row.backend,
                    row.pattern,
                    row.mode,
                    *((row.scope,) if scoped else ()),
                    ", ".join(row.targets) or NONE,
                    row.spec_text(between) + (_below(row, between) if is_narrow else ""),
                    *((row.limit_text(between) or NONE,) if limited else ()),
                    *(("probing" if row.probed else "its table",) if probed else ()),
                )
                for row in self.rows
            ),
        ]


def _below(row: Capability, between: str) -> str:
    return f"{between}limits: {row.limit_text()}" if row.limits else ""


def _capabilities_from(data: dict[str, Any]) -> Capabilities:
    """Capabilities from JSON, where who comes first stands beside the rows that it follows from."""
    return Capabilities(tuple(map(capability_from, data["rows"])))


def _not_on(target: str | None, row: Capability) -> str:
    return f"target={target} (runs as integers on {', '.join(row.targets) or 'none'})"


def _no_row(capabilities: Capabilities, op: object) -> str:
    """Sentence about an operator that no row is about."""
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
        key = (row.backend, row.pattern, row.mode, row.scope)
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
            yield CapabilityChange(before.label, role, in_words(old), in_words(new))
    for field in attrs.fields(Capability):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.name != "specs" and field.eq and old != new:
            yield CapabilityChange(before.label, field.name, in_words(old), in_words(new))
