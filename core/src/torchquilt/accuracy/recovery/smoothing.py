"""SmoothQuant: move the outliers of activations into the weights of the linears that read them.

Xiao et al. 2022, arXiv:2211.10438: the channels of what a norm returns are divided by
``s = max|x|^alpha / max|w|^(1 - alpha)``, and the weights of all linears that read them are multiplied by it.
The strength alpha is searched for each layer, by the error of what the linears return with an activation of 8
bits per tensor and weights of 8 bits per channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.accuracy.recovery.channel_groups import ChannelGroup, Channels, Reader, write_constant
from torchquilt.accuracy.recovery.observing import observe
from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, note_step
from torchquilt.accuracy.recovery.weighted import LINEAR, is_weighted, scaled_weight
from torchquilt.errors import AccuracyError
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import drop_unused_tensors
from torchquilt.graph.node_values import argument_of, overload_name, rank, tensor_of
from torchquilt.graph.passes import Pass, run_passes
from torchquilt.graph.provenance import complete_provenance
from torchquilt.pt2e.annotate import copy_of_exported

#: The strengths that are tried; 0 would be weights alone, 1 activations alone.
_ALPHAS = tuple(step / 20 for step in range(2, 20))
#: Rows of the activation that the search computes with, over all batches.
_MOST_ROWS = 512
#: A channel is scaled by no more, so that no half precision overflows.
_LARGEST = 2.0**12
#: A strength has to lower the error by so much: what few rows tell of a range is partly chance.
_LEAST_GAIN = 0.2

_MEASURE = "error of the linears with 8 bits, relative to their output (MSE)"
_NORMS = frozenset(("aten.layer_norm.default", "aten.rms_norm.default"))
_PRODUCTS = frozenset(("aten.mul.Tensor",))
_SUMS = frozenset(("aten.add.Tensor",))


def smooth(
    model: ExportedProgram | GraphModule, batches: Iterable[object], *, alpha: float | None = None
) -> GraphModule:
    """Divide the channels that linears read by scales, and multiply their weights, computing the same.

    The scales go into a layer norm or RMS norm, also one that is written out and ends with a product with a
    constant, or into a linear, where all that reads it are linears with weights of their own.

    Args:
        model: a :class:`torch.export.ExportedProgram` or its ``.module()``, in evaluation mode. It is left as
            it was.
        batches: what :func:`torchquilt.calibrate` takes.
        alpha: how much of the outliers goes into the weights, from 0 to 1. By default it is searched for each
            layer, and a layer where no strength lowers the error is left alone.

    Returns:
        What :func:`torchquilt.prepare_pt2e` takes: a copy with the same signature that computes the same, up
        to the rounding of floating point numbers. :func:`steps_of` says what was done.

    Raises:
        ModelError: the model is no exported float model in evaluation mode.
        AccuracyError: there is no batch, or one does not go through the model; alpha is out of range.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise AccuracyError("Alpha is a share.", expected="None, or a number from 0 to 1", got=alpha)
    with default_global_state():

        def smooth_groups(copied: GraphModule) -> GraphModule:
            return _smooth(copied, batches, alpha)

        passes = (Pass("complete_provenance", complete_provenance), Pass("smooth", smooth_groups))
        smoothed = run_passes(copy_of_exported(model), passes)
        generate_code(smoothed)
    return smoothed


def _smooth(model: GraphModule, batches: Iterable[object], alpha: float | None) -> GraphModule:
    channels = Channels(model)
    groups, left = _groups(channels)
    inputs = (argument_of(reader.node, "input") for group in groups for reader in group.readers)
    seen = {node: _Seen() for node in inputs}
    if groups:
        observe(model, {node: ((node,), values.show) for node, values in seen.items()}, batches)
    gains: list[Gain] = []
    for group in groups:
        chosen = _choose(model, group, seen, alpha)
        if chosen is None:
            left.append((group.source.name, "no strength lowers the error of what reads it"))
            continue
        scales, before, after = chosen
        _apply(channels, group, scales)
        gains.append(Gain(group.source.name, _MEASURE, before, after))
    note_step(model, RecoveryStep("smooth", [gain.node for gain in gains], left, gains))
    if gains:
        drop_unused_tensors(model)
        outdate(model)
    return model


