"""Measuring: modules in the graphs of two models that see the values of paired operators.

A float model is run first and its values are kept for the batch. Then the quantized model runs twice. Once
as it is, which shows the accumulated error of each operator. And once where every operator hands on the float
value instead of its own, which shows the isolated error: what the operator itself adds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from torch.fx import Graph, GraphModule, Node, map_arg

from torchquilt._internal.connected import connected
from torchquilt.accuracy.error_statistics import ErrorStatistics
from torchquilt.accuracy.operator_pairs import OperatorPair, Pairing
from torchquilt.accuracy.tensor_use import TensorUse
from torchquilt.graph.aliasing import aliased_inputs, written_inputs
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import erase_unused, free_name, read_tensor, take_origin
from torchquilt.graph.node_values import is_constant, is_float_tensor, tensor_of, writes
from torchquilt.graph.qdq import is_conversion, is_dequantize, is_quantize, qdq_of
from torchquilt.graph.subgraphs import Region, regions

#: How many values of a tensor are kept for a picture of it.
_SAMPLES = 256
#: Memory that a value is scattered over is copied with its gaps, if it is at most so many times as large.
_GAPS = 4
#: So many floats of stored integers are kept while a model is compared.
_MOST_DEQUANTIZED = 1 << 26
_IS_DEQUANTIZED = "torchquilt_dequantized"


class Run(enum.Enum):
    """The model that runs."""

    FLOAT = "float"
    ACCUMULATED = "accumulated"
    ISOLATED = "isolated"


class Memory(enum.Enum):
    """Memory of a value, where a float value is to be handed on in its stead."""

    #: the graph does not write into it
    OWN = "own"
    #: it is written, before or later: who reads a view of a float value has one already
    VIEWED = "viewed"
    #: the operator wrote into it: the float value is written over that
    WRITTEN = "written"


@attrs.define(eq=False)
class Measured:
    """Statistics of one pair of operators."""

    isolated: ErrorStatistics = attrs.field(factory=ErrorStatistics)
    accumulated: ErrorStatistics = attrs.field(factory=ErrorStatistics)
    #: whether its output is rounded by fake quantize, as in training
    is_fake_quantized: bool = False
    #: error before its output is rounded, and that with inputs that are not, of the first batch that runs it
    before: ErrorStatistics = attrs.field(factory=ErrorStatistics)
    of_weights: ErrorStatistics = attrs.field(factory=ErrorStatistics)
    tensors: list[TensorUse] = attrs.field(factory=list)
    samples: tuple[tuple[float, float], ...] = ()
    #: how often the quantized model ran it where the float model did not, or with another shape
    diverged: int = 0


class Measurements:
    """Values of the float model for one batch, and the statistics of all batches."""

    def __init__(self, names: Iterable[str], *, samples: int = _SAMPLES) -> None:
        self.by_name = {name: Measured() for name in names}
        self.run = Run.FLOAT
        #: whether a model writes into its tensors, so that no two may be one
        self.copies = False
        self._samples = samples
        self._values: dict[str, list[torch.Tensor]] = {}
        self._next: dict[str, int] = {}

    def begin(self, run: Run) -> None:
        """Begin one run of a model; the float model's is the first of a batch."""
        if run is Run.FLOAT:
            self._values = {}
        self.run = run
        self._next = {}

    def end_batch(self) -> None:
        """Forget the values of the float model."""
        self._values = {}

    def keep(self, name: str, value: torch.Tensor) -> None:
        """Keep a value of the float model."""
        self._values.setdefault(name, []).append(value.detach())

    def float_value(self, name: str, *, again: bool) -> torch.Tensor | None:
        """The value that the float model had at the same call of the operator; None where it had none.

        Args:
            name: of the operator.
            again: for another reader of the value that was asked for last.
        """
        values = self._values.get(name, [])
        number = self._next.get(name, 0) - (1 if again else 0)
        self._next[name] = number + 1
        return values[number] if 0 <= number < len(values) else None

    def compare(self, name: str, value: torch.Tensor, memory: Memory = Memory.OWN) -> torch.Tensor:
        """Compare the value of a quantized operator; return what its readers get.

        Args:
            name: of the operator.
            value: of the quantized model.
            memory: that it is in.
        """
        expected = self.float_value(name, again=False)
        measured = self.by_name[name]
        if expected is None or expected.shape != value.shape:
            measured.diverged += 1
            return value
        is_isolated = self.run is Run.ISOLATED
        statistics = measured.isolated if is_isolated else measured.accumulated
        statistics.update(expected, value)
        if not is_isolated and not measured.samples and self._samples:
            measured.samples = _sampled(expected, value, self._samples)
        return self.instead_of(value, expected, memory) if is_isolated else value

    def compare_weights(self, name: str, value: torch.Tensor, unrounded: torch.Tensor) -> None:
        """Compare a value, and what it is where inputs are not rounded, with the float one."""
        number, values = self._next.get(name, 0), self._values.get(name, [])
        if number < len(values) and values[number].shape == value.shape:
            self.by_name[name].before.update(values[number], value)
            self.by_name[name].of_weights.update(values[number], unrounded)

    def instead_of(
        self, value: torch.Tensor, expected: torch.Tensor, memory: Memory = Memory.OWN
    ) -> torch.Tensor:
        """The value of the float model for those who read a value of the quantized one."""
        if memory is Memory.VIEWED:
            return value
        if memory is Memory.WRITTEN:
            return value.copy_(expected)
        found = expected.to(value.dtype)
        return copied(found) if self.copies and found is expected else found


