"""The sums at the top of a report, and what made the model at its end."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import import_module

import attrs

from torchquilt.accuracy.report.measurements import Comparison, Search, Sensitivities
from torchquilt.accuracy.report.subject import Subject, bytes_by_dtype, tensors_of_float
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Row, Share
from torchquilt.reasons import reason_of


@attrs.frozen
class Figure:
    """A figure at the top of the page.

    Args:
        label: of what it is.
        value: the figure, as text.
        detail: a line below it.
        share: from 0 to 1 for a bar; None for none.
    """

    label: str
    value: str
    detail: str = ""
    share: float | None = None


@attrs.frozen
class Left:
    """Operators that stay in float for one reason.

    Args:
        op: their overload.
        count: how many there are.
        code: of the reason.
        text: the reason of the first one.
        remedy: what to do, empty where that is not known.
        macs: their multiply-adds.
    """

    op: str
    count: int
    code: str
    text: str
    remedy: str
    macs: int


def figures_of(
    subject: Subject,
    float_model: object | None,
    comparison: Comparison | None,
    sensitivities: Sensitivities | None,
    search: Search | None,
) -> list[Figure]:
    """The figures at the top of the page."""
    share = subject.ledger.share()
    found = [
        _part("operators quantized", share.nodes),
        _part("multiply-adds quantized", share.macs),
        _part("parameter bytes quantized", share.parameter_bytes),
        _bytes(subject, float_model),
    ]
    outputs = [] if comparison is None else [(n, f["sqnr"]) for n, f in comparison.outputs if "sqnr" in f]
    if outputs:
        name, worst = min(outputs, key=lambda output: output[1])
        count = 0 if comparison is None else comparison.batches or 0
        batches = "" if not count else "1 batch" if count == 1 else f"{count:,} batches"
        of_many = f"{name}, the worst of {len(outputs)}" if len(outputs) > 1 else name
        found.append(Figure("output SQNR", f"{worst:.1f} dB", ", ".join(filter(None, (of_many, batches)))))
    return [*found, *_metrics(sensitivities, search)]


def _metrics(sensitivities: Sensitivities | None, search: Search | None) -> list[Figure]:
    quantized = None if sensitivities is None else sensitivities.quantized_metric
    in_float = None if sensitivities is None else sensitivities.float_metric
    found = []
    if quantized is not None:
        detail = "" if in_float is None else f"{in_float:.4g} in float, {quantized - in_float:+.3g}"
        found.append(Figure("metric", f"{quantized:.4g}", detail))
    if search is not None and search.chosen is not None:
        chosen = search.frontier[search.chosen].metric
        if chosen is not None:
            before = "" if search.float_metric is None else f"{search.float_metric:.4g} in float"
            found.append(Figure("metric of what the search chose", f"{chosen:.4g}", before))
    return found


def _part(label: str, pair: tuple[int, int]) -> Figure:
    taken, whole = pair
    if not whole:
        return Figure(label, "–", "there are none")
    return Figure(label, f"{taken / whole:.0%}", f"{taken:,} of {whole:,}", taken / whole)


def _bytes(subject: Subject, float_model: object | None) -> Figure:
    now = sum(bytes_by_dtype(subject.tensors).values())
    if float_model is None:
        return Figure("bytes of tensors", f"{now:,}")
    before = sum(bytes_by_dtype(tensors_of_float(float_model)).values())
    detail = f"{before:,} in float"
    return Figure("bytes of tensors", f"{now:,}", f"{detail}, {now / before:.0%}" if before else detail)


def shares_of(ledger: Ledger) -> tuple[Share, ...]:
    """Share of the whole, and of each quantizer."""
    return (ledger.share(), *ledger.by_quantizer())


def left_in_float(ledger: Ledger) -> list[Left]:
    """The operators in float, those of the same kind with the same reason together, the most costly first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in ledger.left_in_float:
        groups.setdefault((row.op, row.code), []).append(row)
    found = []
    for (op, code), rows in groups.items():
        known = reason_of(code)
        remedy = "" if known is None else known.remedy
        macs = sum(row.macs for row in rows)
        found.append(Left(op, len(rows), code, rows[0].reasons[0].text, remedy, macs))
    return sorted(found, key=lambda left: (-left.macs, -left.count, left.op))


def facts_of(subject: Subject) -> list[tuple[str, str]]:
    """Versions, and what made the model, as pairs of a label and a text."""
    import torch

    record, lock = subject.record, subject.lock
    version = import_module("torchquilt").__version__
    here = f"torchquilt {version}, torch {torch.__version__}, Python {platform.python_version()}"
    facts = [("this page was made by", here)]
    if lock is not None:
        facts.append(("the model was saved by", f"torchquilt {lock.torchquilt}, torch {lock.torch}"))
        facts.append(("lock", f"sha256 {lock.sha256}"))
        for plugin in lock.plugins:
            package = f"{plugin.distribution or 'no package'} {plugin.version or ''}".strip()
            facts.append((f"backend {plugin.backend}", package))
    else:
        facts.append(("backends", ", ".join(map(str, record.get("backends") or ())) or "not known"))
    if record.get("capabilities"):
        facts.append(("capabilities", f"sha256 {record['capabilities']}"))
    facts.append(("quantizer", str(record.get("quantizer") or "not known")))
    return facts


def bytes_table(subject: Subject, float_model: object | None) -> list[tuple[str, int, int | None]]:
    """Bytes of each dtype, of the quantized model and of the float one where there is one."""
    now = bytes_by_dtype(subject.tensors)
    before: Mapping[str, int] | None = None
    if float_model is not None:
        before = bytes_by_dtype(tensors_of_float(float_model))
    names = dict.fromkeys((*now, *(before or ())))
    return [(name, now.get(name, 0), None if before is None else before.get(name, 0)) for name in names]
