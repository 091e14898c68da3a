"""One row for each operator of a model: what was asked, who took it, with which specs, or why not.

A ledger is plain data, made from an annotated graph and from what each quantizer says of the nodes that
it left. It can be printed, compared and written as JSON. Reading one needs no torch.

:data:`torchquilt.reasons.REASONS` has the reason codes, which are stable, each with its meaning and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from torchquilt._internal.json_values import from_document, from_plain, parsed, to_plain, with_new_names
from torchquilt._internal.text_tables import Listing, counted, html_folded, html_list, html_table
from torchquilt.errors import LedgerError, ModelError, did_you_mean
from torchquilt.ledger.lowering_status import lowered_lines
from torchquilt.ledger.rows import Boundary, Caution, Change, Row, Share

#: Version of the JSON that :meth:`Ledger.to_json` writes.
JSON_SCHEMA = 1


@attrs.frozen(repr=False)
class Ledger:
    """Every decision about a model.

    Args:
        rows: one for each operator, in graph order.
        boundaries: where a tensor is requantized.
        problems: what strict mode would have refused, in words (``strict=False``).
        warnings: what calibration showed that is likely to cost accuracy; filled by ``convert_pt2e``.
    """

    rows: tuple[Row, ...]
    boundaries: tuple[Boundary, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[Caution, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, node: str) -> Row:
        """The row of a node, by its name.

        Raises:
            LedgerError: there is no such node. It is a ``KeyError``, too.
        """
        for row in self.rows:
            if row.node == node:
                return row
        raise self._no_row(node)

    def _no_row(self, node: object) -> LedgerError:
        names = [row.node for row in self.rows]
        return LedgerError(
            f"The ledger has no row {node!r}.",
            expected="the name of an operator of the graph, which each row has as .node",
            got=repr(node),
            remedy=did_you_mean(str(node), names) or "list(ledger) has all rows",
        )

    @property
    def quantized(self) -> tuple[Row, ...]:
        """The rows of operators that some quantizer took."""
        return tuple(row for row in self.rows if row.is_quantized)

    @property
    def left_in_float(self) -> tuple[Row, ...]:
        """The rows of operators in float, each with its reasons."""
        return tuple(row for row in self.rows if not row.is_quantized)

    def share(self, name: str = "all", rows: tuple[Row, ...] | None = None) -> Share:
        """Share of what is quantized, in all rows or in some."""
        rows = self.rows if rows is None else rows
        sizes = {parameter: size for row in rows for parameter, size in row.parameters}
        taken = {name for row in rows if row.is_quantized for name, _ in row.parameters}
        return Share(
            name,
            (sum(row.is_quantized for row in rows), len(rows)),
            (sum(row.macs for row in rows if row.is_quantized), sum(row.macs for row in rows)),
            (sum(size for name, size in sizes.items() if name in taken), sum(sizes.values())),
        )

    def by_quantizer(self) -> tuple[Share, ...]:
        """Share of each quantizer in the whole; the totals are those of the model."""
        whole = self.share()
        found = []
        for name in dict.fromkeys(row.quantizer for row in self.quantized if row.quantizer):
            own = self.share(name, tuple(row for row in self.rows if row.quantizer == name))
            found.append(
                Share(
                    name,
                    (own.nodes[0], whole.nodes[1]),
                    (own.macs[0], whole.macs[1]),
                    (own.parameter_bytes[0], whole.parameter_bytes[1]),
                )
            )
        return tuple(found)

    def by_op(self) -> tuple[Share, ...]:
        """Share of what is quantized, for each operator."""
        return self._shares(lambda row: row.op)

    def by_module(self, depth: int = 1) -> tuple[Share, ...]:
        """Share of what is quantized, for each module, down to a depth of the module path."""
        return self._shares(lambda row: ".".join(row.module.split(".")[:depth]) or "(root)")

    def _shares(self, key: Callable[[Row], str]) -> tuple[Share, ...]:
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(key(row), []).append(row)
        return tuple(self.share(name, tuple(rows)) for name, rows in groups.items())

    @property
    def by_lowering_status(self) -> dict[str, tuple[Row, ...]]:
        """Code of a lowering status → its rows; empty where the model was not lowered."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.lowered is not None:
                found.setdefault(row.lowered.code, []).append(row)
        return {code: tuple(rows) for code, rows in found.items()}

    def diff(self, other: Ledger) -> tuple[Change, ...]:
        """The nodes that are decided otherwise in ``other``; a node that one lacks is ``absent`` there."""
        mine = {row.node: row for row in self.rows}
        theirs = {row.node: row for row in other.rows}
        changes = []
        for node in dict.fromkeys((*mine, *theirs)):
            before, after = _decision(mine.get(node)), _decision(theirs.get(node))
            if before != after:
                changes.append(Change(node, before, after))
        return Listing(changes)

    def to_json(self) -> str:
        """The ledger as JSON text, with a schema version."""
        return json.dumps(self.to_plain(), indent=1)

    def to_plain(self) -> dict[str, Any]:
        """The same as dicts, lists, texts and numbers."""
        return {"schema": JSON_SCHEMA, **to_plain(self)}

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """The inverse of :meth:`to_json`.

        Raises:
            ModelError: the text is no ledger, or one of another schema version.
        """
        return cls.from_plain(parsed(text, "a ledger", ModelError))

    @classmethod
    def from_plain(cls, data: object) -> Ledger:
        """The inverse of :meth:`to_plain`.

        Raises:
            ModelError: as for :meth:`from_json`.
        """
        return from_document(data, JSON_SCHEMA, "a ledger", ModelError, _ledger_from)

    def __repr__(self) -> str:
        taken = len(self.quantized)
        size = counted(len(self.rows), "operator")
        return f"<Ledger of {size}, {taken:,} quantized; print it for the reasons>"

    def __str__(self) -> str:
        """The shares, then what stays in float and why, the same reasons together."""
        lines = [_share_text(share) for share in self._shares_told()]
        left = self._left_alike()
        if left:
            lines.append("left in float:")
        for rows in left:
            more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
            lines.append(f"  {rows[0].op}  {rows[0].code}: {rows[0].reasons[0].text}{more}")
        if self.boundaries:
            lines.append("requantized:")
        lines += [f"  {edge}" for edge in self.boundaries]
        lines += lowered_lines(self.by_lowering_status)
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"warning: {caution}" for caution in self.warnings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same for a notebook; a row for each operator is folded away."""
        shares = html_table(
            ("", "operators", "multiply-adds", "parameter bytes"),
            [
                (share.name, _part(share.nodes), _part(share.macs), _part(share.parameter_bytes))
                for share in self._shares_told()
            ],
        )
        left = html_table(
            ("left in float", "", "reason", "for example"),
            [
                (rows[0].op, f"{len(rows)}", rows[0].code, rows[0].reasons[0].text)
                for rows in self._left_alike()
            ],
        )
        rows = html_table(
            ("node", "operator", "module", "quantizer", "pattern", "rule", "specs, or why not"),
            [_cells(row) for row in self.rows],
        )
        return "\n".join(
            [
                shares,
                left if self.left_in_float else "",
                html_list("Requantized:", [str(edge) for edge in self.boundaries]),
                html_list("Problems:", self.problems),
                html_list("Warnings:", [str(caution) for caution in self.warnings]),
                html_folded(counted(len(self.rows), "operator"), rows),
            ]
        )

    def _shares_told(self) -> tuple[Share, ...]:
        """Shares of the whole and of each quantizer; a quantizer that is alone has one."""
        by_quantizer = self.by_quantizer()
        return by_quantizer if len(by_quantizer) == 1 else (self.share(), *by_quantizer)

    def _left_alike(self) -> tuple[list[Row], ...]:
        """Rows that stay in float, the same operators with the same reasons together."""
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in self.left_in_float:
            grouped.setdefault((row.op, row.code), []).append(row)
        return tuple(grouped.values())


def _part(pair: tuple[int, int], what: str = "") -> str:
    taken, whole = pair
    share = f" ({taken / whole:.0%})" if whole else ""
    return f"{taken:,} of {counted(whole, what) if what else f'{whole:,}'}{share}"


def _share_text(share: Share) -> str:
    parts = (
        _part(share.nodes, "operator"),
        _part(share.macs, "multiply-add"),
        _part(share.parameter_bytes, "parameter byte"),
    )
    return f"{share.name}: {', '.join(parts)}"


def _cells(row: Row) -> tuple[str, ...]:
    """A row for a notebook."""
    what = [f"{tensor.edge}: {tensor.spec}" for tensor in row.tensors]
    why = [f"{reason.code}: {reason.text}" for reason in row.reasons]
    asked = [f"{reason.rule}: {reason.asked}" for reason in row.reasons if reason.rule]
    rule = row.rule or "\n".join(asked)
    return (row.node, row.op, row.module, row.quantizer or "", row.pattern, rule, "\n".join((*what, *why)))


def _decision(row: Row | None) -> str:
    if row is None:
        return "absent"
    if not row.is_quantized:
        return f"float ({row.code})"
    specs = ", ".join(f"{tensor.edge}: {tensor.spec}" for tensor in row.tensors)
    return f"{row.quantizer} {row.pattern}" + (f" ({specs})" if specs else "")


#: Codes and fields of ledgers that torchquilt 0.1.0 wrote → of today.
_NEW_CODES = {"not_worth_it": "not_profitable", "body_not_entered": "subgraph_not_entered"}
_NEW_IN_TENSORS = {"place": "edge"}
_NEW_IN_CAUTIONS = {"place": "edges"}
_NEW_IN_STATUSES = {"place": "delegate"}


def _ledger_from(data: dict[str, Any]) -> Ledger:
    known = {field.name: data[field.name] for field in attrs.fields(Ledger) if field.name in data}
    known["rows"] = [_row_of_today(row) for row in known["rows"]]
    known["warnings"] = [with_new_names(one, _NEW_IN_CAUTIONS) for one in known.get("warnings", ())]
    return from_plain(Ledger, known)


def _row_of_today(row: dict[str, Any]) -> dict[str, Any]:
    lowered = row.get("lowered")
    return {
        **row,
        "tensors": [with_new_names(tensor, _NEW_IN_TENSORS) for tensor in row["tensors"]],
        "reasons": [
            {**reason, "code": _NEW_CODES.get(reason["code"], reason["code"])} for reason in row["reasons"]
        ],
        "lowered": None if lowered is None else with_new_names(lowered, _NEW_IN_STATUSES),
    }
