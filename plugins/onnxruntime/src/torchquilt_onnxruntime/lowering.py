"""Contributions of the quantizer to its own target, which knows already how to lower what it quantizes."""

from __future__ import annotations

from torchquilt.backend import Contribution

#: Option of the target: whether the file has the operators of ``com.microsoft`` in it.
COM_MICROSOFT = "com_microsoft"

CONTRIBUTION = Contribution()


def com_microsoft() -> Contribution:
    """Contribution with which a file has the kernels of ONNX Runtime in it, and not standard operators.

    ``tq.lower(…, target="onnxruntime", backends={"onnxruntime": com_microsoft()})``. ONNX Runtime makes the
    same kernels of standard operators each time that it loads them. A file that has them loads sooner, and no
    other tool of ONNX takes it.
    """
    return Contribution(options={COM_MICROSOFT: True})
