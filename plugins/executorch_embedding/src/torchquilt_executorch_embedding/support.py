"""Support table of ExecuTorch's embedding kernels: the one table that is both queried and annotated from.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchquilt import AllowedSpec, Constraint, Match, OperatorPattern, Refusal, SupportRow, SupportTable
from torchquilt.backend import CONSTANT_WEIGHT
from torchquilt.backend import operators as ops
from torchquilt_executorch_embedding.specs import GROUP_SIZES, RANGES

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def _is_of_the_kernel(match: Match) -> bool:
    (weight,) = match.inputs("weight")
    return str(weight.meta["val"].dtype) in ("torch.float32", "torch.float16")


ROWS = Constraint("rows", "the embedding table is float32 or float16", _is_of_the_kernel)


def _width_divides(size: int, code: str) -> Constraint:
    def width(match: Match) -> int:
        (weight,) = match.inputs("weight")
        found: int = weight.meta["val"].shape[-1]
        return found

    return Constraint(
        code,
        f"the width of a row is a multiple of {size}",
        lambda match: width(match) % size == 0,
        lambda match: f"it is {width(match)}",
    )


def _row(bits: int, group_size: int | None) -> SupportRow:
    if group_size is None:
        layout = AllowedSpec(
            *RANGES[bits],
            ("per_axis",),
            symmetric=False,
            ch_axis=0,
            zero_point_domain="float",
            exact_range=True,
        )
    else:
        layout = AllowedSpec(
            *RANGES[bits], ("per_group",), symmetric=False, group_sizes=(group_size,),
            zero_point_domain="float", exact_range=True,
        )  # fmt: skip
    kernel = "embedding_byte" if bits == 8 else f"embedding_{bits}bit"
    in_bytes = (_width_divides(8 // bits, "whole_bytes"),) if bits < 8 and group_size is None else ()
    in_groups = () if group_size is None else (_width_divides(group_size, "groups"),)
    return SupportRow(
        OperatorPattern.of(ops.EMBEDDING, name=kernel + (f"_group{group_size}" if group_size else "")),
        {"weight": (layout,)},
        constraints=(CONSTANT_WEIGHT, ROWS, *in_bytes, *in_groups),
        targets=("executorch",),
        rewrite=_write_for_kernel,
    )


def _write_for_kernel(model: GraphModule, match: Match) -> None:
    """Write an embedding as the kernel takes it: with int64 indices and no further options.

    Those options (``padding_idx``, ``scale_grad_by_freq``, ``sparse``) only matter to gradients.
    """
    embedding = match.anchor
    table, indices = embedding.args[:2]
    embedding.args = (table, _as_int64(model, indices, embedding))
    embedding.kwargs = {}


def _as_int64(model: GraphModule, indices: Any, embedding: Node) -> Any:
    import torch

    from torchquilt.backend import take_origin

    value = indices.meta["val"]
    if value.dtype is torch.int64:
        return indices
    with model.graph.inserting_before(embedding):
        cast = model.graph.call_function(torch.ops.aten.to.dtype, (indices, torch.int64))
    take_origin(cast, embedding)
    with value.fake_mode:
        cast.meta["val"] = value.to(torch.int64)
    return cast


_BAG = ops.Operator(
    "embedding_bag",
    ("aten.embedding_bag.default", "aten.embedding_bag.padding_idx", "aten._embedding_bag.default"),
    (ops.Operand("weight", 0, "weight"),),
    ("torch.nn.functional.embedding_bag",),
    ("torch.nn.modules.sparse.EmbeddingBag",),
)

SUPPORT = SupportTable(
    "executorch_embedding",
    tuple(_row(bits, size) for bits in RANGES for size in (None, *GROUP_SIZES)),
    refusals=(Refusal(_BAG, "ExecuTorch has no kernel for an embedding bag, of integers or of floats"),),
)