def _groups(channels: Channels) -> tuple[list[ChannelGroup], list[tuple[str, str]]]:
    """The groups of norms, products with constants and linears; of two before one reader the nearer one."""
    groups: list[ChannelGroup] = []
    left: list[tuple[str, str]] = []
    taken: dict[Node, Node] = {}
    for node in reversed(channels.model.graph.nodes):
        is_known = _is_source(channels, node)
        if isinstance(is_known, str):
            left.append((node.name, is_known))
        if is_known is not True:
            continue
        axis = (rank(node) or 0) - 1
        value: Any = tensor_of(node)
        group = channels.group_of(node, axis, value.shape[-1], lambda reader: overload_name(reader) == LINEAR)
        if isinstance(group, str):
            if overload_name(node) in _NORMS:
                left.append((node.name, group))
            continue
        other = next((taken[reader.node] for reader in group.readers if reader.node in taken), None)
        if other is None:
            groups.append(group)
            taken.update((reader.node, node) for reader in group.readers)
        elif overload_name(node) in _NORMS:
            left.append((node.name, f"{other.name} stands nearer to what reads it"))
    return groups[::-1], left[::-1]


def _is_source(channels: Channels, node: Node) -> bool | str:
    """Whether the last axis of what a node returns can be divided, or the reason why not."""
    name, value = overload_name(node), tensor_of(node)
    if value is None or value.dim() == 0 or not isinstance(value.shape[-1], int):
        return False
    if name in _NORMS:
        return _trouble_of_norm(channels, node) or True
    if name in _PRODUCTS:
        return _constant_operand(channels, node) is not None
    if name in _SUMS:
        product = _product_before(channels, node)
        return product is not None and _constant_operand(channels, product) is not None
    if name == LINEAR and is_weighted(node):
        return not (channels.trouble_of_weight(node) or channels.trouble_of_bias(node))
    return False


def _trouble_of_norm(channels: Channels, node: Node) -> str:
    if len(argument_of(node, "normalized_shape")) != 1:
        return f"{node.name} normalizes over several axes"
    weight = argument_of(node, "weight")
    if weight is None:
        return f"{node.name} has no weight"
    others = [weight, argument_of(node, "bias") if "layer_norm" in overload_name(node) else None]
    if any(other is not None and other not in channels.constants for other in others):
        return f"the weight of {node.name} is no constant"
    return ""


def _constant_operand(channels: Channels, node: Node) -> str | None:
    """The name of the argument of a product or a sum that is a constant, of at most one axis."""
    for argument in ("self", "other"):
        operand = argument_of(node, argument)
        other = argument_of(node, "other" if argument == "self" else "self")
        is_tensor = isinstance(operand, Node) and operand in channels.constants
        if not is_tensor or not isinstance(other, Node) or other in channels.constants:
            continue
        shapes = [getattr(tensor_of(each), "shape", ()) for each in (operand, node)]
        if all(size == 1 for size in shapes[0][:-1]) and len(shapes[0]) <= len(shapes[1]):
            return argument
    return None


def _product_before(channels: Channels, node: Node) -> Node | None:
    """The product with a constant that alone a sum with a constant reads: a norm that is written out."""
    argument = _constant_operand(channels, node)
    if argument is None or argument_of(node, "alpha") != 1:
        return None
    product = argument_of(node, "other" if argument == "self" else "self")
    return product if overload_name(product) in _PRODUCTS and len(product.users) == 1 else None


