"""Kernels that OpenVINO runs: those of the compiled graph, joined with the operators of the program.

The graph says of each kernel in which integers or floats it reads its data (``runtimePrecision``), and which
operators of the model it computes (``originalLayersNames``). That is what the ledger says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.backend import (
    OPERATORS,
    Arithmetic,
    Conversion,
    Operation,
    dequantize_of,
    is_conversion,
    is_quantize,
    overload_name,
)
from torchquilt.backend import operators as ops
from torchquilt_openvino.conversion import Converted

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

#: Types of the graph that compute nothing.
_DATA = frozenset({"Input", "Output"})
#: Precisions of data that stands for real numbers.
_INTEGERS = frozenset({"u8", "i8", "u4", "i4"})
_FLOATS = frozenset({"f32", "f16", "bf16", "f64"})
#: Types of the graph that compute values. Where a data-movement operator is among what one of them computes,
#: OpenVINO has dropped it, and named what it read after it.
_COMPUTING = frozenset(
    {"Subgraph", "Eltwise", "FakeQuantize", "Convolution", "Deconvolution", "FullyConnected", "MatMul"}
)
_MOVING = frozenset(overload for one in OPERATORS if one.moves_data for overload in one.overloads)
#: Types of the graph that multiply with weights. Where floats are multiplied with a weight that is stored as
#: integers, the graph has the precision of the weight; the name of the kernel ends in what is multiplied.
_MULTIPLYING = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
#: Elementwise operators compute with integers in registers of floats, whatever a kernel reads.
_ELEMENTWISE = frozenset(
    overload
    for one in (
        *(ops.ADD, ops.SUB, ops.RELU, ops.RELU6, ops.HARDTANH, ops.CLAMP),
        *(ops.LEAKY_RELU, ops.SIGMOID, ops.SILU),
    )
    for overload in one.overloads
)
#: Between the names of operators that one kernel computes, and in them behind the node of the program.
_BETWEEN, _BEHIND_NODE = ",", "/"


@attrs.frozen
class Executed:
    """A kernel of the compiled graph.

    Args:
        name: of its node in that graph, which is the same whenever the program is compiled.
        kind: what it computes (``Convolution``).
        reads: the precision of its data.
        implementation: the kernel's own name (``brgconv_avx512_i8``).
        operators: the operators of the model that it computes, by name.
        inputs: the nodes of the graph that it reads.
        weight: the precision of the constant that it reads beside its data, empty where there is none.
    """

    name: str
    kind: str
    reads: str
    implementation: str
    operators: tuple[str, ...]
    inputs: tuple[str, ...]
    weight: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the program's nodes that its operators are made of, each once."""
        return tuple(dict.fromkeys(name.partition(_BEHIND_NODE)[0] for name in self.operators))

    @property
    def multiplies_integers(self) -> bool:
        """Whether the name of the kernel says so."""
        return self.implementation.lower().endswith(("_i8", "_u8"))


