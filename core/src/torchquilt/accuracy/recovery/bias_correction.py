"""Bias correction: take the mean error of each output channel out of the bias.

Rounding a weight shifts what an operator returns wherever its inputs have a mean (Nagel et al. 2019,
arXiv:1906.04721, section 4.2). The shift is measured, operator after operator in the order of the graph,
against the float model: each reads what the operators before it return with integers, their biases corrected.
To measure each with float inputs was tried, too, and gains less: what activations have lost stays lost.

A mean over few samples is partly chance. So each is made smaller, by ``1 - (2 · standard error / mean)²``,
and one of less than two standard errors is left out.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Interpreter, Node

from torchquilt._internal.terminal import progress
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt._internal.torch_private import pytree
from torchquilt.accuracy.recovery.channel_groups import set_argument
from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, note_step
from torchquilt.accuracy.recovery.weighted import channel_axis, is_weighted
from torchquilt.accuracy.running import checked_batches
from torchquilt.errors import AccuracyError, ModelError
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import copy_model, free_name, read_tensor, store_tensor
from torchquilt.graph.function_transforms import leaving_transforms
from torchquilt.graph.node_values import argument_of, constant_nodes
from torchquilt.graph.passes import Pass, run_passes
from torchquilt.graph.qdq import is_conversion
from torchquilt.graph.shared_storage import written_tensors
from torchquilt.graph.signature import call_arguments
from torchquilt.graph.subgraphs import regions
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.observer_points import QuantizationPoint, observed_points
from torchquilt.pt2e.scale_limits import BOUNDED_KEY

#: So many standard errors of a mean are taken for chance. With one, the architectures of the tests gain less
#: on data that they have not seen, and some lose.
_STANDARD_ERRORS = 2
_MEASURE = "error with that of the operators before it, relative to the output (MSE)"


def correct_biases(prepared: GraphModule, batches: Iterable[object]) -> GraphModule:
    """Subtract the mean error of each output channel from the bias of each quantized operator with a weight.

    An operator without a bias is given one. All batches go through the float and the quantized model in step,
    so the activations of all of them are in memory: a few dozen samples do.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned, calibrated. It is left as it was.
        batches: what :func:`torchquilt.calibrate` takes, best those of the calibration.

    Returns:
        A copy with the same calibration and other biases, which :func:`torchquilt.convert_pt2e` takes.
        :func:`steps_of` says what was done.

    Raises:
        ModelError: the model is not a prepared one, or is prepared for training.
        CalibrationError: it is not calibrated.
        AccuracyError: there is no batch, or one does not go through the model.
    """
    if stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a calibrated model can have its biases corrected.",
            expected="what prepare_pt2e returned, calibrated",
            got=stage_in_words(prepared),
            remedy="call it between calibrate and convert_pt2e",
        )
    given = list(checked_batches(batches, prepared))
    if not given:
        raise AccuracyError(
            "There was no batch to measure with.",
            expected="at least one batch",
            got="an empty iterable",
            remedy="a generator can be read only once: pass a list to use it again",
        )

    def correct(copied: GraphModule) -> GraphModule:
        return _correct(copied, _quantized(prepared), given)

    with default_global_state(), leaving_transforms(), torch.no_grad():
        corrected = run_passes(copy_model(prepared), (Pass("correct_biases", correct),))
        generate_code(corrected)
    return corrected


def _quantized(prepared: GraphModule) -> GraphModule:
    """The converted model, in which operators that no data reached stay in float, if data reached any."""
    points = observed_points(prepared).values()
    is_seen = not points or any(point.observer.count for point in points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convert says it when it is asked for
        return convert_pt2e(prepared, unseen="float" if is_seen else "error")


def _correct(model: GraphModule, quantized: GraphModule, batches: list[Any]) -> GraphModule:
    points = {name for name, each in model.named_modules() if isinstance(each, QuantizationPoint)}
    constants = constant_nodes(model.graph, points)
    inside = {node.name: node for node in quantized.graph.nodes}
    meant: dict[str, Node] = {}
    left: list[tuple[str, str]] = []
    for node in filter(is_weighted, model.graph.nodes):
        trouble = _trouble(node, inside.get(node.name), constants)
        if trouble:
            left.append((node.name, trouble))
        else:
            meant[node.name] = node
    left += [
        (region.name_of(node), "it is in a subgraph")
        for region in regions(model)[1:]
        for node in filter(is_weighted, region.module.graph.nodes)
    ]
    gains: list[Gain] = []
    reads = Counter(str(node.target) for node in model.graph.find_nodes(op="get_attr"))
    with progress("correcting biases", len(meant), "operators") as show:
        for done, (name, shift, gain) in enumerate(_shifts(model, quantized, batches, meant)):
            show(done + 1)
            if not bool(shift.any()):
                left.append((name, "its mean error is no larger than chance makes it"))
                continue
            gains.append(gain)
            _shift_bias(model, meant[name], shift, points, reads)
    note_step(model, RecoveryStep("correct_biases", [gain.node for gain in gains], left, gains))
    if gains:
        outdate(model)
    return model


def _trouble(node: Node, quantized: Node | None, constants: frozenset[Node]) -> str:
    """Reason why the bias of an operator is not corrected, empty where it is."""
    if quantized is None or not any(map(is_conversion, quantized.all_input_nodes)):
        return "it is not quantized"
    bias = argument_of(node, "bias")
    if bias is not None and bias not in constants:
        return "its bias is no constant"
    if bias is not None and bias.op == "call_module" and len(bias.users) > 1:
        return "its bias is quantized together with that of another operator"
    return ""


class _Run(Interpreter):
    """One model on one batch, node by node."""

    def __init__(self, model: GraphModule, batch: Any) -> None:
        super().__init__(copy_model(model) if written_tensors(model) else model)
        args, kwargs = call_arguments(model, batch)
        self.args_iter = iter(pytree.tree_leaves((args, kwargs)))
        self._nodes = iter(self.graph.nodes)

    def until(self, name: str) -> torch.Tensor:
        """Run until a node has been computed, and return its value."""
        for node in self._nodes:
            self.env[node] = self.run_node(node)
            for unused in self.user_to_last_uses.get(node, ()):
                del self.env[unused]
            if node.name == name:
                value: torch.Tensor = self.env[node]
                return value
        raise AssertionError(f"{name} is not in the graph")

    def add(self, name: str, shift: torch.Tensor) -> None:
        """Add something to each channel of the node that was computed last."""
        node = next(node for node in reversed(self.env) if node.name == name)
        self.env[node] = self.env[node] + along(node, shift, self.env[node])

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a module; observer points are shown nothing."""
        if isinstance(self.fetch_attr(target), QuantizationPoint):
            return args[0]
        return super().call_module(target, args, kwargs)


