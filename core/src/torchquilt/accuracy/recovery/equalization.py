"""Cross-layer equalization: give the channels between two operators ranges of the same size.

Nagel et al. 2019, arXiv:1906.04721: between two operators with weights and a positively homogeneous function
the first one is divided, and the second one multiplied, by a factor for each channel. With the square root of
the quotient of both ranges of the channel, both have the same range then. Neighbouring pairs have an operator
in common, so all are gone through until the factors stay 1.
"""

from __future__ import annotations

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.accuracy.recovery.channel_groups import ChannelGroup, Channels, write_constant
from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, note_step
from torchquilt.accuracy.recovery.weighted import (
    by_output_and_input,
    channel_axis,
    is_weighted,
    output_channels,
    scaled_weight,
)
from torchquilt.graph.batch_norm_folding import fold_batch_norm
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import drop_unused_tensors
from torchquilt.graph.node_values import argument_of
from torchquilt.graph.passes import Pass, everywhere, run_passes
from torchquilt.graph.provenance import complete_provenance
from torchquilt.graph.subgraphs import regions
from torchquilt.pt2e.annotate import copy_of_exported

_MOST_SWEEPS = 100
#: Factors nearer to 1 than that change nothing.
_CONVERGED = 1e-3
#: A channel is scaled by no more, so that no half precision overflows.
_LARGEST = 2.0**12

#: What the paper maximises, taken from 1.
_MEASURE = "precision lost to the widest channel"


def equalize(model: ExportedProgram | GraphModule, *, least: float = 4.0) -> GraphModule:
    """Equalize the ranges of channels between operators with weights, computing the same.

    BatchNorm is folded first where that is exact. The channels of a convolution, transposed convolution or
    linear are scaled where all that reads them, through what is positively homogeneous, can be scaled, too.
    Needs no data.

    Args:
        model: a :class:`torch.export.ExportedProgram` or its ``.module()``, in evaluation mode. It is left as
            it was.
        least: the quotient of the largest and the smallest factor of its channels from which an operator is
            equalized. Channels of about one size gain nothing: the range of a weight tells the range of an
            activation only so well. With 1 all are equalized.

    Returns:
        What :func:`torchquilt.prepare_pt2e` takes: a copy with the same signature that computes the same, up
        to the rounding of floating point numbers. :func:`steps_of` says what was done.

    Raises:
        ModelError: the model is no exported float model in evaluation mode.
    """
    with default_global_state():

        def equalize_groups(copied: GraphModule) -> GraphModule:
            return _equalize(copied, least)

        passes = (
            Pass("complete_provenance", complete_provenance),
            everywhere("fold_batch_norm", fold_batch_norm),
            Pass("equalize", equalize_groups),
        )
        equalized = run_passes(copy_of_exported(model), passes)
        generate_code(equalized)
    return equalized


def _equalize(model: GraphModule, least: float) -> GraphModule:
    channels = Channels(model)
    groups: list[ChannelGroup] = []
    left: list[tuple[str, str]] = []
    for node in filter(is_weighted, model.graph.nodes):
        found = _group_of(channels, node)
        if isinstance(found, str):
            left.append((node.name, found))
        else:
            groups.append(found)
    left += [
        (region.name_of(node), "it is in a subgraph, whose weights are handed in")
        for region in regions(model)[1:]
        for node in filter(is_weighted, region.module.graph.nodes)
    ]
    factors = {
        node: _Factors.of(model, node)
        for group in groups
        for node in (group.source, *(reader.node for reader in group.readers))
    }
    before = {group: _lost(group, factors) for group in groups}
    changed = _iterate(groups, factors, least)
    for node, factor in factors.items():
        factor.write(channels, node)
    gains = [
        Gain(group.source.name, _MEASURE, before[group], _lost(group, factors))
        for group in groups
        if group in changed
    ]
    left += [
        (group.source.name, "its channels have ranges of about one size")
        for group in groups
        if group not in changed
    ]
    applied = [group.source.name for group in groups if group in changed]
    note_step(model, RecoveryStep("equalize", applied, left, gains))
    if applied:
        drop_unused_tensors(model)
        outdate(model)
    return model