@attrs.define(eq=False)
class _Seen:
    """Rows of a tensor that linears read, some of each batch."""

    batches: list[torch.Tensor] = attrs.field(factory=list)

    def show(self, value: torch.Tensor) -> None:
        """Take in one batch."""
        flat = value.detach().reshape(-1, value.shape[-1]).float()
        if len(flat):
            self.batches.append(flat[:: -(-len(flat) // _MOST_ROWS)].clone())

    def halves(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows of every other batch and those of the others, or both halves of the only one."""
        if len(self.batches) == 1:
            (rows,) = self.batches
            first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            return (_some(first), _some(second)) if len(first) else None
        if not self.batches:
            return None
        return _some(torch.cat(self.batches[::2])), _some(torch.cat(self.batches[1::2]))


def _some(rows: torch.Tensor) -> torch.Tensor:
    return rows[:: -(-len(rows) // _MOST_ROWS)]


@attrs.frozen(eq=False)
class _Read:
    """One linear of a group: both halves of the rows that it reads, and its weight."""

    reader: Reader
    halves: tuple[torch.Tensor, torch.Tensor]
    weight: torch.Tensor

    def size(self) -> float:
        """The squares of what it returns, without its bias."""
        return sum(float((half @ self.weight.T).square().sum()) for half in self.halves)

    def largest(self, halves: tuple[int, ...], group: ChannelGroup) -> torch.Tensor:
        """The largest absolute value of each channel of the source in some of the halves."""
        rows = torch.cat([self.halves[half] for half in halves])
        return self._of_source(rows.abs().amax(0), group)

    def columns(self, group: ChannelGroup) -> torch.Tensor:
        """The largest absolute value of the weight for each channel of the source."""
        return self._of_source(self.weight.abs().amax(0), group)

    def _of_source(self, values: torch.Tensor, group: ChannelGroup) -> torch.Tensor:
        ours = self.reader.channels >= 0
        found = torch.zeros(group.channels)
        return found.scatter_reduce_(0, self.reader.channels[ours], values[ours], "amax")

    def error(self, scales: torch.Tensor, fitted: int) -> float:
        """The squared error with 8 bits for one half of the rows, with the range of the other half."""
        spread = self.reader.spread(scales)
        rows = self.halves[1 - fitted]
        read = _rounded(rows / spread, like=self.halves[fitted] / spread)
        found = read @ _rounded_rows(self.weight * spread).T
        return float((rows @ self.weight.T - found).square().sum())


def _choose(
    model: GraphModule, group: ChannelGroup, seen: dict[Node, _Seen], alpha: float | None
) -> tuple[torch.Tensor, float, float] | None:
    """The scales with the smallest error, and the error without and with them; None where none is smaller.

    A range that fits few rows too well cuts off what comes later. So the scales and the range of one half of
    the rows are judged by the error of the other half.
    """
    reads: list[_Read] = []
    for reader in group.readers:
        halves = seen[argument_of(reader.node, "input")].halves()
        if halves is None:
            return None
        reads.append(_Read(reader, halves, constant_value(model, argument_of(reader.node, "weight")).float()))
    columns = torch.stack([each.columns(group) for each in reads]).amax(0)
    size = sum(each.size() for each in reads) or 1.0

    def scales_of(halves: tuple[int, ...], strength: float | None) -> torch.Tensor:
        largest = torch.stack([each.largest(halves, group) for each in reads]).amax(0)
        return torch.ones_like(largest) if strength is None else _scales(largest, columns, strength)

    def error(strength: float | None) -> float:
        scales = [scales_of((half,), strength) for half in (0, 1)]
        return sum(each.error(scales[half], half) for each in reads for half in (0, 1)) / size

    before = error(None)
    tried = [(error(strength), strength) for strength in (_ALPHAS if alpha is None else (alpha,))]
    after, chosen = min(tried)
    if alpha is None and not after < before * (1 - _LEAST_GAIN):
        return None
    return scales_of((0, 1), chosen), before, after


def _scales(largest: torch.Tensor, columns: torch.Tensor, alpha: float) -> torch.Tensor:
    usable = (largest > 0) & (columns > 0)
    scales = largest.clamp(min=1e-12) ** alpha / columns.clamp(min=1e-12) ** (1 - alpha)
    # Only the quotients of the scales matter: with their mean taken out, weights keep their size.
    middle = scales[usable].log().mean().exp() if bool(usable.any()) else 1.0
    return torch.where(usable, scales / middle, 1.0).clamp(1 / _LARGEST, _LARGEST)


def _rounded(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor rounded to 8 bits with the asymmetric range of another one."""
    low, high = min(float(like.min()), 0.0), max(float(like.max()), 0.0)
    scale = max((high - low) / 255, 1e-12)
    zero = round(-low / scale)
    return (torch.clamp(torch.round(value / scale) + zero, 0, 255) - zero) * scale


def _rounded_rows(weight: torch.Tensor) -> torch.Tensor:
    """A weight rounded to 8 bits with a symmetric range for each row."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return torch.clamp(torch.round(weight / scale), -127, 127) * scale


def _apply(channels: Channels, group: ChannelGroup, scales: torch.Tensor) -> None:
    source = group.source
    inverse = 1 / scales.double()
    if overload_name(source) == LINEAR:
        weight = constant_value(channels.model, argument_of(source, "weight"))
        write_constant(channels, source, "weight", scaled_weight(source, weight, inverse, None))
        _divide(channels, source, "bias", inverse)
    elif overload_name(source) in _NORMS:
        _divide(channels, source, "weight", inverse)
        if "layer_norm" in overload_name(source):
            _divide(channels, source, "bias", inverse)
    else:
        if overload_name(source) in _SUMS:
            product = _product_before(channels, source)
            assert product is not None
            _divide(channels, product, str(_constant_operand(channels, product)), inverse)
        _divide(channels, source, str(_constant_operand(channels, source)), inverse)
    for reader in group.readers:
        weight = constant_value(channels.model, argument_of(reader.node, "weight"))
        spread = reader.spread(scales.double())
        write_constant(channels, reader.node, "weight", scaled_weight(reader.node, weight, None, spread))


def _divide(channels: Channels, node: Node, argument: str, inverse: torch.Tensor) -> None:
    old = argument_of(node, argument)
    if old is None:
        return
    value = constant_value(channels.model, old)
    dtype = value.dtype if value.dim() else tensor_of(node).dtype  # type: ignore[union-attr]
    write_constant(channels, node, argument, (value.double() * inverse).to(dtype))
