"""A quantize for each kind of dynamic operators that read one tensor.

The delegate quantizes a tensor once for each quantize of the program, as its first reader needs it: in the
memory layout of that reader, with one scale for the image or one for each row or pixel. A reader of another
kind would compute with the wrong integers, or stay outside of the delegate without any. torchquilt converts
with a quantize for each kind; others, such as torchao, write one for each tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from torchquilt.backend import chooses_qparams, is_dequantize, is_pointwise, is_quantize, overload_name

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node

_LINEARS = ("aten.linear.default", "aten.addmm.default", "aten.mm.default", "aten.matmul.default")


@attrs.frozen(eq=False)
class _Reader:
    """An operator with a dynamically quantized input.

    Args:
        quantize: the node that quantizes its input.
        dequantize: the node that it reads.
        node: the operator.
    """

    quantize: Node
    dequantize: Node
    node: Node

    @property
    def kind(self) -> str:
        """Name of the operators whose inputs the delegate quantizes in the same way."""
        name = overload_name(self.node)
        if name in _LINEARS:
            return "linear"
        if not name.startswith("aten.conv"):
            return name
        is_matrix_product = "transpose" not in name and is_pointwise(self.node)
        return "pointwise convolution" if is_matrix_product else "convolution"


def own_quantizes(program: ExportedProgram) -> ExportedProgram:
    """Give each kind of dynamic operators a quantize of its own where several kinds read one.

    Args:
        program: it is not changed. Shares its tensors with the result.
    """
    if not any(_to_separate(program.graph)):
        return program
    from torchquilt.backend import copied_graph, with_graph

    graph, _ = copied_graph(program.graph)
    for choose, readers in [*_to_separate(graph)]:
        _give_own(graph, choose, readers)
    return with_graph(program, graph)


def _to_separate(graph: Graph) -> Iterator[tuple[Node, Sequence[_Reader]]]:
    """Each node that chooses parameters for several kinds, with the readers of each kind but the first."""
    for choose in graph.nodes:
        if not chooses_qparams(choose):
            continue
        kinds: dict[str, list[_Reader]] = defaultdict(list)
        for reader in _readers(choose):
            kinds[reader.kind].append(reader)
        yield from ((choose, readers) for readers in [*kinds.values()][1:])


def _readers(choose: Node) -> Iterator[_Reader]:
    quantizes = dict.fromkeys(user for item in choose.users for user in item.users if is_quantize(user))
    for quantize in quantizes:
        for dequantize in filter(is_dequantize, quantize.users):
            yield from (_Reader(quantize, dequantize, node) for node in dequantize.users)


def _give_own(graph: Graph, choose: Node, readers: Sequence[_Reader]) -> None:
    """Let operators read a copy of the nodes that quantize their input."""
    copies: dict[Node, Node] = {}

    def copied(node: Node) -> Node:
        return graph.node_copy(node, lambda source: copies.get(source, source))

    for reader in readers:
        with graph.inserting_before(reader.quantize):
            for node in (choose, *choose.users, reader.quantize):
                if node not in copies:
                    copies[node] = copied(node)
        with graph.inserting_before(reader.node):
            own = copied(reader.dequantize)
        reader.node.replace_input_with(reader.dequantize, own)
        for node in (reader.dequantize, reader.quantize):
            if not node.users:
                graph.erase_node(node)
