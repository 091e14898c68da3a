"""summary: a float and a quantized model side by side: metric, file size, bytes by dtype, integer work."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt._internal.json_values import to_plain
from torchquilt._internal.text_tables import aligned, html_table
from torchquilt.accuracy.metric import Evaluate, Metric
from torchquilt.accuracy.running import float_copy, quantized_copy
from torchquilt.artifact.loading import Artifact
from torchquilt.artifact.saving import save
from torchquilt.graph.node_values import attribute
from torchquilt.graph.signature import call_arguments
from torchquilt.graph.subgraphs import regions
from torchquilt.pt2e.model_record import ledger_of, stage_of

JSON_SCHEMA = 1


@attrs.frozen
class ModelSummary:
    """Figures of one model.

    Args:
        metric: what ``evaluate`` said.
        file_bytes: size of the file that it is saved as; None where that needs example inputs.
        bytes_by_dtype: dtype → bytes of stored tensors; integers of 4 bits or less are stored as int8 in a
            Q/DQ model, and packed when it is lowered.
        macs_integer: multiply-adds in integers, for the example shapes.
        macs: all of them.
    """

    metric: float
    file_bytes: int | None
    bytes_by_dtype: Mapping[str, int]
    macs_integer: int
    macs: int

    @property
    def integer_share(self) -> float:
        """Share of multiply-adds in integers."""
        return self.macs_integer / self.macs if self.macs else 0.0


@attrs.frozen(repr=False)
class Summary:
    """A float model beside the model that was quantized of it. Made by :func:`torchquilt.summary`.

    Args:
        float_model: figures of the float model.
        quantized: figures of the quantized model.
    """

    float_model: ModelSummary
    quantized: ModelSummary

    def to_plain(self) -> dict[str, Any]:
        """The figures as dicts, texts and numbers."""
        return {"schema": JSON_SCHEMA, **to_plain(self)}

    def to_json(self) -> str:
        """The figures as JSON text, with a schema version."""
        return json.dumps(self.to_plain(), indent=1)

    def __repr__(self) -> str:
        one, other = self.float_model, self.quantized
        return f"<Summary: metric {one.metric:.6g} → {other.metric:.6g}; print it for sizes>"

    def __str__(self) -> str:
        return aligned(self._cells())

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        header, *rows = self._cells()
        return html_table(header, rows)

    def _cells(self) -> list[tuple[str, ...]]:
        one, other = self.float_model, self.quantized
        by_dtype = (one.bytes_by_dtype, other.bytes_by_dtype)
        return [
            ("", "float", "quantized", "ratio"),
            ("metric", f"{one.metric:.6g}", f"{other.metric:.6g}", _ratio(one.metric, other.metric)),
            _bytes_row("bytes of the file", one.file_bytes, other.file_bytes),
            *(
                _bytes_row(f"bytes in {name}", *(sizes.get(name, 0) for sizes in by_dtype))
                for name in sorted({*by_dtype[0], *by_dtype[1]})
            ),
            ("integer multiply-adds", f"{one.integer_share:.1%}", f"{other.integer_share:.1%}", "–"),
        ]


def _bytes_row(what: str, one: int | None, other: int | None) -> tuple[str, ...]:
    if one is None or other is None:
        return what, *("–" if size is None else f"{size:,}" for size in (one, other)), "–"
    return what, f"{one:,}", f"{other:,}", _ratio(one, other)


def _ratio(one: float, other: float) -> str:
    return f"{other / one:.3f}" if one else "–"


def summary(
    float_model: ExportedProgram | GraphModule,
    quantized: GraphModule | ExportedProgram | Artifact,
    evaluate: Evaluate,
    *,
    example_inputs: object = None,
) -> Summary:
    """Say how good a quantized model is, and how much smaller.

    Both models are saved to a temporary file, as :func:`torchquilt.save` and ``torch.export.save`` would, to
    see how large that is.

    Args:
        float_model: the exported model that was quantized.
        quantized: what :func:`torchquilt.convert_pt2e` or :func:`torchquilt.load` returned.
        evaluate: judges a model, which is called like the float one.
        example_inputs: one batch as for :func:`torchquilt.calibrate`, with which a GraphModule is exported to
            be saved; by default those of the float ExportedProgram.

    Raises:
        ModelError: the models are not a float and a quantized one.
        AccuracyError: the metric failed.
        ArtifactError: a model cannot be saved.
    """
    metric = Metric(evaluate)
    reference = float_copy(float_model)
    found = quantized_copy(quantized.program if isinstance(quantized, Artifact) else quantized)
    if example_inputs is None and isinstance(float_model, ExportedProgram):
        example_inputs = _as_batch(float_model)
    integer, macs = ledger_of(found).share().macs
    return Summary(
        ModelSummary(
            metric(reference, "the float model"),
            _saved(float_model, example_inputs),
            _by_dtype(reference),
            0,
            macs,
        ),
        ModelSummary(
            metric(found, "the quantized model"),
            _saved(quantized, example_inputs),
            _by_dtype(found),
            integer,
            macs,
        ),
    )


def _as_batch(program: ExportedProgram) -> object:
    """The inputs that a program was exported with, as one batch; None where it has none."""
    if program.example_inputs is None:
        return None
    args, kwargs = program.example_inputs
    return kwargs if kwargs and not args else args


def _by_dtype(model: GraphModule) -> dict[str, int]:
    """Dtype → bytes of the tensors that a graph reads; one that has several names counts once."""
    found: dict[str, int] = {}
    for value in _stored(model):
        name = str(value.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + value.numel() * value.element_size()
    return found


def _stored(model: GraphModule) -> Iterator[Any]:
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    for region in regions(model):
        for node in region.module.graph.find_nodes(op="get_attr"):
            value = attribute(region.module, str(node.target))
            if not isinstance(value, torch.Tensor):
                continue
            key = (value.data_ptr(), math.prod(value.shape), tuple(value.stride()))
            if key not in seen or not value.numel():
                seen.add(key)
                yield value


def _saved(model: Any, example_inputs: Any) -> int | None:
    """Bytes of the file that a model is saved as; None where it would need example inputs to be exported."""
    program = model.program if isinstance(model, Artifact) else model
    if not isinstance(program, ExportedProgram) and example_inputs is None:
        return None
    with tempfile.TemporaryDirectory(prefix="torchquilt-summary-") as folder:
        path = Path(folder) / "model.pt2"
        if isinstance(program, ExportedProgram):
            torch.export.save(program, path)
        elif stage_of(program) is not None:
            save(program, path, example_inputs)
        else:
            args, kwargs = call_arguments(program, example_inputs)
            torch.export.save(torch.export.export(program, args, kwargs), path)
        return path.stat().st_size
