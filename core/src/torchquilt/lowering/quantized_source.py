"""Source of lowering: the exported program of a quantized model, its ledger, and the backends that made it.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.artifact.loading import Artifact
from torchquilt.artifact.lock import own_version
from torchquilt.artifact.reexport import export_again
from torchquilt.errors import ArtifactError, LoweringError
from torchquilt.ledger.ledger import Ledger

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Entries of the record of a model that its origin has, too.
_TOLD = ("quantizer", "recipe", "capabilities")


@attrs.frozen(eq=False)
class Source:
    """Source of lowering.

    Args:
        program: the exported program.
        ledger: every decision about it, None where nothing is known of it.
        backends: the names of those that quantized it, in order; None likewise.
        origin: what made it, in texts: versions, the quantizer, its recipe; see ``LabellingTarget.labelled``.
    """

    program: ExportedProgram
    ledger: Ledger | None
    backends: tuple[str, ...] | None
    origin: Mapping[str, str] = attrs.field(factory=dict)


def source_of(quantized: object, example_inputs: object, dynamic_shapes: Any) -> Source:
    """The source of what :func:`torchquilt.lower` was given.

    Raises:
        ModelError: it is no model that can be lowered.
        LoweringError: it cannot be exported with these inputs.
    """
    import torch

    from torchquilt.pt2e.model_record import RECORD_KEY, check_is_final

    if isinstance(quantized, Artifact):
        quantized = quantized.program
    if isinstance(quantized, torch.export.ExportedProgram):
        _refuse_shapes(dynamic_shapes)
        return _with_record(quantized, quantized.graph_module.meta.get(RECORD_KEY))
    expected = "what convert_pt2e or load returned, or an ExportedProgram"
    quantized = check_is_final(quantized, "lowered", "lower", expected)
    return _with_record(_exported(quantized, example_inputs, dynamic_shapes), quantized.meta.get(RECORD_KEY))


def _refuse_shapes(dynamic_shapes: Any) -> None:
    if dynamic_shapes is not None:
        raise LoweringError(
            "An exported program is lowered as it is, so dynamic shapes have no effect.",
            expected="no dynamic_shapes with it",
            got=f"dynamic_shapes={dynamic_shapes!r}",
            remedy="leave them out, or pass what convert_pt2e returned",
        )


def _exported(model: Any, example_inputs: object, dynamic_shapes: Any) -> ExportedProgram:
    try:
        return export_again(
            model,
            example_inputs,
            dynamic_shapes,
            to_be="lowered",
            remedy="lower(quantized, batch) with a batch as calibrate takes it; () where there are no inputs",
        )
    except ArtifactError as error:
        raise LoweringError(
            error.problem, node=error.node, expected=error.expected, got=error.got, remedy=error.remedy
        ) from error


def _with_record(program: ExportedProgram, record: object) -> Source:
    if not isinstance(record, Mapping):
        return Source(program, None, None, _versions())
    ledger, backends = record.get("ledger"), record.get("backends") or ()
    names = tuple(map(str, backends)) if isinstance(backends, Sequence) else ()
    told = {"backends": ", ".join(names), **{key: record.get(key) for key in _TOLD}}
    return Source(
        program,
        None if ledger is None else Ledger.from_plain(ledger),
        names,
        _versions() | {key: text for key, text in told.items() if isinstance(text, str) and text},
    )


def _versions() -> dict[str, str]:
    import torch

    return {"version": own_version(), "torch": str(torch.__version__)}
