"""Groups of channels with a scale each: an operator that can divide by it, and all that can multiply by it.

Where every reader of a tensor multiplies its weight for a channel by what the operator before it was divided
by, the model computes the same.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt.accuracy.recovery.channel_layouts import (
    Layout,
    NoLayoutError,
    layout_behind,
    reads_shape_alone,
)
from torchquilt.accuracy.recovery.weighted import channel_axis, is_weighted
from torchquilt.graph.edits import free_name, read_tensor, store_tensor
from torchquilt.graph.node_values import argument_of, arguments_of, attribute, constant_nodes
from torchquilt.graph.shared_storage import span_of
from torchquilt.graph.subgraphs import regions


@attrs.frozen(eq=False)
class Reader:
    """An operator with a weight that reads scaled channels.

    Args:
        node: the operator.
        channels: for each of its input channels the channel of the source, -1 for what is none of it.
    """

    node: Node
    channels: torch.Tensor

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        """The scale of each input channel, 1 for what is no channel of the source."""
        ours = self.channels >= 0
        return torch.where(ours, scales[self.channels.clamp(min=0)], 1.0)


@attrs.frozen(eq=False)
class ChannelGroup:
    """The channels of an operator, and all that reads them.

    Args:
        source: the operator.
        channels: their number.
        readers: the operators with weights that read them, in the order of the graph.
        scaled: the nodes between, whose values are divided by the scales, and the source.
    """

    source: Node
    channels: int
    readers: tuple[Reader, ...]
    scaled: frozenset[Node]


class Channels:
    """The groups of channels in the outermost graph of a model, as it is now.

    Args:
        model: the model, which is not changed.
    """

    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.constants = constant_nodes(model.graph)
        self._order = {node: number for number, node in enumerate(model.graph.nodes)}
        self._tensors = _Tensors(model)

    def group_of(
        self, source: Node, axis: int, channels: int, may_read: Callable[[Node], bool]
    ) -> ChannelGroup | str:
        """The group of a source, or the reason why there is none.

        Args:
            source: the operator.
            axis: of its output on which the channels lie.
            channels: their number.
            may_read: whether an operator with a weight may be a reader.
        """
        if channels < 2:
            return f"{source.name} has one channel"
        layouts = {source: Layout(axis, torch.arange(channels))}
        readers: dict[Node, Reader] = {}
        waiting = [(number, user) for user in source.users for number in (self._order[user],)]
        heapq.heapify(waiting)
        try:
            while waiting:
                _, user = heapq.heappop(waiting)
                if user in layouts or user in readers or reads_shape_alone(user):
                    continue
                reader = self._reader(user, layouts, may_read)
                if reader is not None:
                    readers[user] = reader
                    continue
                layouts[user] = layout_behind(user, layouts, self.constants)
                for following in user.users:
                    heapq.heappush(waiting, (self._order[following], following))
        except NoLayoutError as error:
            return str(error)
        if not readers:
            return f"no operator with a weight reads {source.name}"
        return ChannelGroup(source, channels, tuple(readers.values()), frozenset(layouts))

    def _reader(
        self, user: Node, layouts: dict[Node, Layout], may_read: Callable[[Node], bool]
    ) -> Reader | None:
        if user.op == "output":
            raise NoLayoutError("it is an output of the model")
        if not is_weighted(user):
            return None
        data = argument_of(user, "input")
        others = [argument_of(user, role) for role in ("weight", "bias")]
        if any(other in layouts for other in others if other is not None):
            raise NoLayoutError(f"{user.name} has it for a weight")
        layout = layouts[data]
        if layout.axis != channel_axis(user, data):
            raise NoLayoutError(f"{user.name} reads the channels on an axis that its weight does not have")
        if not may_read(user):
            raise NoLayoutError(f"{user.name} reads it")
        trouble = self.trouble_of_weight(user)
        if trouble:
            raise NoLayoutError(trouble)
        return Reader(user, layout.channels)

    def trouble_of_weight(self, node: Node) -> str:
        """Reason why the weight of an operator cannot be scaled, empty where it can."""
        weight = argument_of(node, "weight")
        if weight not in self.constants:
            return f"the weight of {node.name} is no constant"
        if weight.op != "get_attr":
            return f"the weight of {node.name} is computed from stored tensors"
        others = self._tensors.readers(str(weight.target)) - {node.name}
        return f"the weight of {node.name} is shared with {', '.join(sorted(others))}" if others else ""

    def trouble_of_bias(self, node: Node) -> str:
        """Reason why the bias of an operator cannot be scaled, empty where it can or there is none."""
        bias = argument_of(node, "bias")
        if bias is None or bias in self.constants:
            return ""
        return f"the bias of {node.name} is no constant"

    def is_shared(self, read: Node) -> bool:
        """Whether more than one node reads the memory of a stored tensor, or one reads it twice."""
        return len(self._tensors.readers(str(read.target))) > 1 or len(read.users) > 1


class _Tensors:
    """The stored tensors of a model by their memory, and who reads them."""

    def __init__(self, model: GraphModule) -> None:
        self._model = model
        self._names: dict[int, set[str]] = {}
        read: list[tuple[tuple[int, int], str]] = []
        for region in regions(model):
            for node in region.module.graph.find_nodes(op="get_attr"):
                try:
                    tensor = attribute(region.module, str(node.target))
                except AttributeError:
                    continue
                if isinstance(tensor, torch.Tensor):
                    names = {region.name_of(user) for user in node.users}
                    self._names.setdefault(id(tensor), set()).update(names)
                    read += ((span, name) for span in (span_of(tensor),) if span for name in names)
        #: first address of each memory, its end, and who reads any of it
        self._memories: list[tuple[int, int, set[str]]] = []
        for (start, end), name in sorted(read):
            if self._memories and start < self._memories[-1][1]:
                before, reach, names = self._memories[-1]
                self._memories[-1] = (before, max(reach, end), names | {name})
            else:
                self._memories.append((start, end, {name}))
        self._starts = [start for start, _, _ in self._memories]

    def readers(self, target: str) -> set[str]:
        """Names of the nodes that read a tensor of the outermost graph, or memory that it shares."""
        tensor = attribute(self._model, target)
        found = set(self._names.get(id(tensor), ()))
        span = span_of(tensor)
        number = -1 if span is None else bisect.bisect_right(self._starts, span[0]) - 1
        if number >= 0 and span is not None and span[0] < self._memories[number][1]:
            found |= self._memories[number][2]
        return found


def write_constant(channels: Channels, node: Node, argument: str, value: torch.Tensor) -> None:
    """Let an operator read another constant for an argument; changes the model.

    It has the name of the old one where that is read by this operator alone, else one of its own.
    """
    model = channels.model
    old = argument_of(node, argument)
    is_own = isinstance(old, Node) and old.op == "get_attr" and not channels.is_shared(old)
    if isinstance(old, Node) and is_own and attribute(model, str(old.target)).shape == value.shape:
        held = attribute(model, str(old.target))
        is_parameter = isinstance(held, torch.nn.Parameter)
        store_tensor(
            model,
            str(old.target),
            torch.nn.Parameter(value, requires_grad=False) if is_parameter else value,
        )
        return
    base = str(old.target) if isinstance(old, Node) and old.op == "get_attr" else f"{node.name}_{argument}"
    name = free_name(model, f"{base}_{node.name}" if isinstance(old, Node) and old.op == "get_attr" else base)
    read = read_tensor(model, name, torch.nn.Parameter(value, requires_grad=False), before=node)
    set_argument(node, argument, read)


def set_argument(node: Node, argument: str, value: Node) -> None:
    """Set an argument of a call by its name in the schema."""
    names = [*arguments_of(node)]
    position = names.index(argument)
    if argument in node.kwargs or position > len(node.args):
        node.update_kwarg(argument, value)
    elif position == len(node.args):
        node.args = (*node.args, value)
    else:
        node.update_arg(position, value)
