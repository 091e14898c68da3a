"""report: all that is known of a quantized model, as one page."""

from __future__ import annotations

import html
import json
import os
import warnings
from typing import Any

import attrs

from torchquilt._internal.atomic_files import replacing
from torchquilt._internal.text_tables import counted
from torchquilt.accuracy.report.contents import Measured, contents_of
from torchquilt.accuracy.report.histograms import histograms_of
from torchquilt.accuracy.report.measurements import comparison_of, search_of, sensitivities_of
from torchquilt.accuracy.report.model_explorer import node_data
from torchquilt.accuracy.report.module_tree import errors_of, tree_of
from torchquilt.accuracy.report.overview import (
    bytes_table,
    facts_of,
    figures_of,
    left_in_float,
    shares_of,
)
from torchquilt.accuracy.report.ranges import ranges_of
from torchquilt.accuracy.report.rendering import check_is_installed, rendered
from torchquilt.accuracy.report.subject import Subject, subject_of, with_lowering_statuses
from torchquilt.errors import TorchquiltError
from torchquilt.recipe import Recipe
from torchquilt.support.capabilities import Capabilities


@attrs.frozen(eq=False, repr=False)
class Report:
    """A page about a quantized model, and the data in it. Made by :func:`torchquilt.report`.

    Args:
        title: of the page.
        html: its text. It loads nothing from anywhere, and needs a browser with JavaScript.
        data: what the page shows in its graph, tables and plots, as dicts, lists, texts and numbers.
    """

    title: str
    html: str = attrs.field(repr=False)
    data: dict[str, Any] = attrs.field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, which is replaced whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(path) as file:
            file.write(self.html.encode())

    def to_model_explorer(self, values: str | None = None) -> str:
        """Node data for Google's Model Explorer, as JSON text.

        Save it to a file, and add that file in Model Explorer as node data to the float program. Operators
        are found by their names in it.

        Args:
            values: ``"backend"``; ``"isolated"`` or ``"accumulated"``, the SQNR in dB, where a comparison was
                handed in; ``"noise"`` that it adds to the outputs, where sensitivities were. By default
                the isolated error if there is one, or the backend.

        Raises:
            ModelError: the report has no such values.
        """
        return json.dumps(node_data(self.data, values), indent=1, allow_nan=False)

    def __repr__(self) -> str:
        size = counted(len(self.data["operators"]), "operator")
        return f"<Report of {self.title}, {size}, {len(self.html.encode()):,} bytes; .save(path) writes it>"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which cannot reach the notebook."""
        page = html.escape(self.html, quote=True)
        frame = "width: 100%; height: 80vh; min-height: 480px; outline: 1px solid #8888"
        return (
            f'<iframe title="{html.escape(self.title, quote=True)}" sandbox="allow-scripts" style="{frame}" '
            f'srcdoc="{page}"></iframe>'
        )


def report(
    float_model: object | None,
    quantized: object,
    *,
    compare: object | None = None,
    sensitivity: object | None = None,
    search: object | None = None,
    prepared: object | None = None,
    program: object | None = None,
    title: str | None = None,
) -> Report:
    """Put all that is known of a quantized model on one page.

    The page has the figures of the ledger, its rows and those of the capabilities, the graph, the modules,
    and versions. What is handed in besides adds a section, or columns and plots; without it the page says how
    to get it.

    Args:
        float_model: the ExportedProgram or module that was quantized, of which sizes are read; None leaves
            them out.
        quantized: what :func:`torchquilt.convert_pt2e` or :func:`torchquilt.load` returned.
        compare: what ``torchquilt.compare`` returned, or its ``to_plain()``.
        sensitivity: what ``torchquilt.sensitivity`` returned, or its ``to_plain()``.
        search: what ``torchquilt.search`` returned, or its ``to_plain()``.
        prepared: the calibrated model of which ``quantized`` was made: its observers have the histograms.
        program: what :func:`torchquilt.lower` returned for it: which delegate or kernel runs each operator.
        title: of the page; by default the class of the model.

    Returns:
        The page: ``.save("report.html")`` writes it, a notebook shows it.

    Raises:
        ModelError: ``quantized`` is no quantized model, or something else is not what it should be.
        TorchquiltError: the extra ``report`` is not installed.
    """
    check_is_installed()
    subject = subject_of(quantized)
    if program is not None:
        subject = with_lowering_statuses(subject, program)
    ranges = ranges_of(subject)
    measured = Measured(
        comparison_of(compare),
        sensitivities_of(sensitivity),
        search_of(search),
        {} if prepared is None else histograms_of(prepared, subject.ledger, ranges),
        _capabilities(subject),
    )
    title = title or subject.title
    data = contents_of(subject, ranges, measured)
    return Report(title, rendered(_facts(title, subject, float_model, measured), data), data)


def _facts(title: str, subject: Subject, float_model: object | None, measured: Measured) -> dict[str, Any]:
    """Values for the template."""
    errors, meaning = errors_of(measured.comparison, measured.sensitivities)
    ledger = subject.ledger
    return {
        "title": title,
        "figures": figures_of(
            subject, float_model, measured.comparison, measured.sensitivities, measured.search
        ),
        "shares": shares_of(ledger),
        "bytes_table": bytes_table(subject, float_model),
        "left": left_in_float(ledger),
        "problems": ledger.problems,
        "warnings": ledger.warnings,
        "tree": tree_of(ledger, errors),
        "error_meaning": meaning if errors else "",
        "facts": facts_of(subject),
        "recipe": subject.record.get("recipe"),
        "has_float": float_model is not None,
        "has_histograms": bool(measured.histograms),
        "comparison": measured.comparison,
        "sensitivities": measured.sensitivities,
        "search": measured.search,
        "has_capabilities": measured.capabilities is not None,
    }


def _capabilities(subject: Subject) -> Capabilities | None:
    """Capabilities of the model's quantizers; None without a recipe, or where other plugins are installed."""
    text = subject.record.get("recipe")
    if not text:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about plugins that take no part
        try:
            found = Recipe.from_toml(str(text)).quantizer().quantization_capabilities()
        except TorchquiltError:
            return None
    return found if found.content_hash == subject.record.get("capabilities") else None
