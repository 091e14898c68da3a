"""Split ranges: keep a concatenation of tensors of very different size in float.

Integers have one range for all of a concatenated tensor. Beside patches of a standard deviation of 1, a class
token of 0.02 is less than one step of it, and is lost; everything that is computed from the token is wrong.
In float each part keeps what it was, or the range that it was quantized with before. The sums behind the
concatenation have the same parts, and stay in float as long as these differ so much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.accuracy.recovery.observing import observe
from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, note_step
from torchquilt.accuracy.recovery.weighted import is_weighted
from torchquilt.graph.code_generation import generate_code
from torchquilt.graph.node_values import KEPT_IN_FLOAT, is_float_tensor, overload_name, rank, tensor_of
from torchquilt.graph.passes import Pass, run_passes
from torchquilt.graph.provenance import complete_provenance
from torchquilt.pt2e.annotate import copy_of_exported
from torchquilt.support.data_movement import moves_data_only
from torchquilt.support.operators import CAT, STACK

_JOINS = frozenset((*CAT.overloads, *STACK.overloads))
#: The result has the parts of the input where it has its shape.
_KEEP_PARTS = frozenset(
    f"aten.{name}{end}.Tensor" for name in ("add", "sub", "mul", "div") for end in ("", "_")
)
_STEPS = 255
#: A range of its own has to be better for a part by so many dB, or it is not the others that hide it.
_LEAST_GAIN = 6.0
_MEASURE = "noise of 8 bits in the smallest part, relative to it (MSE)"


def split_ranges(
    model: ExportedProgram | GraphModule, batches: Iterable[object], *, least: float = 20.0
) -> GraphModule:
    """Keep concatenations in float in which a part is lost beside another one.

    Every quantizer with a support table leaves what is marked so in float, and the ledger says why. One that
    annotates by itself is refused if it annotates such a node.

    Args:
        model: a :class:`torch.export.ExportedProgram` or its ``.module()``, in evaluation mode. It is left as
            it was.
        batches: what :func:`torchquilt.calibrate` takes.
        least: the signal to noise in dB that 8 bits over the common range leave each part at least.

    Returns:
        What :func:`torchquilt.prepare_pt2e` takes: a copy that computes the same, bit for bit.
        :func:`steps_of` says what was done.

    Raises:
        ModelError: the model is no exported float model in evaluation mode.
        AccuracyError: there is no batch, or one does not go through the model.
    """
    with default_global_state():

        def split(copied: GraphModule) -> GraphModule:
            return _split(copied, batches, least)

        passes = (Pass("complete_provenance", complete_provenance), Pass("split_ranges", split))
        marked = run_passes(copy_of_exported(model), passes)
        generate_code(marked)
    return marked


def _split(model: GraphModule, batches: Iterable[object], least: float) -> GraphModule:
    joins = [node for node in model.graph.nodes if _is_join(node)]
    parts = {node: _Parts(join, node) for join in joins for node in (join, *_behind(join))}
    if joins:
        observe(model, {node: (each.shown, each.show) for node, each in parts.items()}, batches)
    gains: list[Gain] = []
    left: list[tuple[str, str]] = []
    for node, each in parts.items():
        if not each.is_uneven(least):
            if node in joins:
                left.append((node.name, "each part keeps enough steps of the common range"))
            continue
        reader = _one_range_behind(node)
        if node in joins and reader is not None:
            left.append((node.name, f"{reader.name} reads it, and has one range for all that it reads"))
            continue
        node.meta[KEPT_IN_FLOAT] = f"a part of {node.name} is lost in the range of the others"
        gains.append(each.gain())
    note_step(model, RecoveryStep("split_ranges", [gain.node for gain in gains], left, gains))
    return model


def _is_join(node: Node) -> bool:
    return overload_name(node) in _JOINS and is_float_tensor(node) and len(_operands(node)) > 1


def _operands(join: Node) -> tuple[Node, ...]:
    return tuple(join.args[0])  # type: ignore[arg-type]


def _axis(join: Node) -> int:
    axis = join.args[1] if len(join.args) > 1 else join.kwargs.get("dim", 0)
    assert isinstance(axis, int)
    return axis % (rank(join) or 1)


def _behind(join: Node) -> Iterator[Node]:
    """The sums and products behind a concatenation that have its shape, and so its parts."""
    shape = str(tensor_of(join).shape)  # type: ignore[union-attr]
    reached, seen = [join], {join}
    for node in reached:  # grows while it is walked
        for user in node.users:
            keeps = overload_name(user) in _KEEP_PARTS or moves_data_only(user)
            value = tensor_of(user)
            if user in seen or not keeps or value is None or str(value.shape) != shape:
                continue
            seen.add(user)
            reached.append(user)
            if overload_name(user) in _KEEP_PARTS:
                yield user


def _one_range_behind(node: Node) -> Node | None:
    """An operator with a weight that reads a node, if nothing but such operators do."""
    reached, found = [node], None
    for current in reached:  # grows while it is walked
        for user in current.users:
            if moves_data_only(user):
                reached.append(user)
            elif is_weighted(user):
                found = found or user
            else:
                return None
    return found


@attrs.define(eq=False)
class _Part:
    """Range and size of one part."""

    low: float = 0.0
    high: float = 0.0
    squares: float = 0.0
    count: int = 0

    def show(self, value: torch.Tensor) -> None:
        finite = value[value.isfinite()].double()
        if finite.numel():
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            self.squares += float(finite.square().sum())
            self.count += finite.numel()

    def noise(self, low: float, high: float) -> float:
        """Mean squared rounding error over a range with 8 bits, relative to the mean square of the part."""
        step = (high - low) / _STEPS
        mean_square = self.squares / max(self.count, 1)
        return step**2 / 12 / mean_square if mean_square else 0.0


class _Parts:
    """The parts of a concatenation, or of a sum behind it."""

    def __init__(self, join: Node, node: Node) -> None:
        self.node = node
        self.shown = (node, *_operands(join)) if node is join else (node, join, *_operands(join))
        self._is_join = node is join
        self._axis = _axis(join)
        self._is_stack = overload_name(join) in STACK.overloads
        self._parts = [_Part() for _ in _operands(join)]

    def show(self, value: torch.Tensor, *others: torch.Tensor) -> None:
        """Take in one batch."""
        operands = others if self._is_join else others[1:]
        sizes = [1 if self._is_stack else operand.shape[self._axis] for operand in operands]
        for part, section in zip(self._parts, torch.split(value, sizes, self._axis), strict=True):
            part.show(section)

    def _noise(self, part: _Part) -> tuple[float, float]:
        """The noise of a part over the common range, and over its own."""
        low = min(each.low for each in self._parts)
        high = max(each.high for each in self._parts)
        return part.noise(low, high), part.noise(part.low, part.high)

    def _smallest(self) -> tuple[float, float]:
        return max(map(self._noise, self._parts))

    def is_uneven(self, least: float) -> bool:
        """Whether a part has less signal to noise than ``least`` dB, and would have more by itself."""
        common, own = self._smallest()
        if not common:
            return False
        decibels = -10 * math.log10(common)
        return decibels < least and common > own * 10 ** (_LEAST_GAIN / 10)

    def gain(self) -> Gain:
        """The noise of the smallest part, over the common range and over its own."""
        return Gain(self.node.name, _MEASURE, *self._smallest())
