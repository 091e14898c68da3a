"""quantize: export, prepare, calibrate and convert in one call."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt._internal.terminal import working_if
from torchquilt.observers import ObserverFactory
from torchquilt.pt2e.calibration.calibrate import calibrate, missing_data
from torchquilt.pt2e.calibration.merging import Calibration
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.export import export_model
from torchquilt.pt2e.model_record import ledger_of
from torchquilt.pt2e.observer_points import observed_points
from torchquilt.pt2e.prepare import prepare_pt2e
from torchquilt.quantizers.base import Quantizer, as_quantizer
from torchquilt.quantizers.composable import ComposableQuantizer


def quantize(
    model: torch.nn.Module | ExportedProgram,
    example_inputs: object,
    quantizer: object,
    calibration: Iterable[object] | Calibration | None = None,
    *,
    dynamic_shapes: Any = None,
    activation_observer: str | ObserverFactory = "histogram",
    limit: int | None = None,
    strict: bool = True,
    show: bool = True,
    progress: bool = True,
) -> GraphModule:
    """Export a model, quantize it, and print its ledger: the whole flow for those who want one line.

    It does what :func:`torchquilt.prepare_pt2e`, :func:`torchquilt.calibrate` and
    :func:`torchquilt.convert_pt2e` do one after the other. The model is left as it was.

    Args:
        model: a module, which is exported in evaluation mode; or an exported model.
        example_inputs: one batch, as for :func:`torchquilt.calibrate`, to export the module with. None for a
            model that is exported.
        quantizer: ``"backend:preset"``, such as ``"xnnpack:static_int8_per_channel"``; a
            :class:`torchquilt.Quantizer`; or a list of them, which are composed in this order.
        calibration: batches, as for :func:`torchquilt.calibrate`. Where nothing is quantized statically, none
            are needed, and none are read.
        dynamic_shapes: as for ``torch.export.export``: which dimensions may have other sizes than in the
            example inputs. By default none.
        activation_observer: as for :func:`torchquilt.prepare_pt2e`.
        limit: calibrate with at most so many batches.
        strict: as for :func:`torchquilt.prepare_pt2e`.
        show: print the ledger to standard output. :func:`torchquilt.ledger_of` of the result has it, too.
        progress: show how far it is on standard error, where that is a terminal.

    Returns:
        The quantized model, as :func:`torchquilt.convert_pt2e` returns it: for :func:`torchquilt.save`,
        :func:`torchquilt.lower` and :func:`torchquilt.compare`.

    Raises:
        ModelError: the model cannot be exported, or was prepared or quantized before.
        CalibrationError: there is no data where it is needed, or a batch does not fit the model.
        TorchquiltError: as the steps raise it.
    """
    chosen = _as_one_quantizer(quantizer)
    with working_if(progress, "exporting"):
        exported = export_model(model, example_inputs, dynamic_shapes)
    with working_if(progress, "preparing"):
        prepared = prepare_pt2e(exported, chosen, activation_observer=activation_observer, strict=strict)
    if observed_points(prepared):
        if calibration is None:
            raise missing_data(
                prepared,
                wanted="batches",
                got="calibration=None",
                remedy="pass batches, or choose a preset of dynamic or weight-only quantization",
            )
        calibrate(prepared, calibration, limit=limit, progress=progress)
    with working_if(progress, "converting"):
        quantized = convert_pt2e(prepared)
    if show:
        sys.stdout.write(f"{ledger_of(quantized)}\n")
    return quantized


def _as_one_quantizer(quantizer: object) -> Quantizer:
    if isinstance(quantizer, (list, tuple)):
        return ComposableQuantizer(quantizer)
    return as_quantizer(quantizer)