def _group_of(channels: Channels, node: Node) -> ChannelGroup | str:
    trouble = channels.trouble_of_weight(node) or channels.trouble_of_bias(node)
    if trouble:
        return trouble
    axis = channel_axis(node, node)
    return channels.group_of(node, axis, output_channels(node), lambda reader: True)


@attrs.define(eq=False)
class _Factors:
    """The factors of an operator so far, and the ranges of its channels with them.

    Args:
        sizes: the largest absolute value of the weight for each (group, output, input in a group).
        outputs, inputs: the factor of each output and each input channel.
    """

    sizes: torch.Tensor
    outputs: torch.Tensor
    inputs: torch.Tensor

    @classmethod
    def of(cls, model: GraphModule, node: Node) -> _Factors:
        """Factors of 1."""
        weight = constant_value(model, argument_of(node, "weight"))
        sizes = by_output_and_input(node, weight).abs().amax(-1).double()
        groups, outputs, inputs = sizes.shape
        one = torch.ones((), dtype=torch.float64)
        return cls(sizes, one.repeat(groups * outputs), one.repeat(groups * inputs))

    def _scaled(self) -> torch.Tensor:
        groups, outputs, inputs = self.sizes.shape
        by_output = self.outputs.reshape(groups, outputs, 1)
        return self.sizes * by_output * self.inputs.reshape(groups, 1, inputs)

    def output_ranges(self) -> torch.Tensor:
        """The range of the weight for each output channel."""
        return self._scaled().amax(2).flatten()

    def input_ranges(self) -> torch.Tensor:
        """The range of the weight for each input channel."""
        return self._scaled().amax(1).flatten()

    def write(self, channels: Channels, node: Node) -> None:
        """Store the weight and the bias with the factors in them, if there are any."""
        has_outputs, has_inputs = bool((self.outputs != 1).any()), bool((self.inputs != 1).any())
        if has_outputs or has_inputs:
            weight = constant_value(channels.model, argument_of(node, "weight"))
            write_constant(channels, node, "weight", scaled_weight(node, weight, self.outputs, self.inputs))
        bias = argument_of(node, "bias")
        if bias is not None and has_outputs:
            value = constant_value(channels.model, bias)
            write_constant(channels, node, "bias", (value.double() * self.outputs).to(value.dtype))


def _iterate(groups: list[ChannelGroup], factors: dict[Node, _Factors], least: float) -> set[ChannelGroup]:
    """Equalize one group after the other until all that are uneven are; returns those that were scaled."""
    changed: set[ChannelGroup] = set()
    for _ in range(_MOST_SWEEPS):
        largest = 0.0
        for group in groups:
            scales = _scales(group, factors)
            if group not in changed and not float(scales.max() / scales.min()) > least:
                continue
            step = float(scales.log().abs().max())
            if step > _CONVERGED:
                changed.add(group)
                factors[group.source].outputs /= scales
                for reader in group.readers:
                    factors[reader.node].inputs *= reader.spread(scales)
            largest = max(largest, step)
        if largest <= _CONVERGED:
            break
    return changed


def _scales(group: ChannelGroup, factors: dict[Node, _Factors]) -> torch.Tensor:
    """The scale of each channel that gives both sides the same range; 1 where a side is all zeros."""
    written, read = factors[group.source].output_ranges(), _read_ranges(group, factors)
    usable = (written > 0) & (read > 0)
    scales = torch.where(usable, (written / read.clamp(min=1e-300)).sqrt(), 1.0)
    so_far = factors[group.source].outputs
    return so_far / (so_far / scales).clamp(1 / _LARGEST, _LARGEST)


def _read_ranges(group: ChannelGroup, factors: dict[Node, _Factors]) -> torch.Tensor:
    """The range of the weights of all readers, for each channel of the source."""
    found = torch.zeros(group.channels, dtype=torch.float64)
    for reader in group.readers:
        ours = reader.channels >= 0
        ranges = factors[reader.node].input_ranges()[ours]
        found.scatter_reduce_(0, reader.channels[ours], ranges, "amax")
    return found


def _lost(group: ChannelGroup, factors: dict[Node, _Factors]) -> float:
    """The precision that channels lose to the widest one: 1 - the mean of the product of both used shares."""
    sides = (factors[group.source].output_ranges(), _read_ranges(group, factors))
    written, read = (side / side.max().clamp(min=1e-300) for side in sides)
    return 1 - float((written * read).mean())
