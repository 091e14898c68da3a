"""The inputs and outputs of a program, in forms that the runtime takes and returns."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputSpec

from torchquilt import LoweringError
from torchquilt.backend import copied_graph, with_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch.export import ExportGraphSignature
    from torch.fx import Graph, Node

_CHANNELS_LAST = [0, 2, 3, 1]


def with_plain_signature(program: ExportedProgram) -> ExportedProgram:
    """The program with inputs and outputs that can be passed to the runtime, and from it.

    The runtime reads an input as it lies in memory. Its Python binding takes contiguous tensors, and those of
    four dimensions that are channels_last, and the delegates know no others. So an input that was exported
    with other strides (transposed, sliced, expanded, channels_last of one channel) becomes a contiguous one;
    what is computed of it is the same. A text among the outputs, which cannot be stored, becomes None.

    Args:
        program: it is not changed. Shares its tensors with the result.

    Raises:
        LoweringError: an input is a number that changes from call to call.
    """
    nodes = inputs_of(program)
    for node in nodes:
        _check_is_stored(node)
    strange = [node for node in nodes if _plain(node) is not None]
    texts = [number for number, value in enumerate(_outputs(program)) if isinstance(value, str)]
    if not strange and not texts:
        return program
    graph, copies = copied_graph(program.graph)
    for node in strange:
        copies[node].meta["val"] = _plain(node)
    signature = copy.deepcopy(program.graph_signature)
    for number in texts:
        _forget_output(graph, signature, number)
    return with_graph(program, graph, signature)


def inputs_of(program: ExportedProgram) -> list[Node]:
    """The inputs of a call, those that are constants as well."""
    specs = program.graph_signature.input_specs
    names = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    return [node for node in program.graph.find_nodes(op="placeholder") if node.name in names]


def _outputs(program: ExportedProgram) -> list[Any]:
    """The values of outputs that are constants, None for the others."""
    specs = program.graph_signature.output_specs
    return [spec.arg.value if isinstance(spec.arg, ConstantArgument) else None for spec in specs]


def _check_is_stored(node: Node) -> None:
    """Refuse a number that is not a constant: ExecuTorch stores nothing in its place, and takes none."""
    import torch

    value = node.meta.get("val")
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise LoweringError(
            f"The input {node.name!r} is a number that changes from call to call, which ExecuTorch cannot "
            "take.",
            node=node.name,
            expected="inputs that are tensors, or constants",
            got=f"{type(value).__name__} {value}",
            remedy="pass it as a tensor of one element, or export the model with a fixed number",
        )


def _forget_output(graph: Graph, signature: ExportGraphSignature, number: int) -> None:
    """Return None instead of an output that cannot be stored."""
    output = graph.output_node()
    (values,) = output.args
    assert isinstance(values, (tuple, list))
    output.args = (tuple(None if at == number else value for at, value in enumerate(values)),)
    spec = signature.output_specs[number]
    signature.output_specs[number] = OutputSpec(spec.kind, ConstantArgument(spec.arg.name, None), None)


def _plain(node: Node) -> torch.Tensor | None:
    """Plain form of an input, as a fake tensor; None where it stays as it is."""
    import torch

    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    wanted = _strides(value, _CHANNELS_LAST if is_in_channels_last(value) else [*range(value.dim())])
    has_them = all(map(_is_known, (one == other for one, other in zip(value.stride(), wanted, strict=True))))
    if has_them and _is_known(value.storage_offset() == 0):
        return None
    with value.fake_mode:  # type: ignore[attr-defined]  # export records fake tensors
        return torch.empty_strided(value.shape, wanted, dtype=value.dtype, device=value.device)


def is_in_channels_last(value: object) -> bool:
    """Whether a value is a tensor of four dimensions that lies in channels_last.

    Where a dimension is 1, both orders may be right. Then the delegates take it for a contiguous one.
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.dim() != 4:
        return False
    contiguous = _strides(value, [*range(4)])
    return not _lies(value, contiguous) and _lies(value, _strides(value, _CHANNELS_LAST))


def _strides(value: torch.Tensor, order: Sequence[int]) -> list[Any]:
    """Those of a tensor that has its dimensions in this order, without gaps."""
    found: list[Any] = [1] * value.dim()
    step: Any = 1
    for dimension in reversed([one for one in order if one < value.dim()]):
        found[dimension] = step
        step = step * value.shape[dimension]
    return found


def _lies(value: torch.Tensor, strides: Sequence[Any]) -> bool:
    """Whether the elements of a tensor lie in memory as with these strides."""
    return all(
        _is_known(size == 1) or _is_known(stride == wanted)
        for size, stride, wanted in zip(value.shape, value.stride(), strides, strict=True)
    )


def _is_known(truth: Any) -> bool:
    """Whether something is true whatever the sizes, which is asked without fixing them."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(truth)
