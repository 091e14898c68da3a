"""The tag that a quantizer gives an operator, on the quantize and dequantize operators around it, too.

A backend finds by ``node.meta["quantization_tag"]`` what it is to compute together. As in PyTorch's own
convert, dequantize operators have the tag of the operator that reads them, quantize operators that of the one
whose output they quantize. What finds parameters at run time goes with the operator that reads the result.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Graph, Node

from torchquilt.graph.qdq import chooses_qparams, dequantize_of, is_quantize
from torchquilt.spec.annotation import annotation_of

TAG_KEY = "quantization_tag"


def carry_tags(graph: Graph) -> None:
    """Tag what was put around each operator that has a tag and an annotation."""
    for node in graph.nodes:
        if TAG_KEY in node.meta and annotation_of(node) is not None:
            for conversion in _around(node):
                conversion.meta[TAG_KEY] = node.meta[TAG_KEY]


def _around(node: Node) -> Iterator[Node]:
    """The conversions that are there for an operator."""
    for source in node.all_input_nodes:
        read = dequantize_of(source)
        if read is None:
            continue
        yield source
        scales = read.scale.all_input_nodes if isinstance(read.scale, Node) else ()
        for choose in filter(chooses_qparams, scales):
            yield from (choose, read.input)
    annotation = annotation_of(node)
    if annotation is not None and annotation.output_qspec is not None:
        yield from filter(is_quantize, node.users)
