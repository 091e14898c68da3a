"""The lock of a saved model: what made it, what is in it, and how two of them differ.

A lock is plain data. Importing this module does not import torch, and neither does reading a lock.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import attrs

from torchquilt._internal.json_values import NOT_SUCH_VALUES, from_document, from_plain, parsed, to_plain
from torchquilt._internal.text_tables import Listing, counted
from torchquilt.errors import ArtifactError
from torchquilt.ledger.ledger import Ledger

#: Version of the JSON that :meth:`Lock.to_json` writes.
JSON_SCHEMA = 1

_T = TypeVar("_T")


def own_version() -> str:
    """The version of torchquilt that is installed."""
    # The package imports this module, so that the one place that knows the version is not imported above.
    return str(importlib.import_module("torchquilt").__version__)


@attrs.frozen
class Plugin:
    """A backend that took part.

    Args:
        backend: its name.
        distribution, version: the installed package that it came from; None where there was no such plugin
            (a quantizer of the user's own).
    """

    backend: str
    distribution: str | None = None
    version: str | None = None


@attrs.frozen
class Entry:
    """One entry of the archive: its name below the root folder, its size in bytes, its digest."""

    name: str
    nbytes: int
    sha256: str


@attrs.frozen
class StoredTensor:
    """One tensor of the state or of the constants.

    Args:
        name: as in the state dict.
        role: ``parameter``, ``buffer`` or ``constant``.
        dtype: ``"int8"``.
        shape: its sizes.
        sha256: of its elements in row-major order, little-endian; what
            ``hashlib.sha256(tensor.contiguous().numpy().tobytes())`` gives.
        entry: the entry of the archive that holds it; tensors that share memory share an entry.
    """

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    entry: str = ""


@attrs.frozen
class QuantizedTensor:
    """The parameters of one quantized tensor: ``x ≈ (q - zero_point) * scale``.

    Args:
        name: of a stored tensor as in the state dict, otherwise of the node that computes it.
        kind: ``constant`` (stored as integers), ``static`` (parameters found by calibration) or ``dynamic``
            (found anew for each input).
        module: path of the module that it comes from.
        dtype, quant_min, quant_max: the integers.
        granularity: as :class:`torchquilt.spec.qspec.Granularity`.
        axis, group_size: for ``per_axis``, for ``per_group``.
        scale, zero_point: the number; where there are many, the name of the stored tensor that holds them;
            None where the program computes them.
    """

    name: str
    kind: str
    module: str
    dtype: str
    quant_min: int
    quant_max: int
    granularity: str
    axis: int | None = None
    group_size: int | None = None
    scale: float | str | None = None
    zero_point: float | str | None = None


@attrs.frozen
class OperatorCount:
    """Number of calls of an operator in a program."""

    operator: str
    count: int


@attrs.frozen(repr=False)
class Lock:
    """Origin of a saved model, and its exact contents.

    Args:
        torchquilt, torch: the versions that wrote it.
        plugins: the backends that took part, in order of precedence.
        quantizer: the quantizer with its intent, in words; None where the model did not say.
        recipe: the same as TOML, of which ``Recipe.from_toml`` makes an equal quantizer; None where a recipe
            cannot say all of it (a quantizer of the user's own, a filter function).
        capabilities: content hash of what the quantizer could do; likewise.
        ledger_json: every decision, as JSON; likewise. :attr:`ledger` reads it.
        quantized: the parameters of each quantized tensor.
        tensors: each tensor of the state and of the constants.
        operators: what the program calls.
        entries: each entry of the archive but the lock.
    """

    torchquilt: str
    torch: str
    plugins: tuple[Plugin, ...]
    quantizer: str | None
    recipe: str | None = attrs.field(repr=False)
    capabilities: str | None
    ledger_json: str | None = attrs.field(repr=False)
    quantized: tuple[QuantizedTensor, ...]
    tensors: tuple[StoredTensor, ...]
    operators: tuple[OperatorCount, ...]
    entries: tuple[Entry, ...]

    @property
    def ledger(self) -> Ledger | None:
        """Every decision, or None where the model carried none.

        Raises:
            ModelError: it was written by a torchquilt whose ledgers have another schema.
        """
        return None if self.ledger_json is None else Ledger.from_json(self.ledger_json)

    @property
    def sha256(self) -> str:
        """The digest of all that the lock says. The lock says the digest of everything else in the file."""
        return _digest(self._content())

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of the file that the tensors of each dtype take; memory that is shared counts once."""
        sizes = {entry.name: entry.nbytes for entry in self.entries}
        held = {(tensor.entry, tensor.dtype) for tensor in self.tensors}
        found: Counter[str] = Counter()
        for entry, dtype in sorted(held):
            found[dtype] += sizes.get(entry, 0)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def __repr__(self) -> str:
        made = f"torchquilt {self.torchquilt}, torch {self.torch}"
        return f"<Lock {self.sha256[:12]} by {made}: {counted(len(self.tensors), 'tensor')}>"

    def to_json(self) -> str:
        """The lock as JSON text, with a schema version and its own digest."""
        return json.dumps(self.to_plain(), indent=1)

    def to_plain(self) -> dict[str, Any]:
        """The same as dicts, lists, texts and numbers."""
        content = self._content()
        return {**content, "sha256": _digest(content)}

    @classmethod
    def from_json(cls, text: str) -> Lock:
        """The inverse of :meth:`to_json`; needs no torch.

        Raises:
            ArtifactError: the text is no lock, is of another schema version, or was changed.
        """
        return cls.from_plain(parsed(text, "a lock", ArtifactError))

    @classmethod
    def from_plain(cls, data: object) -> Lock:
        """The inverse of :meth:`to_plain`.

        Raises:
            ArtifactError: as for :meth:`from_json`.
        """
        return from_document(data, JSON_SCHEMA, "a lock", ArtifactError, _lock_from)

    def _content(self) -> dict[str, Any]:
        return {"schema": JSON_SCHEMA, **to_plain(self)}


def _lock_from(data: dict[str, Any]) -> Lock:
    """A lock from JSON, whose digest is checked first."""
    content = dict(data)
    written, found = content.pop("sha256"), _digest({"schema": JSON_SCHEMA, **content})
    if found != written:
        raise ArtifactError(
            "The lock was changed after it was written: its content does not have its digest.",
            expected=f"sha256 {written}",
            got=f"sha256 {found}",
            remedy="get the file again from where it was saved",
        )
    try:
        return from_plain(Lock, content)
    except NOT_SUCH_VALUES as error:
        raise ArtifactError(
            "The lock does not have the fields that a lock has.",
            expected=", ".join(attribute.name for attribute in attrs.fields(Lock)),
            got=f"{type(error).__name__}: {error}",
        ) from error


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of data, however it is laid out as text."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@attrs.frozen
class Change:
    """One thing that two locks say differently.

    Args:
        subject: what kind of thing: ``tensor``, ``quantized tensor``, ``version``, ``decision`` …
        name: which one.
        field: what of it; empty where it is there in one lock only.
        before, after: what either lock says; None where it has no such thing.
    """

    subject: str
    name: str
    field: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.subject, self.name)))
        if self.field == "" and self.before is None:
            return f"{what} added: {self.after}"
        if self.field == "" and self.after is None:
            return f"{what} removed: {self.before}"
        label = f"{what}, {self.field}" if self.field else what
        return f"{label}: {_short(self.before)} → {_short(self.after)}"


