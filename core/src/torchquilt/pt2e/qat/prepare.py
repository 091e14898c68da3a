"""prepare_qat_pt2e: from an exported float model to one that trains with quantization."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Literal

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.garbage_collection import garbage_collector_disabled
from torchquilt._internal.text_tables import few
from torchquilt._internal.torch_defaults import global_state_kept
from torchquilt.errors import CalibrationError
from torchquilt.graph.code_generation import generate_code
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import overload_name
from torchquilt.graph.passes import Pass, run_passes
from torchquilt.graph.shared_storage import tensors_of
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.graph.training_mode import always_draws, was_exported_in_training
from torchquilt.observers import MinMaxObserver, QParams
from torchquilt.pt2e.annotate import annotate_copy
from torchquilt.pt2e.calibration.merging import Calibration
from torchquilt.pt2e.model_record import keep_initial_state, set_stage
from torchquilt.pt2e.observer_points import (
    ConstantPoint,
    DerivedPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.prepare import record_of, with_points
from torchquilt.pt2e.qat.agreement import add_agreement
from torchquilt.pt2e.qat.batch_norm import TrainedNorm
from torchquilt.pt2e.qat.computed_points import DerivedTrainingPoint, DynamicTrainingPoint, KnownPoint
from torchquilt.pt2e.qat.followed_points import ActivationPoint, WeightPoint
from torchquilt.pt2e.qat.learned_points import LearnedPoint
from torchquilt.pt2e.qat.optimizer_check import note_parameters
from torchquilt.pt2e.qat.points import ParameterPoint, Standing, TrainingPoint, training_points
from torchquilt.pt2e.qat.ranges import Ranges, known_ranges
from torchquilt.pt2e.qat.settling import let_biases_settle, settle_before_passes
from torchquilt.pt2e.qat.wiring import (
    Calls,
    let_copies_follow,
    let_float_weights_rest,
    let_norms_train,
    let_switches_follow,
    replace_points,
    to_evaluation,
)

#: How far a batch moves the average of a range, where nothing else is said.
SHARE = 0.01

_EXPECTED = "'moving_average' | 'moving_average:0.05' | 'learned'"


def prepare_qat_pt2e(
    model: ExportedProgram | GraphModule,
    quantizer: object,
    *,
    fake_quantize: Literal["moving_average", "learned"] = "moving_average",
    ranges_from: GraphModule | Calibration | None = None,
    strict: bool = True,
) -> GraphModule:
    """Make a model that trains with the rounding of its integers: quantization-aware training.

    Everything is decided as by :func:`torchquilt.prepare_pt2e`. The result is trained like any module: with
    ``train()`` and ``eval()``, an optimizer and a loss. In evaluation mode it computes bit for bit what
    :func:`torchquilt.convert_pt2e` makes of it. The model that is handed in is left as it was.

    Args:
        model: a :class:`torch.export.ExportedProgram` or its ``.module()``, exported in training mode
            (``torch.export.export(model.train(), …)``) or in evaluation mode.
        quantizer: a :class:`torchquilt.Quantizer`, or any object with ``annotate(model)``.
        fake_quantize: how ranges are found. ``"moving_average"``: those of activations are moving averages
            of the smallest and largest value of each batch, which move by a share of 0.01 or of what
            follows a colon; those of weights are the weights' own. ``"learned"``: scales are parameters,
            and learned (LSQ).
        ranges_from: ranges to begin with: a calibrated model that :func:`torchquilt.prepare_pt2e` made of
            the same model with the same quantizer, or a :class:`torchquilt.Calibration`. Without, the
            first batch says them.
        strict: raise for rules that cannot take effect; with False they are warnings.

    Returns:
        A GraphModule in training mode. Its parameters are copies of those of the model, with the same names
        and values. Make the optimizer from them.

    Raises:
        ModelError: the model is not an exported one, was prepared before, or has quantized operators in
            control flow.
        UnsupportedConfigError: a row of a table takes something, and cannot be trained (``is_qat=False``).
        CalibrationError: there is no such way to fake quantize, the ranges are those of other decisions, or
            the quantizer puts in observers, which would have no effect without ``ranges_from``.
        IntentError, AnnotationError, CompositionError, SharingError, QuantizerError: as by
            :func:`torchquilt.prepare_pt2e`.

    Warns:
        UserWarning: a program in training mode draws random numbers that ``eval()`` does not switch off, or a
            BatchNorm has a momentum of 0.
    """
    share = _share(fake_quantize)
    with global_state_kept(), garbage_collector_disabled():
        original = model.module() if isinstance(model, ExportedProgram) else model
        _warn_of_random(original)
        evaluation = Pass("to_evaluation", to_evaluation)
        annotate = partial(annotate_copy, original, quantizer, to_evaluation=evaluation)
        annotated = annotate(strict=strict, keep_folded=True)
        prepared = with_points(annotated, MinMaxObserver)
        known = known_ranges(ranges_from, prepared, partial(annotate, strict=False))
        make = partial(_point, share=share, known=known)
        passes = (
            Pass("replace_points", partial(replace_points, make=make)),
            Pass("let_copies_follow", let_copies_follow),
            Pass("let_norms_train", let_norms_train),
            Pass("let_switches_follow", let_switches_follow),
            Pass("let_float_weights_rest", let_float_weights_rest),
            Pass("let_biases_settle", let_biases_settle),
            Pass("own_tensors", partial(_own_tensors, original=original)),
            Pass("add_agreement", add_agreement),
        )
        trainable = run_passes(prepared, passes)
        _link_derived(trainable)
        _warn_of_idle_norms(trainable)
        set_stage(trainable, "trainable", record_of(annotated))
        settle_before_passes(trainable)
        keep_initial_state(trainable)
        note_parameters(trainable)
        generate_code(trainable)
    return trainable.train()


def _warn_of_random(model: GraphModule) -> None:
    """Warn of random numbers that a program in training mode draws and that no flag switches off."""
    if not was_exported_in_training(model):
        return  # what a program in evaluation mode draws is meant
    found = [node for node in nodes_of(model) if always_draws(node)]
    if found:
        drawing = [*dict.fromkeys(module_path(node) or node.name for node in found)]
        warnings.warn(
            f"{few(drawing, 3)}: {overload_name(found[0])} draws random numbers in evaluation, "
            "too, and in the converted model: nothing in the program says that it is for training. If it is "
            "stochastic depth or another dropout made by hand, export the model in evaluation mode.",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_idle_norms(model: GraphModule) -> None:
    """Warn of BatchNorms whose statistics training does not move: those of a cumulative average."""
    paths = [held.path for held in model.modules() if isinstance(held, TrainedNorm) and held.momentum == 0]
    if paths:
        warnings.warn(
            f"{few(paths, 3)}: the momentum is 0 in this program, so training moves no running "
            "statistics, with which evaluation computes. Export writes that for momentum=None (a cumulative "
            "average): give the BatchNorm a number before export, or call torchquilt.qat.freeze_batch_norm.",
            UserWarning,
            stacklevel=3,
        )


def _share(choice: str) -> float | None:
    """Share by which ranges move; None where they are learned."""
    name, colon, number = choice.partition(":") if isinstance(choice, str) else ("", "", "")
    if choice == "learned":
        return None
    try:
        share = float(number) if colon else SHARE
    except ValueError:
        share = -1.0
    if name != "moving_average" or not 0 < share <= 1:
        raise CalibrationError(
            f"There is no way to fake quantize called {choice!r}.", expected=_EXPECTED, got=repr(choice)
        )
    return share


def _point(
    point: QuantizationPoint[Any], calls: Calls, *, share: float | None, known: Ranges
) -> TrainingPoint:
    """The module that trains at an observer point of a prepared model."""
    standing = Standing(point.names, _modules(calls.nodes))
    if isinstance(point, FixedPoint):
        return KnownPoint(point.spec, point.qparams(), standing)
    if isinstance(point, DerivedPoint):
        return DerivedTrainingPoint(point, standing)
    if isinstance(point, DynamicPoint):
        return DynamicTrainingPoint(point.spec, standing)
    if isinstance(point, ConstantPoint):
        return _weight_point(point, calls, standing, is_learned=share is None)
    assert isinstance(point, ObservedPoint)
    return _activation_point(point, calls, standing, share, known)


def _modules(calls: list[Node]) -> tuple[str, ...]:
    """Paths of the modules whose operators make or read the tensor of an observer point."""
    around = [node for call in calls for node in (call, *call.all_input_nodes, *call.users)]
    paths = (module_path(node) for node in around if node.op != "get_attr")
    return tuple(dict.fromkeys(path for path in paths if path))


def _weight_point(
    point: ConstantPoint, calls: Calls, standing: Standing, *, is_learned: bool
) -> TrainingPoint:
    found = point.qparams_for(calls.values())
    shape = tuple(found.scale.shape)
    if is_learned and not found.zero_point.is_floating_point():
        learned = LearnedPoint(point.spec, standing, shape, is_constant=True)
        learned.start_from(found)
        return learned
    weight = WeightPoint(point.spec, standing, shape)
    weight.store(found)
    return weight


def _activation_point(
    point: ObservedPoint, calls: Calls, standing: Standing, share: float | None, known: Ranges
) -> TrainingPoint:
    shape: tuple[int, ...] = ()
    if point.spec.ch_axis is not None:
        shape = (int(calls.nodes[0].meta["val"].shape[point.spec.ch_axis]),)
    found = known.of(point)
    if found is None and type(point.observer) is not MinMaxObserver:
        raise CalibrationError(
            "Training finds ranges in a way of its own, so the observer that a quantizer put in would have "
            "no effect.",
            node=", ".join(point.names),
            expected="a quantizer without prepare_obs_or_fq_callback, or ranges_from=",
            got=type(point.observer).__name__,
            remedy="hand in what those observers found: prepare_qat_pt2e(…, ranges_from=calibrated), where "
            "calibrated is a model that prepare_pt2e made with this quantizer",
        )
    if share is None:
        learned = LearnedPoint(point.spec, standing, shape, is_constant=False)
        if found is not None:
            learned.start_from(QParams(found.scale, found.zero_point))
        return learned
    activation = ActivationPoint(point.spec, standing, shape, share)
    if found is not None:
        activation.start_from(found.low, found.high, QParams(found.scale, found.zero_point))
    return activation


def _link_derived(model: GraphModule) -> None:
    points = training_points(model)
    for name, point in points.items():
        if isinstance(point, DerivedTrainingPoint):
            prefix = name.rpartition(".")[0]
            sources = [points[f"{prefix}.{one}" if prefix else one] for one in point.source_names]
            point.link([source for source in sources if isinstance(source, ParameterPoint)])


def _own_tensors(model: GraphModule, original: GraphModule) -> GraphModule:
    """Give a model tensors of its own, which require gradients where those of the original do."""
    asks = {
        name: parameter.requires_grad for name, parameter in original.named_parameters(remove_duplicate=False)
    }
    copies: dict[int, Any] = {}
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in asks or id(parameter) not in names:
            names[id(parameter)] = name
    in_points = {
        id(tensor)
        for point in training_points(model).values()
        for tensor in (*point.parameters(), *point.buffers())
    }
    for key, tensor in tensors_of(model).items():
        if key in in_points:
            continue
        copied: Any = tensor.detach().clone()
        if isinstance(tensor, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=asks.get(names[key], False))
        copies[key] = copied
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for table in tables:
            table.update({one: copies[id(value)] for one, value in table.items() if id(value) in copies})
    return model
