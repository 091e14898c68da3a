"""Contribution to lowering to ExecuTorch: its embedding kernels.

A pass calls the kernels where rows are looked up, with tables packed as they read them. From dequantized
bytes ExecuTorch would make ``embedding_byte`` by itself, but from other layouts a program at which the
runtime ends the process. The kernels are in a library of their own. Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import Contribution

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def _call_kernels(program: ExportedProgram) -> ExportedProgram:
    from torchquilt_executorch_embedding.programs import call_kernels

    return call_kernels(program)


CONTRIBUTION = Contribution(
    passes=(_call_kernels,),
    options={"do_quant_fusion_and_const_prop": True},
    libraries=("executorch.kernels.quantized",),
)
