"""compare: the error of each operator of a quantized model, its own and that of all before it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.terminal import progress_if
from torchquilt.accuracy.comparison_values import (
    ComparedOperator,
    ComparedOutput,
    Comparison,
    TensorError,
    Uncompared,
)
from torchquilt.accuracy.error_statistics import ErrorStatistics, decibels
from torchquilt.accuracy.measuring import (
    Measured,
    Measurements,
    Run,
    compare_values,
    is_rounded_constant,
    keep_float_values,
)
from torchquilt.accuracy.operator_pairs import OperatorPair, pair_operators
from torchquilt.accuracy.program_values import ProgramValues
from torchquilt.accuracy.running import (
    Runnable,
    checked_batches,
    float_copy,
    in_evaluation_mode,
    numbered,
    quantized_copy,
)
from torchquilt.accuracy.tensor_use import TensorUse
from torchquilt.artifact.loading import Artifact
from torchquilt.errors import ModelError
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import call_name, tensor_of
from torchquilt.graph.qdq import is_conversion
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Row
from torchquilt.lowering import LoweredProgram
from torchquilt.pt2e.calibration.calibrate import number_of
from torchquilt.pt2e.model_record import ledger_of

#: By so many dB an input may be better than the result of its operator and still be the reason for it.
_MARGIN = 3.0


def compare(
    float_model: ExportedProgram | GraphModule,
    quantized: GraphModule | ExportedProgram | Artifact | LoweredProgram,
    batches: Iterable[object],
    *,
    limit: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare a quantized model with its float model, operator by operator.

    Every operator that both models have gets two errors. The *isolated* one is its own: all that it reads is
    what the float model has there. The *accumulated* one is what it has in the quantized model, with the
    errors of all operators before it. Operators are paired by provenance, those in subgraphs of control flow
    as well. Each batch begins with the state (buffers) that the models have; neither is changed.

    The data is read once, a batch at a time. A batch costs one run of the float model and two of the
    quantized one. The values of one batch are in memory together, however many batches there are.

    Args:
        float_model: the exported model that was quantized.
        quantized: what :func:`torchquilt.convert_pt2e` returned, in Q/DQ or integer form; a model that is
            being trained, which is compared in evaluation mode; what :func:`torchquilt.load` returned; or a
            lowered program, of which outputs are compared, and the values between its steps where its
            runtime tells them.
        batches: as for :func:`torchquilt.calibrate`.
        limit: at most so many batches.
        progress: show how far it is on standard error, where that is a terminal.

    Raises:
        ModelError: the models are not a float and a quantized one.
        AccuracyError: there is no batch, or one does not go through a model.
    """
    expected = float_copy(float_model)
    total = number_of(batches, limit)
    batches = checked_batches(batches, expected)
    if limit is not None:
        batches = itertools.islice(batches, limit)
    with progress_if(progress, "comparing", total, "batches") as show:
        if isinstance(quantized, LoweredProgram):
            return _compare_program(in_evaluation_mode(expected, quantized), quantized, batches, show)
        found = _quantized(quantized)
        expected = in_evaluation_mode(expected, found)
        return _compare_models(expected, found, batches, show)


def _quantized(model: Any) -> GraphModule:
    return quantized_copy(model.program if isinstance(model, Artifact) else model)


def _compare_models(
    expected: GraphModule, found: GraphModule, batches: Iterable[object], show: Any
) -> Comparison:
    _check_outputs(expected, found)
    pairing = pair_operators(expected, found)
    measurements = Measurements(pair.name for pair in pairing.pairs)
    ledger = _ledger(found)
    names = _output_names(expected)
    float_runs = Runnable(keep_float_values(expected, pairing.pairs, measurements), "float model")
    runs = Runnable(compare_values(found, pairing, measurements), "quantized model")
    outputs: list[ErrorStatistics | None] = []
    count = 0
    for number, batch in numbered(batches):
        measurements.begin(Run.FLOAT)
        expected_outputs = float_runs(batch, number)
        measurements.begin(Run.ACCUMULATED)
        _compare_outputs(outputs, expected_outputs, runs(batch, number))
        measurements.begin(Run.ISOLATED)
        runs(batch, number)
        measurements.end_batch()
        count = number + 1
        show(count)
    rows = [_row(pair, measurements.by_name[pair.name], ledger.get(pair.name)) for pair in pairing.pairs]
    return Comparison(
        tuple(sorted(rows, key=_rank)),
        _outputs(names, outputs),
        count,
        tuple(Uncompared(one.node, one.reason) for one in pairing.unpaired),
    )