def executed_by(compiled: Any) -> tuple[Executed, ...]:
    """The kernels of a compiled model that read its inputs, in the order in which they run."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    told = {node.get_friendly_name(): _told(node) for node in nodes}
    found: list[Executed] = []
    constant: set[str] = set()
    for node in nodes:
        facts = told[node.get_friendly_name()]
        inputs = [value.get_source_output().get_node().get_friendly_name() for value in node.inputs()]
        if facts["layerType"] == "Const" or (inputs and constant.issuperset(inputs)):
            constant.add(node.get_friendly_name())
            continue
        if facts["layerType"] in _DATA:
            continue
        weights = [told[name] for name in inputs[1:2] if told[name]["layerType"] == "Const"]
        found.append(
            Executed(
                node.get_friendly_name(),
                facts["layerType"],
                facts["runtimePrecision"],
                facts["primitiveType"],
                tuple(filter(None, facts["originalLayersNames"].split(_BETWEEN))),
                tuple(inputs),
                weights[0]["runtimePrecision"] if weights else "",
            )
        )
    return tuple(found)


def _told(node: Any) -> dict[str, str]:
    info = node.get_rt_info()
    names = ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")
    return {name: info[name].astype(str) if name in info else "" for name in names}


class Execution:
    """The operators of a program by the kernels that compute them.

    Args:
        program: what was converted.
        converted: the model that was made of it.
        kernels: of the compiled model.
        refused: name of an operator → why it stays in float, in OpenVINO's words.
    """

    def __init__(
        self,
        program: ExportedProgram,
        converted: Converted,
        kernels: Iterable[Executed],
        refused: Mapping[str, str],
    ) -> None:
        self._before = {node.name: node for node in program.graph.nodes}
        self._converted = converted
        self._kernels = tuple(kernels)
        self._refused = refused
        #: Name of a node of the program → its kernels, each with a node of the decomposed program.
        self._of_origin: dict[str, list[tuple[Executed, Node]]] = defaultdict(list)
        for kernel in self._kernels:
            for name in kernel.nodes:
                node = converted.nodes.get(name)
                if node is not None and node.op == "call_function":
                    self._of_origin[converted.origins[name]].append((kernel, node))

    def operations(self) -> tuple[Operation, ...]:
        """Each operator of the program that is no conversion, with what it computes in."""
        return tuple(
            self._operation(name, number, *pair)
            for name in self._before
            if name in self._of_origin and not is_conversion(self._before[name])
            for number, pair in enumerate(self._telling(name))
        )

    def conversions(self) -> Iterator[Conversion]:
        """Kernels that quantize or dequantize, and compute nothing else."""
        for kernel in self._kernels:
            nodes = [self._converted.nodes[name] for name in kernel.nodes if name in self._converted.nodes]
            if nodes and all(map(is_conversion, nodes)):
                source = self._converted.origins[nodes[0].name]
                yield Conversion(kernel.name, kernel.kind, source)

    def _telling(self, name: str) -> list[tuple[Executed, Node]]:
        """The kernels that compute the values of an operator, without those that compute sizes for them."""
        pairs = self._of_origin[name]
        if overload_name(self._before[name]) in _MOVING:
            pairs = [pair for pair in pairs if pair[0].kind not in _COMPUTING]
        # Where a bias has a kernel of its own, the one that multiplies tells.
        pairs = [pair for pair in pairs if pair[0].kind in _MULTIPLYING] or pairs
        own = [pair for pair in pairs if pair[0].reads in _INTEGERS | _FLOATS]
        return own or pairs[:1]

    def _operation(self, name: str, number: int, kernel: Executed, node: Node) -> Operation:
        source = self._before[name]
        elsewhere = {each for one in self._kernels if one is not kernel for each in one.nodes}
        arithmetic, why = _arithmetic(kernel, node, elsewhere)
        readers = [user for user in source.users if user.op != "output"]
        is_returned = any(user.op == "output" for user in source.users)
        return Operation(
            name=name if not number else f"{name}_{number}",
            op=overload_name(node),
            source=name,
            delegate="",
            arithmetic=arithmetic,
            why=why,
            reads=tuple(one.name for one in source.all_input_nodes if one.name in self._of_origin),
            returns_float=_has_floats([source]) and (is_returned or not all(map(is_quantize, readers))),
            refused=self._refused.get(name, ""),
            step=kernel.name,
        )


def _arithmetic(kernel: Executed, node: Node, elsewhere: Container[str]) -> tuple[Arithmetic, str]:
    """The arithmetic in which a kernel computes an operator, and the sentence that says how that is known.

    Args:
        kernel: it.
        node: the operator.
        elsewhere: the nodes that other kernels compute.
    """
    named = f"the kernel {kernel.kind} ({kernel.implementation})"
    runs = f"{named} reads {kernel.reads}"
    if kernel.reads in _INTEGERS and (kernel.kind not in _MULTIPLYING or kernel.multiplies_integers):
        return "integer", runs
    if not _has_floats([node, *node.all_input_nodes]):
        return "integer", f"{runs}, and the operator has no floats"
    if kernel.weight in _INTEGERS and _has_only_its_weight_quantized(node):
        return "integer", f"{named} multiplies floats with a weight that is stored as {kernel.weight}"
    if _multiplies_before_it_dequantizes(kernel, node):
        return "integer", f"{runs}, and multiplies integers within"
    if _quantizes_what_it_reads(kernel, node, elsewhere):
        return "integer", f"{runs}, and quantizes it before it computes"
    return "float", runs


def _multiplies_before_it_dequantizes(kernel: Executed, node: Node) -> bool:
    """Whether OpenVINO put the dequantize of a product behind it, within a kernel of several products."""
    behind = [name for name in kernel.operators if name.partition(_BEHIND_NODE)[0] == node.name]
    return kernel.kind == "Subgraph" and any(name.endswith("/DequantizationMultiply") for name in behind)


def _quantizes_what_it_reads(kernel: Executed, node: Node, elsewhere: Container[str]) -> bool:
    """Whether an elementwise operator and what makes integers of all that it reads are one kernel."""
    if overload_name(node) not in _ELEMENTWISE:
        return False
    read = (one for one in node.all_input_nodes if one.op != "get_attr")
    return all(_is_quantized_in(kernel, one, elsewhere) for one in read)


def _is_quantized_in(kernel: Executed, node: Node, elsewhere: Container[str]) -> bool:
    told = dequantize_of(node)
    if told is not None:  # OpenVINO may give a quantize within a kernel a name of its own
        return told.input.op == "get_attr" or told.input.name not in elsewhere
    return node.name in kernel.nodes and (
        _multiplies_before_it_dequantizes(kernel, node) or _quantizes_what_it_reads(kernel, node, elsewhere)
    )


def _has_only_its_weight_quantized(node: Node) -> bool:
    told = [(one, dequantize_of(one)) for one in node.all_input_nodes]
    stored = [one is not None and one.input.op == "get_attr" for _, one in told]
    return any(stored) and all(one is None or one.input.op == "get_attr" for _, one in told)


def _has_floats(nodes: Iterable[Node]) -> bool:
    import torch

    values = (node.meta.get("val") for node in nodes)
    flat = (one for value in values for one in (value if isinstance(value, (tuple, list)) else [value]))
    return any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in flat)