def copied(value: torch.Tensor) -> torch.Tensor:
    """A copy that is laid out like the tensor, since the order in which a kernel computes depends on that."""
    reach = 1 + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    if not value.numel() or reach > _GAPS * value.numel():
        return value.clone()
    flat = value.as_strided((reach,), (1,)).clone()
    return flat.as_strided(value.shape, value.stride(), 0)


def _sampled(expected: torch.Tensor, value: torch.Tensor, most: int) -> tuple[tuple[float, float], ...]:
    flat, other = expected.reshape(-1), value.reshape(-1)
    chosen = slice(None, None, max(1, -(-flat.numel() // most)))
    return tuple(zip(flat[chosen].float().tolist(), other[chosen].float().tolist(), strict=True))


class Keeping(torch.nn.Module):
    """Stands behind an operator of the float model."""

    def __init__(self, name: str, measurements: Measurements) -> None:
        super().__init__()
        self.name, self.measurements = name, measurements

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Keep the value, or a copy where the model writes into its tensors, and return it."""
        self.measurements.keep(self.name, copied(value) if self.measurements.copies else value)
        return value


class Comparing(torch.nn.Module):
    """Stands behind an operator of the quantized model, or behind the dequantize of its output.

    Args:
        name: of the operator.
        measurements: is told of the value.
        use: of the output, where it is quantized.
        again: whether another one stands behind the same output.
        memory: of the value.
        operator: that of the node, where both its weights and inputs are rounded: it is computed with inputs
            that are not, once, to tell which of the two costs more.
    """

    def __init__(
        self,
        name: str,
        measurements: Measurements,
        use: TensorUse | None = None,
        *,
        again: bool = False,
        memory: Memory = Memory.OWN,
        operator: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.measurements, self.use = name, measurements, use
        self.again, self.memory, self.operator = again, memory, operator

    def forward(
        self,
        value: torch.Tensor,
        before: torch.Tensor | None = None,
        unrounded: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> torch.Tensor:
        """Compare the value, and return it or the float one.

        Args:
            value: that readers get.
            before: the same before it is rounded.
            unrounded: arguments of the operator with inputs that are not rounded, by position and by name.
        """
        seen = self.measurements
        if self.operator is not None and seen.run is Run.ISOLATED:
            args, kwargs = unrounded
            found = value if before is None else before
            seen.compare_weights(self.name, found, self.operator(*args, **kwargs))
            self.operator = None
        if self.again:
            expected = seen.float_value(self.name, again=True)
            fits = seen.run is Run.ISOLATED and expected is not None and expected.shape == value.shape
            return seen.instead_of(value, expected) if fits and expected is not None else value
        if self.use is not None and before is not None and seen.run is Run.ISOLATED:
            self.use.update(before, value)
        return seen.compare(self.name, value, self.memory)


class Watching(torch.nn.Module):
    """Stands behind the dequantize of an input that is quantized where it is read."""

    def __init__(self, use: TensorUse, measurements: Measurements) -> None:
        super().__init__()
        self.use, self.measurements = use, measurements

    def forward(self, value: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Take in the input as it was before and as it is read."""
        if self.measurements.run is Run.ISOLATED:
            self.use.update(before, value)
        return value


def keep_float_values(
    model: GraphModule, pairs: Iterable[OperatorPair], measurements: Measurements
) -> GraphModule:
    """Put a :class:`Keeping` behind each paired operator of a float model; changes ``model``."""
    by_graph = {id(region.module.graph): region for region in regions(model)}
    measurements.copies |= _writes_in_place(model)
    for pair in pairs:
        _insert(by_graph[id(pair.expected.graph)].module, pair.expected, Keeping(pair.name, measurements))
    return _finished(model)


def _writes_in_place(model: GraphModule) -> bool:
    return any(writes(node) for region in regions(model) for node in region.module.graph.nodes)


def compare_values(model: GraphModule, pairing: Pairing, measurements: Measurements) -> GraphModule:
    """Put a :class:`Comparing` behind each paired operator of a quantized model; changes ``model``."""
    by_graph = {id(region.module.graph): region for region in regions(model)}
    measurements.copies |= _writes_in_place(model)
    names = {(id(pair.found.graph), pairing.origins[pair.found]): pair.name for pair in pairing.pairs}
    for region in by_graph.values():
        _watch_inputs(region, pairing, names, measurements)
    memories = {key: _memories(region.module.graph) for key, region in by_graph.items()}
    for pair in pairing.pairs:
        key = id(pair.found.graph)
        memory = memories[key].get(pair.found, Memory.OWN)
        _compare_one(by_graph[key].module, pair, pairing.origins, measurements, memory)
    for region in by_graph.values():
        _dequantize_once(region.module)
    return _finished(model)


def _dequantize_once(model: GraphModule) -> None:
    """Keep the floats of stored integers: the model runs twice a batch, and would compute them each time.

    Only as far as they take little memory.
    """
    room = _MOST_DEQUANTIZED
    for node in [one for one in model.graph.nodes if is_dequantize(one) and is_constant(one)]:
        value = tensor_of(node)
        if value is None or value.numel() > room:
            continue
        room -= value.numel()
        held = read_tensor(model, free_name(model, "dequantized"), constant_value(model, node), node)
        held.meta |= {**node.meta, _IS_DEQUANTIZED: True}
        node.replace_all_uses_with(held)
        erase_unused(node)
    outdate(model)


def _memories(graph: Graph) -> dict[Node, Memory]:
    """The views of memory that a graph writes, and the operators that write it."""
    written = {source for node in graph.nodes for source in written_inputs(node)}
    if not written:
        return {}
    shared = ((node, source) for node in graph.nodes for source in aliased_inputs(node))
    return {
        node: Memory.WRITTEN if writes(node) else Memory.VIEWED
        for nodes in connected(graph.nodes, shared)
        if not written.isdisjoint(nodes)
        for node in nodes
        if writes(node) or aliased_inputs(node)
    }


def _compare_one(
    model: GraphModule,
    pair: OperatorPair,
    origins: Mapping[Node, str],
    measurements: Measurements,
    memory: Memory,
) -> None:
    outputs = outputs_of(pair.found, origins)
    operator, arguments = _with_unrounded_inputs(pair.found)
    if not outputs:
        module = Comparing(pair.name, measurements, memory=memory, operator=operator)
        _insert(model, pair.found, module, *((None, arguments) if operator is not None else ()))
        return
    use = None
    for number, output in enumerate(outputs):
        qdq = qdq_of(output)
        if number == 0 and qdq is not None:
            use = TensorUse("output", qdq)
            measurements.by_name[pair.name].tensors.append(use)
        measurements.by_name[pair.name].is_fake_quantized = qdq is None
        first = operator if number == 0 else None
        module = Comparing(pair.name, measurements, use, again=number > 0, operator=first)
        more = (*((pair.found,) if use is not None or first else ()), *((arguments,) if first else ()))
        _insert(model, output, module, *more)


def _with_unrounded_inputs(node: Node) -> tuple[Callable[..., torch.Tensor] | None, tuple[Any, ...]]:
    """The operator of a node and its arguments with inputs before they are rounded where they are read.

    None where inputs are not, or nothing else is that could be the reason for an error.
    """
    watched = {one: one.args[1] for one in node.all_input_nodes if isinstance(_module_of(one), Watching)}
    if not watched or not any(map(is_rounded_constant, node.all_input_nodes)) or writes(node):
        return None, ()
    assert callable(node.target)
    args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda one: watched.get(one, one))
    return node.target, (args, kwargs)


def _module_of(node: Node) -> torch.nn.Module | None:
    model = node.graph.owning_module
    return getattr(model, str(node.target), None) if node.op == "call_module" else None


def is_rounded_constant(node: Node) -> bool:
    """Whether a node dequantizes a stored tensor, or rounds one in training."""
    if _IS_DEQUANTIZED in node.meta:
        return True
    while (is_conversion(node) or node.op == "call_module") and node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op == "get_attr":
            return True
    return False


def outputs_of(node: Node, origins: Mapping[Node, str]) -> list[Node]:
    """The nodes that dequantize the output of an operator, in order; those of training, which round it.

    Args:
        node: the operator.
        origins: as of a :class:`Pairing`.
    """
    origin = origins[node]
    own = [user for user in node.users if origins.get(user) == origin]
    trained = [user for user in own if user.op == "call_module"]
    read = [user for one in own if is_quantize(one) for user in one.users if is_dequantize(user)]
    order = {one: number for number, one in enumerate(node.graph.nodes)} if len(read) > 1 else {}
    return trained or sorted(read, key=lambda one: order.get(one, 0))


def _watch_inputs(
    region: Region, pairing: Pairing, names: dict[tuple[int, str], str], measurements: Measurements
) -> None:
    """Watch the inputs that are quantized where they are read, each once for all that read it.

    So are tensors within an operator that a backend wrote in another form.
    """
    graph = region.module.graph
    origins, compared = pairing.origins, {pair.found for pair in pairing.pairs}
    pairs = [(node, node.all_input_nodes[0]) for node in graph.nodes if is_quantize(node)]
    for quantize, source in pairs:
        is_within = origins.get(source) == origins.get(quantize) and source.op == "call_function"
        is_output = is_within and source in compared
        reads = [user for user in quantize.users if is_dequantize(user)]
        if is_output or not reads or not is_float_tensor(source):
            continue
        qdq = qdq_of(reads[0])
        assert qdq is not None
        name = f"within {source.name}" if is_within else f"input {origins.get(source, source.name)}"
        use = TensorUse(name, qdq)
        readers = dict.fromkeys(origins.get(user, "") for read in reads for user in read.users)
        for operator in (names.get((id(graph), reader)) for reader in readers):
            if operator is not None:
                measurements.by_name[operator].tensors.append(use)
        _insert(region.module, reads[0], Watching(use, measurements), source)


def _insert(model: GraphModule, behind: Node, module: torch.nn.Module, *more: Any) -> Node:
    """Put a module behind a node, for all who read it."""
    name = free_name(model, "measuring")
    model.add_submodule(name, module)
    readers = list(behind.users)
    with model.graph.inserting_after(behind):
        made = model.graph.call_module(name, (behind, *more))
    take_origin(made, behind)
    made.meta["val"] = behind.meta.get("val")
    for reader in readers:
        reader.replace_input_with(behind, made)
    outdate(model)
    return made


def _finished(model: GraphModule) -> GraphModule:
    generate_code(model)
    return model