def _compare_program(
    expected: GraphModule, program: LoweredProgram, batches: Iterable[object], show: Any
) -> Comparison:
    from torchquilt._internal.torch_private import pytree
    from torchquilt.graph.signature import call_arguments

    names = _output_names(expected)
    values = ProgramValues(expected, program) if program.tells_values else None
    runs, count = Runnable(expected, "float model"), 0
    outputs: list[ErrorStatistics | None] = []
    for number, batch in numbered(batches):
        args, kwargs = call_arguments(expected, batch)
        found = list(pytree.tree_leaves(program.run(*args, **kwargs)))
        _compare_outputs(outputs, runs(batch, number), found)
        if values is not None:
            values.update(batch, args, kwargs)
        count = number + 1
        show(count)
    between = values.compared() if values is not None else ()
    return Comparison((), _outputs(names, outputs), count, values=between)


def _compare_outputs(
    outputs: list[ErrorStatistics | None], expected: Sequence[Any], found: Sequence[Any]
) -> None:
    if len(expected) != len(found):
        raise ModelError(
            "The two models do not return the same number of outputs.",
            expected=f"{len(expected)}, as the float model returns",
            got=f"{len(found)}",
            remedy="pass the float model that this model was quantized from",
        )
    if not outputs:
        outputs += [ErrorStatistics() if _is_real(value) else None for value in expected]
    for statistics, one, other in zip(outputs, expected, found, strict=True):
        if statistics is None:
            continue
        if isinstance(other, torch.Tensor) and one.shape == other.shape:
            statistics.update(one, other)
        else:  # another number of rows, where that depends on values, is no output without an error
            statistics.broken += max(one.numel(), 1)


