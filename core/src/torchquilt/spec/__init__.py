"""Specs: the integers that stand for a tensor, and what was decided for a node.

``dtypes`` names the integer types and their ranges, ``qspec`` has the four kinds of specs, ``config`` a spec
for each role of an operator, ``arithmetic_limits`` the limits of a kernel's integers, and ``annotation`` the
decision that a quantizer writes on a node. Importing this package does not import torch.
"""
