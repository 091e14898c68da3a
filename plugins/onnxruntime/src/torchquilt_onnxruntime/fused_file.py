"""A file of the kernels that ONNX Runtime makes of the standard operators when it loads them.

The runtime optimizes the file once, here, and not each time that it is loaded. Layouts that only this
processor has are left to the loading. Each node says which operators of the exported program it computes, so
that the ledger of such a file is read like that of any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torchquilt_onnxruntime.exporting import ALSO, KIND, OVERLOAD, SOURCE
from torchquilt_onnxruntime.optimized import PUT_IN, VALUE, Optimized
from torchquilt_onnxruntime.packages import required
from torchquilt_onnxruntime.stored import nodes_of
from torchquilt_onnxruntime.values import told_parameters
from torchquilt_onnxruntime.weights_file import name_of

if TYPE_CHECKING:
    from torchquilt_onnxruntime.optimized import FusedKernel, Part


def fused(buffer: bytes, model: Any, files: Mapping[str, bytes]) -> tuple[Any, dict[str, bytes]]:
    """Make the file of kernels of a file of standard operators.

    Args:
        buffer: the latter.
        model: the same, as a message of ONNX.
        files: those beside it, name → content.

    Returns:
        The message of ONNX, and the files beside it.
    """
    optimized = Optimized.of(buffer, model, files, keeps_layouts=True)
    made = optimized.model
    for node, kernel in zip(nodes_of(made.graph), optimized.kernels, strict=True):
        node.name = kernel.name
        del node.metadata_props[:]
        for key, text in _told(kernel, optimized.returned_by(kernel)):
            node.metadata_props.add(key=key, value=text)
    _keep_what_is_used(made)
    _tell_values(made, model, optimized.file.dtypes)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    return made, _renamed(made, optimized.files)


def _told(kernel: FusedKernel, returned: Part | None) -> Iterator[tuple[str, str]]:
    """Metadata of a node: what it computes, and the operator whose value it returns."""
    yield VALUE, str(returned or "")
    if kernel.is_put_in and not kernel.nodes:
        yield KIND, PUT_IN
        return
    parts = [node.part for node in kernel.nodes] if kernel.converts else kernel.parts
    if not parts:
        return
    first, *others = parts
    yield SOURCE, first.source
    yield OVERLOAD, first.overload
    yield KIND, "conversion" if kernel.converts else "operator"
    if others and not kernel.converts:
        yield ALSO, "\n".join(map(str, others))


def _keep_what_is_used(model: Any) -> None:
    """Leave out the versions of domains of which the file has no operator: the runtime lists all it knows."""
    used = {node.domain for node in nodes_of(model.graph)} | {""}
    kept = [one for one in model.opset_import if one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _tell_values(made: Any, model: Any, dtypes: Mapping[str, str]) -> None:
    """Keep the dtypes of values, and with which parameters their integers are floats.

    Args:
        made: the file of kernels, to which this is added.
        model: that of standard operators.
        dtypes: of the values of both, in ONNX's words; empty where the runtime does not say.
    """
    onnx = required("onnx")
    returned = {value: None for node in nodes_of(made.graph) for value in node.output}
    # The runtime tells of values that there were, too. When it loads the file, others get their names.
    told = [one for one in made.graph.value_info if one.name in returned]
    known = {one.name for one in (*told, *made.graph.input, *made.graph.output)}
    told += [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DataType.Value(dtypes[name]), None)
        for name in returned
        if dtypes.get(name) and name not in known
    ]
    del made.graph.value_info[:]
    made.graph.value_info.extend(told)
    parameters = told_parameters(model)
    for value in made.graph.value_info:
        for key, text in parameters.get(value.name, {}).items():
            value.metadata_props.add(key=key, value=text)


def _renamed(model: Any, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Give the file of weights a name with the digest of its content, as any other has."""
    external = required("onnx").TensorProto.EXTERNAL
    names = {name: name_of(content) for name, content in files.items()}
    for tensor in model.graph.initializer:
        if tensor.data_location == external:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = names[entry.value]
    return {names[name]: content for name, content in files.items()}