def _check_outputs(expected: GraphModule, found: GraphModule) -> None:
    """Refuse two models whose outputs have different shapes, as far as that does not depend on the inputs."""
    from torchquilt._internal.torch_private import pytree

    leaves = [pytree.tree_leaves(model.graph.output_node().args[0]) for model in (expected, found)]
    for number, (one, other) in enumerate(zip(*leaves, strict=False)):
        shapes = [_static_shape(leaf) for leaf in (one, other)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise ModelError(
                f"Output {number} (counted from 0) of the two models has not the same shape.",
                node=getattr(one, "name", None),
                expected=f"{list(shapes[0] or ())}, as the float model returns",
                got=f"{list(shapes[1] or ())}",
                remedy="pass the float model that this model was quantized from",
            )


def _static_shape(leaf: Any) -> tuple[int, ...] | None:
    tensor = tensor_of(leaf) if isinstance(leaf, Node) else None
    if tensor is None or not all(isinstance(size, int) for size in tensor.shape):
        return None
    return tuple(tensor.shape)


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _output_names(model: GraphModule) -> list[str]:
    from torchquilt._internal.torch_private import pytree

    leaves = pytree.tree_leaves(model.graph.output_node().args[0])
    return [getattr(leaf, "name", str(leaf)) for leaf in leaves]


def _outputs(names: list[str], outputs: list[ErrorStatistics | None]) -> tuple[ComparedOutput, ...]:
    return tuple(
        ComparedOutput(name, statistics.figures())
        for name, statistics in zip(names, outputs, strict=False)
        if statistics is not None
    )


def _ledger(model: GraphModule) -> dict[str, Row]:
    try:
        ledger: Ledger = ledger_of(model)
    except ModelError:
        return {}
    return {row.node: row for row in ledger}


def _rank(row: ComparedOperator) -> tuple[float, float]:
    return row.isolated.sqnr, row.accumulated.sqnr


def _row(pair: OperatorPair, measured: Measured, decided: Row | None) -> ComparedOperator:
    tensors = tuple(_tensor(use) for use in measured.tensors)
    before = _before_rounding(measured)
    isolated = measured.isolated.figures()
    outputs = [one.spec for one in decided.tensors if one.edge == "output"] if decided else []
    return ComparedOperator(
        node=pair.name,
        op=decided.op if decided else call_name(pair.expected),
        module=decided.module if decided else module_path(pair.expected),
        quantizer=decided.quantizer if decided else None,
        pattern=decided.pattern if decided else "",
        rule=decided.rule if decided else "",
        spec=outputs[0] if outputs else "",
        isolated=isolated,
        accumulated=measured.accumulated.figures(),
        tensors=tensors,
        weight_sqnr=before,
        reason=_reason(measured, tensors, before) or _reason_of_form(measured, pair, decided),
        samples=measured.samples,
        diverged=measured.diverged,
    )


def _tensor(use: TensorUse) -> TensorError:
    count = max(use.count, 1)
    return TensorError(
        use.name,
        use.sqnr,
        use.range,
        use.step,
        use.saturated / count,
        use.unused,
        use.to_zero / count,
        use.zeroed_channels,
        min(1.0, use.cut_off / use.noise) if use.noise else 0.0,
    )


def _before_rounding(measured: Measured) -> float:
    """Signal to noise of the value before its output is rounded: that noise is what the other is not."""
    output = next((use for use in measured.tensors if use.name == "output"), None)
    whole = measured.isolated
    return decibels(whole.signal, max(0.0, whole.noise - (output.noise if output else 0.0)))


def _reason(measured: Measured, tensors: tuple[TensorError, ...], before: float) -> str:
    """Sentence about the tensor that is the largest part of an operator's own error; empty where none is."""
    sqnr = measured.isolated.figures().sqnr
    if sqnr == math.inf:
        return ""
    if sqnr == -math.inf:
        return "it returns NaN or infinities where the float model does not"
    zeroed = max(tensors, key=lambda one: one.zeroed_channels, default=None)
    if zeroed is not None and zeroed.zeroed_channels:
        return zeroed.reason
    read = [one for one in tensors if one.name != "output"]
    output = next((one for one in tensors if one.name == "output"), None)
    if output is not None and output.sqnr <= before:
        return output.reason
    worst = min(read, key=lambda one: one.sqnr, default=None)
    return (
        worst.reason if worst is not None and _is_of_inputs(measured, worst.sqnr <= before + _MARGIN) else ""
    )


def _is_of_inputs(measured: Measured, is_likely: bool) -> bool:
    """Whether inputs that are quantized where they are read cost an operator more than its weights."""
    if not measured.of_weights.count:
        return is_likely
    return 2 * measured.of_weights.noise < measured.before.noise


def _reason_of_form(measured: Measured, pair: OperatorPair, decided: Row | None) -> str:
    """Sentence about the error of an operator that none of its quantized activations explains."""
    if measured.isolated.figures().sqnr == math.inf:
        return ""
    if is_conversion(pair.found):
        return "it computes with integers"
    has_rounded_weights = any(is_rounded_constant(source) for source in pair.found.all_input_nodes)
    if measured.is_fake_quantized:
        return "its weights and its output are rounded" if has_rounded_weights else "its output is rounded"
    if has_rounded_weights:
        return "its weights are rounded"
    if pair.is_folded:
        return "the BatchNorm behind it is folded into its weights"
    if decided is not None and decided.written_as:
        return "it is written in another form"
    return "it reads what is not compared, or memory that is laid out in another way"
