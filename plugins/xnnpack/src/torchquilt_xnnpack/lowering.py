"""Contribution to lowering to ExecuTorch: XNNPACK's partitioner, and the reader of its delegate's payload.

Nothing of ExecuTorch is imported before a model is lowered. Importing this module does not import torch.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchquilt.backend import (
    Arithmetic,
    Contribution,
    Granularity,
    Kernel,
    chooses_qparams,
    dequantize_of,
    is_dequantize,
    is_quantize,
    overload_name,
    qdq_of,
    quantize_of,
    stays_in_float,
)
from torchquilt_xnnpack.layout import (
    copies_around,
    copies_before,
    is_dynamic_convolution,
    is_softmax,
    own_dequantizes,
    say_layouts,
    says_layout,
)
from torchquilt_xnnpack.parts import partitioner

#: Where a kernel has its inputs, in the order in which they are told.
_INPUTS = (
    "input_id",
    "input1_id",
    "input2_id",
    "input3_id",
    "input4_id",
    "input5_id",
    "filter_id",
)
_CONVERSION = "Convert"
_DYNAMIC = "qd"  # begins the types of activations that are quantized at run time
_FLOAT = "fp"
#: Operators of ExecuTorch's dialect whose integer kernels take no other parameters than they return.
_KEEPS_PARAMETERS = (
    "aten.cat.",
    "aten.max_pool2d.",
    "aten.permute_copy.",
    "aten.slice_copy.",
    "aten.unsqueeze_copy.",
    "aten.view_copy.",
)
#: The delegate's mark of a conversion that is done within the kernel of the operator beside it.
_OWN_CONVERSION = "IS_IMPLICIT_Q_DQ_TAG"
_CASTS = ("aten._to_copy.", "dim_order_ops._to_dim_order_copy.")
_COPIES = ("aten.clone.", "dim_order_ops._clone_dim_order.")
#: Operators of ExecuTorch's dialect that change the shape by dimensions of one element.
_MOVES = ("aten.squeeze_copy", "aten.unsqueeze_copy")


def _partitioners() -> list[Any]:
    # One for all: it takes what is static, dynamic (per token, too) and in float, as much as fits together.
    return [partitioner(_configs())]


def _configs() -> list[Any]:
    """The configs of ExecuTorch's partitioner, which take as integers only what is quantized.

    By themselves they take whatever is between dequantize and quantize.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.gemm_configs import ConvolutionConfig
    from executorch.backends.xnnpack.partition.config.generic_node_configs import (
        GenericNodePartitionerConfig,
        SoftmaxConfig,
    )

    def ours(config: Any) -> Any:
        decided = _as_decided(config, is_generic=issubclass(config, GenericNodePartitionerConfig))
        has_copies = issubclass(config, (ConvolutionConfig, SoftmaxConfig))
        return _with_layout(decided) if has_copies else decided

    return [ours(config) for config in ALL_PARTITIONER_CONFIGS]


def _with_layout(config: Any) -> Any:
    class WithLayout(config):  # type: ignore[misc]
        def get_node_and_deps(self, node: Any, ep: Any) -> list[Any]:
            found: list[Any] = super().get_node_and_deps(node, ep)
            if is_dynamic_convolution(node):
                return [*found, *copies_around(node)]
            return [*found, *(copies_before(node) if is_softmax(node) else ())]

    return WithLayout


def _as_decided(config: Any, *, is_generic: bool) -> Any:
    class AsDecided(config):  # type: ignore[misc]
        def check_constraints(self, node: Any, ep: Any) -> bool:
            # What is asked of a product marks the conversions around it as its own, also where it is refused;
            # then no kernel applies them.
            marked = {one: one.meta.get(_OWN_CONVERSION) for one in _around(node)}
            is_taken = bool(super().check_constraints(node, ep))
            for one, mark in marked.items():
                if not is_taken and one.meta.get(_OWN_CONVERSION) != mark:
                    del one.meta[_OWN_CONVERSION]
            return is_taken

        def get_node_and_deps(self, node: Any, ep: Any) -> list[Any]:
            in_float = stays_in_float(node) or says_layout(node) or not _has_fitting_parameters(node)
            if is_generic and in_float:
                return [node]  # without the conversions around it, which makes it a float operator
            found: list[Any] = super().get_node_and_deps(node, ep)
            return found

    return AsDecided


def _around(node: Any) -> Iterator[Any]:
    """The nodes two steps before and behind a node."""
    for first in (*node.all_input_nodes, *node.users):
        yield first
        yield from (*first.all_input_nodes, *first.users)


def _has_fitting_parameters(node: Any) -> bool:
    """Whether an operator that moves data reads and returns tensors with one set of parameters."""
    if not overload_name(node).startswith(_KEEPS_PARAMETERS):
        return True
    around = filter(None, map(qdq_of, (*node.all_input_nodes, *node.users)))
    return len({one.parameters for one in around if one.granularity is Granularity.PER_TENSOR}) <= 1


