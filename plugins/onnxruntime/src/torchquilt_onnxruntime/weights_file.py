"""Weights in a file beside the model: a message of ONNX has less than 2 GiB."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchquilt import ProgramError
from torchquilt_onnxruntime.packages import required

if TYPE_CHECKING:
    from onnxscript import ir

#: Bytes of constants that one message takes, with room for the graph.
LARGEST = 2**31 - 2**26
#: A constant of fewer bytes stays in the message, where tools look for scales and zero points.
SMALLEST = 1024
#: Tensors begin at a multiple of this, so that a runtime can map the file into memory.
_ALIGNED = 4096


def moved_out(model: ir.Model) -> dict[str, bytes]:
    """Move the large constants of a model that is too large for a message into a file beside it.

    Args:
        model: it refers to the file afterwards.

    Returns:
        Name of the file → content; empty for a model that fits into one message. The name has the digest of
        the content, so that models in one folder do not share one.
    """
    from onnxscript import ir

    held = [one for one in model.graph.initializers.values() if one.const_value is not None]
    if sum(one.const_value.nbytes for one in held if one.const_value is not None) < LARGEST:
        return {}
    parts: list[bytes] = []
    end, moved = 0, []
    for value in held:
        tensor = value.const_value
        if tensor is None or tensor.nbytes < SMALLEST:
            continue
        content = tensor.tobytes()
        gap = -end % _ALIGNED
        parts += [bytes(gap), content]
        moved.append((value, end + gap, len(content)))
        end += gap + len(content)
    data = b"".join(parts)
    name = name_of(data)
    for value, start, length in moved:
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.ExternalTensor(
            name, start, length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
        )
    return {name: data}


def name_of(content: bytes) -> str:
    """Name of a file of weights, with the digest of its content."""
    return f"weights-{hashlib.sha256(content).hexdigest()[:16]}.bin"


def locations(model: Any) -> tuple[str, ...]:
    """Names of the files that a model refers to.

    Args:
        model: a message of ONNX.
    """
    found = (_entries(one).get("location", "") for one in _outside(model))
    return tuple(dict.fromkeys(found))


def check_is_whole(model: Any, files: Mapping[str, bytes]) -> None:
    """Refuse a model of which a file is missing or cut off.

    Raises:
        ProgramError: it is.
    """
    for one in _outside(model):
        entries = _entries(one)
        content = files.get(entries.get("location", ""))
        start, length = (int(entries.get(key) or 0) for key in ("offset", "length"))
        if content is None or not 0 <= start <= start + length <= len(content):
            has = "no such file" if content is None else f"{len(content):,} bytes"
            raise ProgramError(
                "The weights of this ONNX model are missing, or are cut off.",
                expected=f"{entries.get('location')!r} with {start + length:,} bytes, for {one.name!r}",
                got=has,
                remedy="copy both files, or write them again: lower(...).save(path)",
            )


def without_weights(model: Any) -> Any:
    """A copy of a model that takes what lies in other files as inputs, for checking."""
    onnx = required("onnx")
    outside = {one.name: one for one in _outside(model)}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [one for one in copy.graph.initializer if one.name not in outside]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    given = {one.name for one in copy.graph.input}
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, one.data_type, list(one.dims))
        for name, one in outside.items()
        if name not in given
    )
    return copy


def _outside(model: Any) -> list[Any]:
    external = required("onnx").TensorProto.EXTERNAL
    return [one for one in model.graph.initializer if one.data_location == external]


def _entries(tensor: Any) -> dict[str, str]:
    return {one.key: one.value for one in tensor.external_data}
