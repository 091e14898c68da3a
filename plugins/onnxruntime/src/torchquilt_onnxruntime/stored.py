"""Programs as they are stored: an ONNX file, with what torchquilt keeps in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from torchquilt import ProgramError
from torchquilt.backend import Constant, Slot
from torchquilt_onnxruntime.packages import required
from torchquilt_onnxruntime.weights_file import check_is_whole, locations, without_weights

#: Key of the model's metadata: what inputs and outputs are to torch.
KEY = "torchquilt"
#: Domains whose operators ONNX Runtime has.
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
#: No dimension is larger.
_LARGEST = 2**31 - 1
_DTYPES = {
    "FLOAT": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "DOUBLE": "float64",
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


@attrs.frozen
class Leaf:
    """One input or output of a call, as torch flattens it.

    Args:
        name: of the value in the file; empty for a constant.
        constant: the value of a constant.
    """

    name: str
    constant: Constant = None

    @property
    def is_constant(self) -> bool:
        """Whether it has one value, which the file does not take or return."""
        return not self.name


@attrs.frozen
class Signature:
    """Inputs and outputs of a call.

    Args:
        inputs, outputs: in order.
        structure: of inputs and outputs, as pytree writes them; empty where they are not known.
    """

    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    structure: tuple[str, str] = ("", "")

    def to_text(self) -> str:
        """It as JSON."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Signature:
        """Read what :meth:`to_text` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        read = json.loads(text)
        inputs, outputs = (tuple(Leaf(**one) for one in read[key]) for key in ("inputs", "outputs"))
        first, second = read["structure"]
        return cls(inputs, outputs, (str(first), str(second)))


@attrs.frozen(eq=False)
class StoredModel:
    """A file that was read, and not run.

    Args:
        buffer: the file.
        files: those that lie beside it, name → content.
        signature: its inputs and outputs.
        inputs, outputs: likewise, as the core wants to know them.
        operators: the operators that it has (``ai.onnx::Conv``).
    """

    buffer: bytes
    files: Mapping[str, bytes]
    signature: Signature
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    operators: tuple[str, ...]

    @classmethod
    def of(cls, buffer: bytes, files: Mapping[str, bytes]) -> StoredModel:
        """Read a file, without running anything of it.

        Raises:
            ProgramError: it is damaged, cut off, or no model that ONNX Runtime takes.
        """
        model = parsed(buffer)
        _check_domains(model)
        check_is_whole(model, files)
        _check(model, buffer)
        signature = _signature(model)
        types = {one.name: one.type for one in (*model.graph.input, *model.graph.output)}
        return cls(
            buffer,
            files,
            signature,
            _slots(signature.inputs, types),
            _slots(signature.outputs, types),
            tuple(
                dict.fromkeys(f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in nodes_of(model.graph))
            ),
        )


def operator_name(node: Any) -> str:
    """The operator of a node with its domain (``ai.onnx::Conv``)."""
    return f"{node.domain or 'ai.onnx'}::{node.op_type}"


def nodes_of(graph: Any) -> list[Any]:
    """The nodes of a graph and of the subgraphs in it."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += nodes_of(attribute.g)
    return found


def parsed(buffer: bytes) -> Any:
    """The message of ONNX that a file is.

    Raises:
        ProgramError: it is none, or is damaged.
    """
    onnx = required("onnx")
    try:
        model = onnx.ModelProto.FromString(buffer)
    except Exception as error:  # protobuf raises DecodeError of its own
        raise _damaged(f"{type(error).__name__}: {error}") from error
    if not model.ir_version or not model.opset_import or (not model.graph.node and not model.graph.output):
        raise _damaged("no graph of operators")
    return model


def _damaged(got: str) -> ProgramError:
    return ProgramError(
        "This is no ONNX file, or it is damaged.",
        expected="an ONNX model, whole",
        got=got,
        remedy="write it again: lower(...).save(path)",
    )


def _check_domains(model: Any) -> None:
    """Refuse operators that only a library of somebody else has."""
    local = {(one.domain, one.name) for one in model.functions}
    strays = {
        f"{node.domain}::{node.op_type}"
        for node in nodes_of(model.graph)
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in local
    }
    if strays:
        raise ProgramError(
            "This ONNX model has operators that ONNX Runtime does not have.",
            expected=f"operators of {', '.join(sorted(filter(None, _DOMAINS)))}",
            got=", ".join(sorted(strays)),
            remedy="run it with the library that has them",
        )


def _check(model: Any, buffer: bytes) -> None:
    onnx = required("onnx")
    if any(node.domain == "com.microsoft" for node in nodes_of(model.graph)):
        return  # the checker knows the operators of ONNX alone
    try:
        onnx.checker.check_model(without_weights(model) if locations(model) else buffer)
    except Exception as error:  # ValidationError, or what its C++ raises
        raise _damaged(str(error).strip().partition("\n")[0]) from error


def _signature(model: Any) -> Signature:
    text = next((one.value for one in model.metadata_props if one.key == KEY), None)
    stored = {one.name for one in model.graph.initializer}
    inputs = [one.name for one in model.graph.input if one.name not in stored]
    outputs = [one.name for one in model.graph.output]
    if text is None:
        return Signature(tuple(map(Leaf, inputs)), tuple(map(Leaf, outputs)))
    try:
        found = Signature.of_text(text)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(f"metadata that cannot be read: {error}") from error
    for leaves, names in ((found.inputs, inputs), (found.outputs, outputs)):
        if {leaf.name for leaf in leaves if not leaf.is_constant} != set(names):
            raise _damaged(f"metadata about other inputs and outputs than {', '.join(names)}")
    return found


def _slots(leaves: Sequence[Leaf], types: dict[str, Any]) -> tuple[Slot, ...]:
    return tuple(_slot(leaf, types) for leaf in leaves)


def _slot(leaf: Leaf, types: dict[str, Any]) -> Slot:
    if leaf.is_constant:
        value = leaf.constant
        dtype = type(value).__name__ if isinstance(value, (bool, int, float)) else ""
        return Slot(dtype, (), False, is_constant=True, constant=value)
    onnx = required("onnx")
    tensor = types[leaf.name].tensor_type
    dtype = _DTYPES.get(onnx.TensorProto.DataType.Name(tensor.elem_type), "")
    sizes = [one.dim_value if one.HasField("dim_value") else None for one in tensor.shape.dim]
    shape = tuple(_LARGEST if size is None else size for size in sizes)
    return Slot(dtype, shape, None in sizes, tuple(range(len(shape))))
