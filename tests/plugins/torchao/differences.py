"""The cases in which our flow does not do with a foreign quantizer what torchao's does, and why."""

from __future__ import annotations

#: Torchao gives two tensors one observer; the parameters that a program computes belong to one tensor.
SHARES_DYNAMIC = "an operator shares dynamic parameters with another tensor, which is an error here"
#: torch's operator rounds before it adds a zero point that is no integer, and cuts off what is left.
ROUNDS_FLOAT_ZERO = "weights with a float zero point are rounded to the nearest integer, not cut off"
#: Torchao leaves the reshape of a weight in the program.
FOLDS_CONSTANTS = "what is computed from constants alone is stored; the outputs are bit-equal"
#: Its annotation names the number 1.0 as an input.
ANNOTATES_NUMBER = "torchao's flow fails: the quantizer annotates a Python number"
#: The weight of a LayerNorm has one dimension, and is quantized with a scale for each element.
OBSERVES_NO_VECTOR = "torchao's flow fails: its observer of channels takes no tensor of one dimension"

DIFFERENCES: dict[tuple[str, str], str] = {
    ("x86_inductor dynamic", "pooled head"): SHARES_DYNAMIC,
    ("embedding", "text"): ROUNDS_FLOAT_ZERO,
    ("example", "gate"): ANNOTATES_NUMBER,
    ("openvino_nncf", "text"): OBSERVES_NO_VECTOR,
    **{
        (vendor, "text"): FOLDS_CONSTANTS
        for vendor in ("arm_tosa", "arm_tosa 16 bits", "arm_ethosu", "arm_vgf")
    },
}