@attrs.frozen(repr=False)
class LockDiff:
    """All that two locks say differently; false where that is nothing. Prints one line for each."""

    changes: tuple[Change, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def __str__(self) -> str:
        return "\n".join(map(str, self.changes)) or "no difference"

    def __repr__(self) -> str:
        return repr(Listing(self.changes))

    def to_json(self) -> str:
        """The changes as JSON text, with a schema version."""
        return json.dumps({"schema": JSON_SCHEMA, **to_plain(self)}, indent=1)


def diff(before: Lock, after: Lock) -> LockDiff:
    """Say what ``after`` says differently from ``before``.

    Where in the archive things lie is not compared, nor are digests of entries: a model that was made twice
    in the same way has no difference, though notes in the program (numbers of graphs) make its bytes differ.
    """
    return LockDiff((*_of_origin(before, after), *contents_diff(before, after)))


def contents_diff(before: Lock, after: Lock) -> tuple[Change, ...]:
    """The part of :func:`diff` that is about what is in the program, not about what made it."""
    return (
        *_of_rows("tensor", _by("name", before.tensors), _by("name", after.tensors), ignored="entry"),
        *_of_rows("quantized tensor", _by("name", before.quantized), _by("name", after.quantized)),
        *_of_rows("operator", _by("operator", before.operators), _by("operator", after.operators)),
    )


def _of_origin(before: Lock, after: Lock) -> Iterator[Change]:
    for name in ("torchquilt", "torch"):
        yield from _of_texts("version", name, getattr(before, name), getattr(after, name))
    yield from _of_rows("plugin", _by("backend", before.plugins), _by("backend", after.plugins))
    yield from _of_texts("quantizer", "", before.quantizer, after.quantizer)
    yield from _of_texts("recipe", "", *_differing_lines(before.recipe, after.recipe))
    yield from _of_texts("capabilities", "", before.capabilities, after.capabilities)
    if before.ledger_json != after.ledger_json:
        for change in (before.ledger or Ledger(())).diff(after.ledger or Ledger(())):
            yield from _of_texts("decision", change.node, change.before, change.after)


def _differing_lines(before: str | None, after: str | None) -> tuple[str | None, str | None]:
    """The lines of either text that the other one does not have, on one line; all where that is none."""
    if before == after or before is None or after is None:
        return before, after
    pair = before.splitlines(), after.splitlines()
    old = "; ".join(line for line in pair[0] if line not in pair[1])
    new = "; ".join(line for line in pair[1] if line not in pair[0])
    return (old, new) if old != new else (before, after)


def _of_texts(subject: str, name: str, before: str | None, after: str | None) -> Iterator[Change]:
    if before != after:
        yield Change(subject, name, "", before, after)


def _of_rows(
    subject: str, before: Mapping[str, Any], after: Mapping[str, Any], ignored: str = ""
) -> Iterator[Change]:
    """List the rows of one kind that were removed, added and changed, field by field."""
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield Change(subject, name, "", _summary(old, ignored), _summary(new, ignored))
            continue
        for attribute in attrs.fields(type(old)):
            pair = getattr(old, attribute.name), getattr(new, attribute.name)
            if attribute.name != ignored and pair[0] != pair[1]:
                yield Change(subject, name, attribute.name, str(pair[0]), str(pair[1]))


def _by(key: str, rows: tuple[_T, ...]) -> dict[str, _T]:
    return {getattr(row, key): row for row in rows}


def _summary(row: Any, ignored: str) -> str | None:
    """A row in one line: what it says beside its name."""
    if row is None:
        return None
    _, *rest = attrs.fields(type(row))
    found = [
        (attribute.name, getattr(row, attribute.name)) for attribute in rest if attribute.name != ignored
    ]
    return ", ".join(f"{name} {_short(str(value))}" for name, value in found if value is not None)


def _short(text: str | None) -> str:
    """Digests are told apart by their first digits."""
    text = "nothing" if text is None else text
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}…" if is_digest else text
