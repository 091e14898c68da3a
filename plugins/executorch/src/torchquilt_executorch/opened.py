"""Graph of a program with its delegates opened: which operator runs where.

A delegate keeps the part of the graph that it took, so the operators in it can be told. In what they compute
is read from the delegate's payload where the backend gave a reader for it: a kernel has the debug handle of
its operator. An operator without a kernel of its own is computed with what it reads, in the same kernel.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt.backend import (
    Arithmetic,
    Conversion,
    Kernel,
    Operation,
    Origins,
    chain,
    is_conversion,
    overload_name,
    subgraph_names,
)
from torchquilt_executorch.steps import Steps

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Readers = Mapping[str, Callable[[bytes], Iterable[Kernel]]]

#: The types that tensors are quantized to. Wider integers are numbers of elements, indices and the like.
_NARROW = frozenset({torch.int8, torch.uint8, torch.int16, torch.uint16})
_DELEGATE_CALL = "executorch_call_delegate"
#: Stands for the debug handle of a kernel that has none.
_NAMELESS = -2


def _packet(name: str) -> str:
    """An overload without its last part: ``aten.mean`` of ``aten.mean.out``."""
    return name.rpartition(".")[0]


@attrs.define(eq=False)
class _Found:
    """An operator or a conversion, while the graph is read."""

    node: Node
    prefix: str
    op: str
    delegate: str
    arithmetic: Arithmetic = "float"
    why: str = ""
    reads: tuple[_Found, ...] = ()
    #: What it reads dequantized, by name.
    dequantized: tuple[str, ...] = ()
    step: str = ""
    output: int | None = None

    @property
    def name(self) -> str:
        """Its name, with the subgraph that it is in."""
        return self.prefix + self.node.name


class _Heirs:
    """Finds what a node of the stored program was before: passes that keep a node keep its chain."""

    def __init__(self, found: Iterable[_Found]) -> None:
        self._by_chain: dict[tuple[Any, ...], list[_Found]] = defaultdict(list)
        for one in found:
            self._by_chain[chain(one.node)].append(one)

    def ancestor(self, node: Node) -> _Found | None:
        """Ancestor of a node, None for one that a pass made anew."""
        steps = chain(node)
        candidates = next(
            (found for index in range(len(steps)) if (found := self._by_chain.get(steps[index:]))), []
        )
        # What one operator was decomposed into may have one chain; then the operators tell, and their order.
        same = [one for one in candidates if _packet(one.op) == _packet(overload_name(node))]
        chosen = next(iter(same or candidates), None)
        if chosen is not None and len(candidates) > 1:
            candidates.remove(chosen)
        return chosen


class Opened:
    """A program with its delegates opened, in the order in which it runs."""

    def __init__(self, program: ExportedProgram, origins: Origins, readers: Readers) -> None:
        self.delegates: list[str] = []
        self.kernels: list[Kernel] = []
        self._origins = origins
        self._readers = readers
        self._operators: list[_Found] = []
        self._steps: list[_Found] = []
        self._walk(program.graph_module, "", {})

    # ------------------------------------------------------------------------------------------------------
    # Reading the graph
    # ------------------------------------------------------------------------------------------------------

    def _walk(self, module: GraphModule, prefix: str, producers: dict[Node, Any]) -> list[Any]:
        """Read a graph and what it calls. ``producers``: node → the operator whose output it is.

        Returns:
            The producers of its outputs.
        """
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            if _name_of_target(node) == _DELEGATE_CALL:
                producers[node] = self._open(module, node, producers)
            elif node.target is operator.getitem:
                whole = producers.get(node.args[0])
                producers[node] = whole[node.args[1]] if isinstance(whole, list) else whole
            elif not overload_name(node):
                self._walk_subgraphs(module, node, prefix)
            elif is_conversion(node):
                self._steps.append(_Found(node, prefix, overload_name(node), ""))
            else:
                producers[node] = self._operator(node, prefix, "", producers)
        return [producers.get(node) for node in module.graph.output_node().all_input_nodes]

    def _walk_subgraphs(self, module: GraphModule, node: Node, prefix: str) -> None:
        """Read the subgraphs that a node calls. They may have had other names, by which their origins are."""
        names = subgraph_names(node)
        origins = self._origins.subgraphs_of(node, prefix)
        for name, origin in zip(names, origins or [f"{prefix}{name}." for name in names], strict=False):
            self._walk(getattr(module, name), origin, {})

    def _operator(self, node: Node, prefix: str, delegate: str, producers: Mapping[Node, Any]) -> _Found:
        reads = (producers.get(source) for source in node.all_input_nodes)
        found = _Found(node, prefix, overload_name(node), delegate)
        found.reads = tuple(one for one in reads if isinstance(one, _Found))
        found.dequantized = tuple(
            source.all_input_nodes[0].name
            for source in node.all_input_nodes
            if is_conversion(source) and source.all_input_nodes
        )
        self._operators.append(found)
        return found

    def _open(self, module: GraphModule, call: Node, outer: Mapping[Node, Any]) -> list[Any]:
        """Read what a delegate took; returns the producers of its outputs."""
        handle, *arguments = call.args
        lowered = getattr(module, str(handle.target))  # type: ignore[union-attr]  # a get_attr node
        delegate = f"{lowered.backend_id} {len(self.delegates)}"
        self.delegates.append(lowered.backend_id)
        program = lowered.original_module
        inputs = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
        producers: dict[Node, Any] = {
            inputs[name]: outer.get(argument)
            for name, argument in zip(program.graph_signature.user_inputs, arguments, strict=False)
            if name in inputs and isinstance(argument, Node)
        }
        kernels = self._kernels_of(lowered)
        handles = {node.meta.get("debug_handle") for node in program.graph.nodes}
        nameless = [one for key in (kernels or {}).keys() - handles for one in (kernels or {})[key]]
        alike = _of_all(kernels or {}, len(lowered.processed_bytes))
        for node in program.graph.nodes:
            if node.op != "call_function" or is_conversion(node):
                continue
            if node.target is operator.getitem or not overload_name(node):
                producers[node] = producers.get(node.args[0])
                continue
            found = producers[node] = self._operator(node, "", delegate, producers)
            found.arithmetic, found.why = alike or _in_delegate(found, kernels, nameless)
        (outputs,) = program.graph.output_node().args
        for number, node in enumerate(outputs, len(arguments)):
            _note_output(producers.get(_before_conversions(node)), node, number)
        return [producers.get(node) for node in outputs]

    def _kernels_of(self, lowered: Any) -> Mapping[int, list[Kernel]] | None:
        """Debug handle → the kernels of a delegate that compute; None where there is no reader for it."""
        reader = self._readers.get(lowered.backend_id)
        if reader is None:
            return None
        kernels = list(reader(bytes(lowered.processed_bytes)))
        self.kernels += kernels
        found: dict[int, list[Kernel]] = defaultdict(list)
        for kernel in kernels:
            if kernel.arithmetic is not None:
                found[_NAMELESS if kernel.handle is None else kernel.handle].append(kernel)
        return found

    # ------------------------------------------------------------------------------------------------------
    # The operators outside of delegates
    # ------------------------------------------------------------------------------------------------------

    def settle(self, final: ExportedProgram, steps: Steps) -> None:
        """Find the operators outside of delegates, the conversions that are left, and the step of each.

        Args:
            final: the program as it is stored, in which operators may have been fused and folded.
            steps: of the stored program.
        """
        heirs = _Heirs(one for one in (*self._operators, *self._steps) if not one.delegate)
        became: dict[str, list[Node]] = defaultdict(list)
        fused: dict[str, list[Node]] = defaultdict(list)
        for node in _final_nodes(final):
            found = heirs.ancestor(node)
            if found is not None:
                became[found.name].append(node)
                continue
            for source in node.all_input_nodes:  # what is fused keeps nothing of what it was
                fused[source.name].append(node)
        self._steps = [one for one in self._steps if became[one.name]]
        for one in [*self._operators]:
            if one.delegate:
                number = int(one.delegate.rpartition(" ")[2])
                one.step = steps.of_delegates[number] if steps.of_delegates else ""
            elif not self._settle(one, became[one.name], fused, steps):
                self._operators.remove(one)

    @staticmethod
    def _settle(found: _Found, became: list[Node], fused: Mapping[str, list[Node]], steps: Steps) -> bool:
        """Find out in what an operator outside of delegates computes; returns whether it is still there."""
        nodes = [node for name in found.dequantized for node in fused[name] if not is_conversion(node)]
        node = next(iter((*became, *nodes)), None)
        if node is None:
            return False  # folded into a constant
        found.step = steps.of_node.get(node, "")
        _note_output(found, node, 0)
        if any(_dtype(source) in _NARROW for source in node.all_input_nodes):
            found.arithmetic, found.why = "integer", f"{overload_name(node)} reads the integers"
        else:
            found.arithmetic = "float" if _touches_float(node) else "integer"
            found.why = f"{overload_name(node)} is a kernel of the runtime"
        return True

    def operations(self, withheld: Mapping[str, str]) -> tuple[Operation, ...]:
        """All operators, as the core wants to know them.

        Args:
            withheld: origin of an operator, or its name where it has none → why no delegate was given it.
        """
        origins = [self._origins.of(one.node, one.prefix) for one in self._operators]
        return tuple(
            Operation(
                one.name,
                one.op,
                origin,
                one.delegate,
                one.arithmetic,
                one.why,
                tuple(source.name for source in one.reads),
                _is_float(one.node),
                "" if one.delegate else withheld.get(origin or one.name, ""),
                one.step,
                one.output,
            )
            for one, origin in zip(self._operators, origins, strict=True)
        )

    def conversions(self) -> tuple[Conversion, ...]:
        """Quantize and dequantize operators that are left outside of delegates."""
        return tuple(
            Conversion(one.name, one.op, self._origins.of(one.node, one.prefix)) for one in self._steps
        )


def _before_conversions(node: Node) -> Node:
    """The node whose value another one has that only quantizes and dequantizes it."""
    while is_conversion(node):
        node = node.all_input_nodes[0]
    return node


def _note_output(found: object, node: Node, number: int) -> None:
    """Note which output of its step the value of an operator is, where that is one tensor of floats."""
    if isinstance(found, _Found) and _is_float(node) and isinstance(node.meta.get("val"), torch.Tensor):
        found.output = number


def _of_all(kernels: Mapping[int, list[Kernel]], nbytes: int) -> tuple[Arithmetic, str] | None:
    """In what a delegate computes whose kernels are alike and name no operator; None for any other.

    Args:
        kernels: debug handle → the kernels of the delegate.
        nbytes: the size of its payload.
    """
    found = kernels.get(_NAMELESS, [])
    arithmetic = {one.arithmetic for one in found}
    if set(kernels) != {_NAMELESS} or len(arithmetic) != 1:
        return None
    counts = ", ".join(f"{count} {name}" for name, count in Counter(one.name for one in found).items())
    why = f"the delegate ({nbytes:,} bytes) computes with {found[0].arithmetic}s only: {counts}"
    return found[0].arithmetic or "float", why


def _in_delegate(
    found: _Found, kernels: Mapping[int, list[Kernel]] | None, nameless: Sequence[Kernel]
) -> tuple[Arithmetic, str]:
    """In what an operator in a delegate computes, and how that is known.

    Args:
        found: the operator.
        kernels: debug handle → the kernels of the delegate; None where there is no reader for it.
        nameless: those that name no operator of it.
    """
    own = (kernels or {}).get(found.node.meta.get("debug_handle", -1), [])
    if own:
        # Beside a kernel with a weight or a second operand, one that reads one tensor changes the layout.
        deciding = [one for one in own if len(one.reads) > 1] or own
        arithmetic: Arithmetic = "float" if any(one.arithmetic == "float" for one in deciding) else "integer"
        return arithmetic, f"the delegate runs {', '.join(map(str, own))}"
    if found.reads and (kernels is not None or not found.dequantized):
        first = next((one for one in found.reads if one.arithmetic == "float"), found.reads[0])
        return first.arithmetic, f"it is computed with {first.op}"
    # It is one of those that name no operator. A kernel that reads one tensor may be data movement.
    computing = [one for one in nameless if one.arithmetic == "float" and len(one.reads) > 1]
    if computing and not found.reads:
        return "float", f"the delegate runs {', '.join(map(str, computing))}, which names no operator"
    if found.dequantized and (len(found.dequantized) > 1 or _is_quantized(found.node)):
        return "integer", "what it reads and what it returns, or its weight, is quantized"
    return ("float" if _touches_float(found.node) else "integer"), "nothing but what it reads is quantized"


def _is_quantized(node: Node, depth: int = 2) -> bool:
    """Whether an output is quantized, itself or behind what is computed with it."""
    return any(
        is_conversion(user) or (depth > 0 and bool(overload_name(user)) and _is_quantized(user, depth - 1))
        for user in node.users
    )


def _final_nodes(program: ExportedProgram) -> Iterator[Node]:
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield from filter(overload_name, module.graph.nodes)


def _name_of_target(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in values)


def _touches_float(node: Node) -> bool:
    return any(map(_is_float, (node, *node.all_input_nodes)))