def kernels_of(payload: bytes) -> Iterator[Kernel]:
    """The kernels that the delegate runs, with the types of inputs and output as the runtime will read them.

    Args:
        payload: what the delegate made of its part of the graph.
    """
    graph = _graph_of(payload)
    types = dict(_types_of(graph))
    for node in graph["xnodes"]:
        kernel = node["xnode_union"]
        name = node["xnode_union_type"].removeprefix("XNN")
        reads = tuple(types[kernel[one]] for one in _INPUTS if kernel.get(one) in types)
        outputs = (number for one, number in kernel.items() if re.fullmatch(r"output\d*_id", one))
        writes = tuple(types[number] for number in outputs if number in types)
        yield Kernel(name, reads, writes, _arithmetic(name, reads, writes), node.get("debug_handle"))


def _arithmetic(name: str, reads: tuple[str, ...], writes: tuple[str, ...]) -> Arithmetic | None:
    """In what a kernel computes. A dynamic one reads integers made when it runs, and writes float."""
    if name == _CONVERSION:
        return None
    is_dynamic = any(one.startswith(_DYNAMIC) for one in reads)
    in_float = any(one.startswith(_FLOAT) for one in reads) or (
        not is_dynamic and any(one.startswith(_FLOAT) for one in writes)
    )
    return "float" if in_float else "integer"


