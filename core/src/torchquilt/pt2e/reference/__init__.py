"""The reference representation: a converted model in integer arithmetic.

``rewriting`` goes through a graph with the rules of ``rules``. A rule rewrites one site
(``sites``: dequantize → operator → activation → quantize) into operators on integers, and is a function of
``weighted``, ``elementwise``, ``pooling``, ``movement`` or ``embedding``. ``tensors`` reads what the
quantize and dequantize operators say, ``arithmetic`` writes what the rules have in common.
"""

from torchquilt.pt2e.reference.rewriting import left_in_float, to_reference

__all__ = ["left_in_float", "to_reference"]
