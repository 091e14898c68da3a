"""convert_pt2e: from a calibrated model to one with quantize and dequantize operators."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Literal

from torch.fx import GraphModule

from torchquilt._internal.garbage_collection import garbage_collector_disabled
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.errors import ModelError
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.edits import copy_model, drop_unused_tensors
from torchquilt.graph.passes import Pass, everywhere, run_passes
from torchquilt.graph.shared_storage import compact
from torchquilt.graph.subgraph_constants import open_subgraphs
from torchquilt.ledger.rows import Caution
from torchquilt.pt2e.calibration.outliers import find_outliers, note_cautions, warn_of
from torchquilt.pt2e.calibration.unreached import leave_or_refuse_unseen
from torchquilt.pt2e.model_record import (
    RECORD_KEY,
    restore_initial_state,
    set_stage,
    stage_in_words,
    stage_of,
)
from torchquilt.pt2e.observer_points import QuantizationPoint
from torchquilt.pt2e.qat.back import as_calibrated
from torchquilt.pt2e.qdq_insertion import Conversion
from torchquilt.pt2e.quantization_tags import carry_tags
from torchquilt.pt2e.reference import to_reference
from torchquilt.pt2e.scale_limits import BOUNDED_KEY
from torchquilt.spec.annotation import ANNOTATION_KEY


def convert_pt2e(
    model: GraphModule,
    use_reference_representation: bool = False,
    fold_quantize: bool = True,
    *,
    unseen: Literal["error", "float"] = "error",
) -> GraphModule:
    """Replace each point of a calibrated or trained model by quantize and dequantize operators.

    The prepared model is left as it was: it can be calibrated or trained further and converted again. As in
    :func:`torchquilt.prepare_pt2e`, Python's collector of garbage pauses meanwhile.

    Args:
        model: what :func:`torchquilt.prepare_pt2e` returned, after calibration, or
            :func:`torchquilt.prepare_qat_pt2e`, after training.
        use_reference_representation: compute with the integers, as
            :func:`torchquilt.pt2e.reference.to_reference` describes, instead of with what they
            stand for.
        fold_quantize: store constants as integers. With False they stay in float, with the operators
            that quantize them in the graph; both compute the same bits.
        unseen: what to do with operators that calibration never reached, as in a branch that was never
            taken: ``"error"``, or ``"float"`` to leave them in float, which the ledger then says.

    Returns:
        A GraphModule with the signature of the model. It can be run, exported and saved; a process
        that loads it needs ``torch.ao.quantization.fx._decomposed`` imported, and nothing of torchquilt.

    Raises:
        ModelError: the model is not a prepared one.
        CalibrationError: a tensor saw no data, a constant cannot be quantized as asked or has elements that
            are NaN or infinite, or no scale fits into the integers of a kernel.

    Warns:
        UserWarning: a symmetric range has next to no integers on a side of zero where values are.
    """
    _check_is_prepared(model)
    if stage_of(model) == "trainable":
        with default_global_state():
            model = as_calibrated(model)
    with default_global_state(), garbage_collector_disabled():
        # Points are only read, and are not in the result; the record is replaced where something is added.
        points = [module for module in model.modules() if isinstance(module, QuantizationPoint)]
        converted = copy_model(model, kept=(*points, model.meta[RECORD_KEY]))
        restore_initial_state(converted)
        leave = partial(leave_or_refuse_unseen, choice=unseen)
        converted = run_passes(converted, (Pass("leave_or_refuse_unseen", leave),))
        cautions = [*find_outliers(converted)]
        warn_of(tuple(cautions))
        passes = (
            everywhere(
                "replace_points",
                partial(_replace_points, fold_quantize=fold_quantize, cautions=cautions),
            ),
            Pass("open_subgraphs", open_subgraphs),
            Pass("drop_unused", _drop_unused),
        )
        converted = run_passes(converted, passes)
        note_cautions(converted, cautions)
        for caution in cautions:
            if caution.code == "cut_off":
                warnings.warn(str(caution), UserWarning, stacklevel=2)
        set_stage(converted, "converted")
        if not use_reference_representation:
            generate_code(converted)
            return converted
    return to_reference(converted)


def _check_is_prepared(model: object) -> None:
    stage = stage_of(model)
    if stage not in ("prepared", "trainable"):
        raise ModelError(
            "Only a prepared model can be converted.",
            expected="what prepare_pt2e returned, calibrated, or what prepare_qat_pt2e returned, trained",
            got=stage_in_words(model),
            remedy=_remedy(model),
        )


def _remedy(model: object) -> str:
    """Remedy for what cannot be converted: a wrapper that holds what can, or anything else."""
    for name in ("module", "_orig_mod"):  # of DistributedDataParallel and AveragedModel, of torch.compile
        if stage_of(getattr(model, name, None)) is not None:
            return f"convert what the {type(model).__name__} holds: convert_pt2e(model.{name})"
    return "prepare_pt2e, then calibrate, then convert_pt2e; or prepare_qat_pt2e, then train"


def _replace_points(model: GraphModule, fold_quantize: bool, cautions: list[Caution]) -> GraphModule:
    """Quantize and dequantize operators for every point of one region."""
    points = {
        name: module for name, module in model.named_children() if isinstance(module, QuantizationPoint)
    }
    conversion = Conversion(model, points, fold_quantize)
    cautions += conversion.cautions
    for node in list(model.graph.nodes):
        if node.op == "call_module" and node.target in points:
            conversion.replace(node, points[str(node.target)])
    carry_tags(model.graph)
    for node in model.graph.nodes:
        for key in (ANNOTATION_KEY, BOUNDED_KEY):  # they name nodes of the prepared graph
            node.meta.pop(key, None)
    for name in points:
        model.delete_submodule(name)
    if points:
        outdate(model)
    return model


def _drop_unused(model: GraphModule) -> GraphModule:
    """Forget the float values without readers."""
    size = len(model.graph.nodes)
    drop_unused_tensors(model)
    compact(model)
    if len(model.graph.nodes) < size:
        outdate(model)
    return model