def along(node: Node, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value for each output channel of an operator, shaped to be added to its output."""
    shape = [1] * like.dim()
    shape[channel_axis(node, node)] = -1
    return values.to(like.device, like.dtype).reshape(shape)


def _shifts(
    model: GraphModule, quantized: GraphModule, batches: list[Any], meant: dict[str, Node]
) -> Iterator[tuple[str, torch.Tensor, Gain]]:
    """The shift of the bias of each operator, and what it gains, in the order of the graph."""
    try:
        runs = [(_Run(model, batch), _Run(quantized, batch)) for batch in batches]
        for name, node in meant.items():
            measured = _Measured(node)
            for in_float, with_integers in runs:
                measured.take(in_float.until(name), with_integers.until(name))
            shift = -measured.mean()
            for _, with_integers in runs:
                with_integers.add(name, shift)
            yield name, shift, measured.gain(shift)
    except (RuntimeError, TypeError, ValueError, StopIteration) as error:
        raise AccuracyError(
            "A batch does not go through the model.",
            expected="inputs like the example inputs of the export",
            got=f"{type(error).__name__}: {error}",
            remedy="pass batches as for torchquilt.calibrate",
        ) from error


@attrs.define(eq=False)
class _Measured:
    """The error of one operator, sample by sample."""

    node: Node
    means: list[torch.Tensor] = attrs.field(factory=list)
    count: int = 0
    error: float | torch.Tensor = 0.0
    squares: float = 0.0
    output: float = 0.0

    def take(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Take in one batch: a mean for each sample and channel, and sums over all."""
        error = (found.double() - expected.double()).movedim(channel_axis(self.node, self.node), -1).cpu()
        samples = error.shape[0] if error.dim() > 1 else 1
        error = error.reshape(samples, -1, error.shape[-1])  # channels last
        if not error.numel():
            return
        self.means.append(error.mean(1))
        self.count += error.shape[0] * error.shape[1]
        self.error = self.error + error.sum((0, 1))
        self.squares += float(error.square().sum())
        self.output += float(expected.double().square().sum())

    def mean(self) -> torch.Tensor:
        """The mean error of each channel, without the share that chance explains."""
        if not self.means:
            return torch.zeros(1)
        samples = torch.cat(self.means)
        mean = samples.mean(0)
        if len(samples) < 2:
            return mean
        squared_error = samples.var(0) / len(samples)
        by_chance = _STANDARD_ERRORS**2 * squared_error / mean.square().clamp(min=1e-300)
        return mean * (1 - by_chance).clamp(min=0.0)

    def gain(self, shift: torch.Tensor) -> Gain:
        """The error without and with a shift of each channel."""
        after = self.squares + float((2 * shift * self.error + self.count * shift.square()).sum())
        size = self.output or 1.0
        return Gain(self.node.name, _MEASURE, self.squares / size, max(after, 0.0) / size)


def _shift_bias(
    model: GraphModule, node: Node, shift: torch.Tensor, points: Container[str], reads: Mapping[str, int]
) -> None:
    """Add something to the bias of an operator; changes the model.

    Args:
        model: the prepared model.
        node: the operator.
        shift: what is added to each element.
        points: names of the observer points.
        reads: name of a stored tensor → the number of nodes that read it.
    """
    reader, argument = node, argument_of(node, "bias")
    if argument is None:
        dtype = node.meta["val"].dtype
        name = free_name(model, f"{node.name}_bias")
        stored = torch.nn.Parameter(shift.to(dtype), requires_grad=False)
        set_argument(node, "bias", read_tensor(model, name, stored, before=node))
        return
    if argument.op == "call_module":  # an observer point of a bias that is quantized
        reader, argument = argument, argument.all_input_nodes[0]
    value = constant_value(model, argument, points)
    new = torch.nn.Parameter((value.double() + shift).to(value.dtype), requires_grad=False)
    if argument.op == "get_attr" and len(argument.users) == 1 and reads[str(argument.target)] == 1:
        store_tensor(model, str(argument.target), new)
        return
    read = read_tensor(model, free_name(model, f"{node.name}_bias"), new, before=reader)
    reader.replace_input_with(argument, read)
    _rename_bias(model, argument.name, read.name, reader.name)


def _rename_bias(model: GraphModule, old: str, new: str, reader: str) -> None:
    """Let the limits of an operator speak of its new bias."""
    for node in model.graph.nodes:
        bounded = node.meta.get(BOUNDED_KEY)
        if bounded is not None and bounded.bias == (old, reader):
            node.meta[BOUNDED_KEY] = attrs.evolve(bounded, bias=(new, reader))
