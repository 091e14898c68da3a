"""What lowering to ExecuTorch needs for its embedding kernels.

A dequantized embedding becomes one kernel, ``embedding_byte``, when the program is written: that is
ExecuTorch's quantized fusion. Without it the program would dequantize the table with float zero points, at
which the runtime ends the process. The kernels are in a library of their own. Importing this module does not
import torch.
"""

from __future__ import annotations

from torchquilt.lowering import Contribution

CONTRIBUTION = Contribution(
    options={"do_quant_fusion_and_const_prop": True}, libraries=("executorch.kernels.quantized",)
)
