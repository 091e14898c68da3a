"""What ExecuTorch's embedding kernels take: the one table that is both queried and annotated from.

Importing this module does not import torch.
"""

from __future__ import annotations

from torchquilt import AllowedSpec, Constraint, Match, OperatorPattern, SupportRow, SupportTable
from torchquilt import operators as ops
from torchquilt.constraints import CONSTANT_WEIGHT, FLOAT32

_ROWS = AllowedSpec("uint8", 0, 255, ("per_axis",), symmetric=False, ch_axis=0, zero_point_domain="float")


def _is_matrix(match: Match) -> bool:
    (weight,) = match.inputs("weight")
    return bool(weight.meta["val"].dim() == 2)


MATRIX = Constraint("matrix", "the embedding table has two dimensions", _is_matrix)

SUPPORT = SupportTable(
    "executorch_embedding",
    (
        SupportRow(
            OperatorPattern.of(ops.EMBEDDING, name="embedding_byte"),
            {"weight": (_ROWS,)},
            constraints=(CONSTANT_WEIGHT, FLOAT32, MATRIX),
            targets=("executorch",),
        ),
    ),
)