def _types_of(graph: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Number of each value → its type (``qint8``)."""
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"]
        while "tensor_value" in tensor:
            tensor = tensor["tensor_value"]
        yield tensor["id_out"], tensor["datatype"].removeprefix("xnn_datatype_")


def _graph_of(payload: bytes) -> dict[str, Any]:
    """The graph in a payload, read with the schema and the compiler that ExecuTorch comes with."""
    from importlib import resources

    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    start = header.flatbuffer_offset
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema, binary = folder / "schema.fbs", folder / "graph.bin"
        schema.write_bytes((resources.files(serialization) / "schema.fbs").read_bytes())
        binary.write_bytes(payload[start : start + header.flatbuffer_size])
        _flatc_decompile(name, str(schema), str(binary), ["--raw-binary"])
        text = (folder / "graph.json").read_text()
    # Bounds of activations may be infinite, which flatc writes as no JSON has it.
    text = re.sub(r":\s*(-?)inf\b", r": \1Infinity", text)
    graph: dict[str, Any] = json.loads(re.sub(r":\s*-?nan\b", ": NaN", text))
    return graph


def _edge_passes() -> list[Any]:
    passes = [_drop_copies, _write_as_view, _keep_pads_in_float, _choose_from_half, say_layouts]
    return [*passes, _own_dequantizes]  # last, since a copy that is dropped leaves its readers


def _own_dequantizes(model: Any) -> Any:
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS

    return own_dequantizes(model, {f"aten.{config.target_name}" for config in ALL_PARTITIONER_CONFIGS})


def _drop_copies(model: Any) -> Any:
    """Drop copies in the same dimension order, and conversions of one tensor and back.

    Such a copy is left of dropout and ``contiguous``, and of a reshape of something transposed. The delegate
    copies in float, and takes no operator that reads a copy as one of integers. It drops copies itself, but
    after its outputs are settled: where a tensor and its copy both are outputs, it then refuses to return the
    tensor twice.
    """
    from torch.fx.passes.infra.pass_base import PassResult

    graph = model.graph
    found = [node for node in graph.nodes if overload_name(node).startswith(_COPIES) and _is_redundant(node)]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    for node in list(graph.nodes):
        if _converts_back(node):
            source = node.args[0]
            node.replace_all_uses_with(source.args[0])
            found.append(node)
            graph.erase_node(node)
            if not source.users:
                graph.erase_node(source)
    if found:
        model.recompile()
    return PassResult(model, bool(found))


def _converts_back(node: Any) -> bool:
    """Whether a node quantizes what was dequantized with the same parameters, and is no output."""
    there = quantize_of(node)
    if there is None or not there.has_one_scale or any(user.op == "output" for user in node.users):
        return False
    back = dequantize_of(there.input)
    return back is not None and back.parameters == there.parameters


def _is_redundant(copy: Any) -> bool:
    """Whether a copy is laid out like what it copies, and that is computed: no input, and no buffer."""
    source = copy.args[0]
    if source.op == "placeholder":
        return False
    read, returned = source.meta["val"], copy.meta["val"]
    return bool(read.dim_order() == returned.dim_order() and read.dtype == returned.dtype)


def _write_as_view(model: Any) -> Any:
    """Write squeeze and unsqueeze of integers as view; the delegate leaves most of them outside.

    The quantizer writes those as reshape that it takes by itself. This is for those that it can only take
    when it annotates, behind what another quantizer has annotated.
    """
    from executorch.exir.dialects._ops import ops
    from torch.fx.passes.infra.pass_base import PassResult

    changed = False
    for node in model.graph.nodes:
        if not (overload_name(node).startswith(_MOVES) and _is_between_conversions(node)):
            continue
        sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        if sizes.count(-1) <= 1:  # a view infers one of them
            node.target, node.args, node.kwargs = ops.edge.aten.view_copy.default, (node.args[0], sizes), {}
            changed = True
    if changed:
        model.recompile()
    return PassResult(model, changed)


def _keep_pads_in_float(model: Any) -> Any:
    """Put a clamp without bounds between dequantize and a padding with zeros that is computed in float.

    A pass of the delegate takes a padding right behind a dequantize for one of integers, and the program
    does not load where it is none. The clamp changes no number.
    """
    from executorch.exir.dialects._ops import ops
    from torch.fx.passes.infra.pass_base import PassResult

    changed = False
    for node in model.graph.nodes:
        if not _is_taken_for_integers(node):
            continue
        with model.graph.inserting_before(node):
            clamp = model.graph.call_function(
                ops.edge.aten.hardtanh.default, (node.args[0], -math.inf, math.inf)
            )
        clamp.meta = {**node.meta, "val": node.args[0].meta["val"]}
        node.replace_input_with(node.args[0], clamp)
        changed = True
    if changed:
        model.recompile()
    return PassResult(model, changed)


def _is_taken_for_integers(node: Any) -> bool:
    """Whether a node is a float padding that the delegate would pad integers for."""
    if overload_name(node) != "aten.constant_pad_nd.default":
        return False
    value = node.args[2] if len(node.args) > 2 else 0
    source = dequantize_of(node.args[0])
    if value != 0 or source is None or not source.has_one_scale:
        return False
    users = list(node.users)
    if any(map(is_quantize, users)):
        return False
    # In front of a convolution with a weight of integers it is meant for one of integers.
    is_convolved = len(users) == 1 and overload_name(users[0]) == "aten.convolution.default"
    return not (is_convolved and is_dequantize(users[0].args[1]))


def _choose_from_half(model: Any) -> Any:
    """Drop casts of half precision in front of what chooses parameters.

    The delegate reads the tensor that is quantized, and finds its parameters in float32 by itself. A cast
    would be computed for nothing.
    """
    from torch.fx.passes.infra.pass_base import PassResult

    found = [node for node in model.graph.nodes if _chooses_from_a_cast(node)]
    for node in found:
        cast = node.args[0]
        node.replace_input_with(cast, cast.args[0])
        if not cast.users:
            model.graph.erase_node(cast)
    if found:
        model.recompile()
    return PassResult(model, bool(found))


def _chooses_from_a_cast(node: Any) -> bool:
    """Whether a node chooses parameters from the cast of a tensor that is quantized with them as it is."""
    if not chooses_qparams(node):
        return False
    cast = node.args[0]
    quantized = {user.args[0] for item in node.users for user in item.users if is_quantize(user)}
    return overload_name(cast).startswith(_CASTS) and quantized == {cast.args[0]}


def _is_between_conversions(node: Any) -> bool:
    before = dequantize_of(node.args[0])
    if before is None or before.granularity is not Granularity.PER_TENSOR:
        return False
    behind = map(quantize_of, node.users)
    return all(one is not None and one.granularity is Granularity.PER_TENSOR for one in behind)


#: How many dimensions the delegate's PReLU has, whose passes fail for others.
_PRELU_DIMENSIONS = 4


def _withholds(overload: str, node: Any) -> str:
    """Reason for which the delegate must not be given an operator that its partitioners take."""
    refuses = _REFUSES.get(overload)
    return "" if refuses is None else refuses(node)


def _refuses_sum(node: Any) -> str:
    """Reason not to delegate a product to which something is added."""
    if any(node.kwargs.get(one, 1) != 1 for one in ("alpha", "beta")):
        return "XNNPACK's delegate computes addmm without alpha and beta"
    return _refuses_bias(node.args[0], node)


def _refuses_linear(node: Any) -> str:
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return "" if bias is None else _refuses_bias(bias, node)


def _refuses_bias(bias: Any, node: Any) -> str:
    """The delegate adds a number for each channel, whatever the shape of what is to be added."""
    shape = [1, *bias.meta["val"].shape]
    if shape.pop() == node.meta["val"].shape[-1] and all(size == 1 for size in shape):
        return ""
    return "XNNPACK's delegate adds a bias with a number for each output channel only"


def _refuses_prelu(node: Any) -> str:
    data, slopes = (one.meta["val"] for one in node.args[:2])
    if data.dim() != _PRELU_DIMENSIONS:
        return "XNNPACK's delegate has PReLU for four dimensions only"
    if slopes.numel() != data.shape[1]:
        return "XNNPACK's delegate has PReLU with a slope for each channel only"
    return ""


_REFUSES = {
    "aten.addmm.default": _refuses_sum,
    "aten.linear.default": _refuses_linear,
    "aten.prelu.default": _refuses_prelu,
}


def _own_biases(program: Any) -> Any:
    from torchquilt_xnnpack.biases import own_biases

    return own_biases(program)


def _own_quantizes(program: Any) -> Any:
    from torchquilt_xnnpack.quantizes import own_quantizes

    return own_quantizes(program)


CONTRIBUTION = Contribution(
    passes=(_own_biases, _own_quantizes),
    partitioners=_partitioners,
    edge_passes=_edge_passes,
    readers={"XnnpackBackend": kernels_of},
    withholds=_withholds,
)
